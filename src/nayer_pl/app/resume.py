"""Which checkpoint a run is resumed from, and whether it may be."""

import json
import logging
import os
import textwrap
import time
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from nayer_pl.app.run_dir import prepare_run_dir, resolve_class_names
from nayer_pl.bank.files import read_verified
from nayer_pl.callbacks.checkpoint import LAST, PREVIOUS
from nayer_pl.distillation.rank_state import KEY
from nayer_pl.errors import InputError, first_line

log = logging.getLogger(__name__)

# What makes a run. Not where it runs, how it logs, and where its files lie.
IDENTITY_GROUPS = (
    "seed", "prompts", "model_name", "model", "data", "class_names", "teacher", "student",
    "text_encoder", "plan", "bank", "trainer", "datamodule",
)  # fmt: skip
COMPARED_ONLY = {  # of these groups, nothing else
    "trainer": ("max_epochs", "max_steps", "limit_train_batches", "overfit_batches"),
    "datamodule": ("holdout",),
}
IGNORED_KEYS = (
    "cache", "cache_dir", "weights", "trained_by", "compile", "check_teacher", "device",
    "trust_code", "workers",
)  # fmt: skip
DUPLICATED_NODES = ("teacher", "student", "label_text", "network")  # in `model`, from elsewhere


def open_run(cfg: DictConfig) -> tuple[dict[str, Any] | None, Path | None]:
    """Prepare `cfg.run_dir` for a new run, or for resuming the one that is in it.

    Returns the summary, if the run is already complete; and the checkpoint to resume from, if any.
    """
    resuming = bool(cfg.resume or cfg.ckpt_path)
    summary, checkpoint = load_summary(cfg.run_dir) if resuming else None, None
    if summary is None:
        checkpoint = find_checkpoint(cfg.run_dir, cfg.resume, cfg.ckpt_path)
        prepare_run_dir(cfg.run_dir, resume=resuming)
    resolve_class_names(cfg)
    if summary is not None or checkpoint is not None:
        check_config_unchanged(cfg)
    if summary is not None:
        log.info("'%s' holds a finished run; there is nothing to resume.", cfg.run_dir)
    elif checkpoint is not None:
        log.info("Resuming from '%s'.", checkpoint)
    elif resuming:
        log.info("There is no checkpoint in '%s' yet: a new run begins.", cfg.run_dir)
    return summary, checkpoint


def find_checkpoint(run_dir: str | Path, resume: str | None, ckpt_path: str | None) -> Path | None:
    """The checkpoint to resume from; None for a new run.

    It is `ckpt_path`, or with resume="auto" the newest intact one of `run_dir`. An InputError says
    that it is damaged, or that all of them are.
    """
    if resume not in (None, "auto"):
        raise InputError(f"resume is auto or null, not '{resume}'; a file is ckpt_path=PATH.")
    if ckpt_path is not None:
        return _intact_or_error(Path(ckpt_path))
    if resume is None:
        return None
    return _newest_intact(Path(run_dir) / "checkpoints")


def run_dir_of(ckpt_path: str | Path) -> str:
    """The directory of the run that wrote a checkpoint, where its bank is too."""
    return str(Path(ckpt_path).absolute().parent.parent)


def find_corruption(path: Path) -> str | None:
    """What is wrong with a checkpoint or its bank's files, no code of which is run; or None."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()  # compares checksums, which torch.load does not
        if broken is not None:
            return f"its checksum of '{broken}' is wrong"
        content = torch.load(path, map_location="cpu", weights_only=True)
        if KEY not in content:
            return "it was not written by this program"
        for record in _bank_files(content):
            read_verified(path.parent.parent / "bank", record)
    except Exception as error:  # a damaged pickle can raise anything
        return first_line(error)
    return None


def _bank_files(checkpoint: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for state in checkpoint.get("SyntheticDataModule", {}).get("ranks", []):
        for bank in ("bank", "holdout"):
            yield from state.get(bank, {}).get("files", [])


def _newest_intact(folder: Path) -> Path | None:
    corrupt: list[Path] = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        problem = find_corruption(path)
        if problem is None:
            for name in corrupt:
                _quarantine(name)
            return path
        corrupt.append(path)
        log.warning("'%s' is damaged: %s.", path, problem)
    if corrupt:
        raise InputError(
            f"No checkpoint in '{folder}' is intact; start a new run with another run_dir=PATH."
        )
    return None


@rank_zero_only
def _quarantine(path: Path) -> None:
    """Keep a damaged file from being rotated over an intact one."""
    os.replace(path, path.with_name(f"{path.name}.damaged-{time.time_ns()}"))


def _intact_or_error(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"There is no checkpoint '{path}'.")
    problem = find_corruption(path)
    if problem is None:
        return path
    others = (path.with_name(name) for name in (LAST, PREVIOUS) if name != path.name)
    intact = next((o for o in others if o.exists() and find_corruption(o) is None), None)
    offer = f"; ckpt_path='{intact}' is the newest intact one" if intact else ""
    raise InputError(f"'{path}' cannot be continued from: {problem}{offer}.")


def load_summary(run_dir: str | Path) -> dict[str, Any] | None:
    """The summary of a finished run; None if there is none."""
    file = Path(run_dir) / "summary.json"
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    except ValueError as error:
        raise InputError(
            f"'{file}' is damaged ({error}); delete it: the run is then resumed from its last "
            "checkpoint, and writes it again."
        ) from error


def check_config_unchanged(cfg: DictConfig) -> None:
    """Raise an InputError that names up to three differences if `run_dir` holds another run."""
    file = Path(cfg.run_dir) / "config.yaml"
    if not file.exists():
        return
    try:
        then = dict(_identity(OmegaConf.to_container(OmegaConf.load(file))))
    except Exception as error:  # of YAML, of UTF-8, of OmegaConf
        raise InputError(
            f"'{file}' is damaged ({first_line(error)}); delete it: checkpoints still know which "
            "method, networks and plan they belong to."
        ) from error
    now = dict(_identity(OmegaConf.to_container(cfg, resolve=True)))
    changed = [name for name in sorted(then.keys() | now.keys()) if then.get(name) != now.get(name)]
    if changed:
        short = partial(textwrap.shorten, width=40, placeholder=" ...")
        differences = ", ".join(
            f"{name}={short(str(now.get(name)))} (was {short(str(then.get(name)))})"
            for name in changed[:3]
        )
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise InputError(
            f"'{cfg.run_dir}' was started with other settings: {differences}{more}; type the same "
            "again to resume it, or start a new run with another run_dir=PATH."
        )


def _identity(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of what makes a run, each once."""
    if not isinstance(node, dict):
        yield name, node
        return
    for key, value in node.items():
        if not name:
            counts = key in IDENTITY_GROUPS
        elif name in COMPARED_ONLY:
            counts = key in COMPARED_ONLY[name]
        else:
            counts = key not in IGNORED_KEYS and key not in DUPLICATED_NODES
        if counts and (key != "path" or name == "text_encoder"):
            yield from _identity(value, f"{name}.{key}" if name else key)


@rank_zero_only
def log_resume_hint(cfg: DictConfig, reason: str) -> None:
    """Say how to resume a run that was told to end, and who or what ended it."""
    option, path = "run_dir", Path(cfg.run_dir)
    if cfg.sweep:
        option, path = "hydra.sweep.dir", path.parent
    how = f"resume=auto {option}='{os.path.relpath(path)}'"
    log.warning("Ended by %s. To resume: the same command with %s.", reason, how)
