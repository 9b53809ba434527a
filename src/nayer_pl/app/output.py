"""What a run says: on the console, to its loggers, and at its end in `summary.json`."""

import json
import logging
import os
import platform
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from nayer_pl.app.instantiate import build
from nayer_pl.app.signals import SIGTERM_UPLOAD_S, Terminated
from nayer_pl.callbacks.checkpoint import TrainingEnded
from nayer_pl.callbacks.loggers import OfflineSafeWandbLogger, close_wandb, sync_command
from nayer_pl.errors import InputError
from nayer_pl.runtime.files import cannot_write, write_durably

PACKAGES = ("nayer_pl", "torch", "lightning")


class IgnoreWriteErrors:
    """A text stream that drops what cannot be written, for example on a full disk."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, if that works."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if that works."""
        with suppress(OSError):
            self._stream.flush()


@contextmanager
def ignore_write_errors() -> Iterator[None]:
    """Print to `IgnoreWriteErrors`: progress bars and tables do not expect a full disk."""
    out, err = IgnoreWriteErrors(sys.stdout), IgnoreWriteErrors(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        yield


class TqdmLoggingHandler(logging.StreamHandler):  # a generic class only from Python 3.11 on
    """Logs to the current standard output, on lines of their own above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record with `tqdm.write`."""
        try:
            tqdm.write(self.format(record), file=sys.stdout)
        except Exception:  # as every handler: logging reports it
            self.handleError(record)


def quiet_lightning() -> None:
    """Hide advertisements, and warnings about what is done on purpose."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        logging.getLogger("nayer_pl").setLevel(logging.ERROR)  # the first process says it already
    if not sys.stderr.isatty():  # a log file, where every state of a bar would stay
        disable_progress_bar()  # the Hub's too
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when it is imported
    for message in (
        ".*does not have many workers.*",
        ".*Total length of .* across ranks is zero.*",
        ".*isinstance.treespec, LeafSpec.. is deprecated.*",
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*module.s. in eval mode at the start of training.*",
        ".*recommended to use .self.log.*sync_dist=True.*",  # the metrics are synchronized already
    ):
        warnings.filterwarnings("ignore", message)


@contextmanager
def open_loggers(cfg: DictConfig, resume: bool = False) -> Iterator[list[Logger]]:
    """Open the loggers, with the whole configuration in each and in the run's directory.

    A run that is resumed continues its W&B run, and keeps the configuration that it began with.
    """
    loggers: list[Logger] = [
        build(node, resume_run=resume) if "resume_run" in node else build(node)
        for node in cfg.logger.values()
        if node
    ]
    file = Path(cfg.run_dir) / "config.yaml"
    if rank_zero_only.rank == 0 and not (resume and file.exists()):  # type: ignore[attr-defined]
        write_durably(file, OmegaConf.to_yaml(cfg, resolve=True).encode())
    for logger in loggers:
        if not isinstance(logger, CSVLogger):  # it has config.yaml beside it
            logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    try:
        yield loggers
    except TrainingEnded as end:
        complete = close_wandb(loggers, SIGTERM_UPLOAD_S, failed=True)
        raise Terminated(end.reason, at_once=not complete) from end
    except BaseException:
        close_wandb(loggers, failed=True)
        raise
    close_wandb(loggers)


@rank_zero_only
def publish_summary(
    summary: Mapping[str, Any], run_dir: Path, weights: Path, loggers: Iterable[Logger]
) -> None:
    """Write the flat summary (fractions in [0, 1], seconds, counts), send it to W&B, and print it.

    Where it cannot be written it is printed all the same, before an InputError says so.
    """
    failed = None
    try:  # whole or not at all: this file says that the run is finished
        text = json.dumps(summary, indent=2) + "\n"
        write_durably(run_dir / "summary.json", text.encode())
    except OSError as error:
        failed = error
    files = {"weights": os.path.relpath(weights)} if weights.exists() else {}
    files["directory"] = os.path.relpath(run_dir)
    for logger in loggers:
        if isinstance(logger, OfflineSafeWandbLogger):
            logger.summarize(summary)
            command = sync_command(logger)
            if command:
                files["W&B, offline"] = command
    print_summary(summary, files)
    if failed is not None:
        raise InputError(
            f"{cannot_write(failed)}, so the run does not count as finished, though its weights "
            "are there. Make room: the same command with resume=auto then repeats its end."
        ) from failed


def print_summary(summary: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Print one table: results, sizes, seconds per phase, and where the files are."""
    table = Table(title="Summary", title_justify="left", show_header=False, expand=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in [*_rows(summary), *files.items()]:
        table.add_row(name, Text(text))
    Console().print(table)


def _rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        (name.replace("_", " "), _percent(summary[name]))
        for name in ("teacher_accuracy", "student_accuracy", "agreement", "accuracy")
        if name in summary
    ]
    if "student_parameters" in summary:
        teacher, student = summary["teacher_parameters"], summary["student_parameters"]
        sizes = f"teacher {_count(teacher)}, student {_count(student)}"
        ratio = f"{teacher / student:.2f}x smaller"
        if teacher <= student:
            ratio = "the same" if teacher == student else f"{student / teacher:.2f}x larger"
        rows.append(("parameters", f"{sizes}, {ratio}"))
    elif "parameters" in summary:
        rows.append(("parameters", _count(summary["parameters"])))
    if "images_banked" in summary:
        made, kept = summary["images_banked"], summary["images_kept"]
        banked = f"{made:,}" if made == kept else f"{made:,}, of which {kept:,} are kept"
        banked += f" ({_size(summary['bank_bytes'])})"
        if summary["label_agreement"] is not None:
            seen = _percent(summary["label_agreement"])
            banked += f"; the teacher sees the target label in {seen}"
        rows.append(("images banked", banked))
    for phase in ("teacher", "synthesis", "distillation", "training"):
        seconds = summary.get(f"seconds_{phase}")
        if seconds:
            speed = summary.get(f"images_per_second_{phase}")
            per_second = f", {speed:,.0f} images/s" if speed else ""
            rows.append((f"time, {phase}", f"{seconds:.1f} s{per_second}"))
    return rows


def _percent(value: float | None) -> str:
    return "not measured (no real images)" if value is None else f"{100 * value:.2f} %"


def _count(value: int) -> str:
    return f"{value / 1e6:.2f} M" if value >= 100_000 else f"{value:,}"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def environment_info(device: torch.device | str = "cpu", devices: int = 1) -> dict[str, str]:
    """The machine (`devices` of the kind of `device`) and the versions of a run, in words."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    several = f"{devices} x " if devices > 1 else ""
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    power = f"{cores} core{'s'[: cores > 1]}, {threads} thread{'s'[: threads > 1]}"
    versions = [f"{package} {version(package)}" for package in PACKAGES]
    return {
        "machine": f"{several}{name}, {power}",
        "versions": ", ".join([*versions, f"Python {platform.python_version()}"]),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
