"""Which checkpoint a run goes on from, and whether it may."""

import json
import logging
import os
import textwrap
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from nayer_pl.bank.files import read_verified
from nayer_pl.callbacks.checkpoint import LAST, PREVIOUS
from nayer_pl.distillation.rank_state import KEY
from nayer_pl.errors import InputError

log = logging.getLogger(__name__)

# What a run is. Not among it: where it runs, how it logs, and where its files lie.
IDENTITY = (
    "seed", "prompts", "model_name", "model", "data", "class_names", "teacher", "student",
    "text_encoder", "plan", "bank", "trainer", "datamodule",
)  # fmt: skip
ONLY = {  # of these groups, no more than
    "trainer": ("max_epochs", "max_steps", "limit_train_batches", "overfit_batches"),
    "datamodule": ("holdout",),
}
ELSEWHERE = (
    "cache", "cache_dir", "weights", "trained_by", "compile", "check_teacher", "device",
    "trust_code", "workers",
)  # fmt: skip
TWICE = ("teacher", "student", "label_text", "network")  # in `model`: what stands elsewhere too


def find_checkpoint(run_dir: str | Path, resume: str | None, ckpt_path: str | None) -> Path | None:
    """The checkpoint to go on from; None for a new run.

    Args:
        run_dir: of the run.
        resume: "auto" for the newest intact checkpoint of `run_dir`, if there is one.
        ckpt_path: or this one.

    Raises:
        InputError: the checkpoint is damaged, or all of them are.
    """
    if resume not in (None, "auto"):
        raise InputError(f"resume is auto or null, not '{resume}'; a file is ckpt_path=PATH.")
    if ckpt_path is not None:
        return _intact_or_error(Path(ckpt_path))
    if resume is None:
        return None
    return _newest_intact(Path(run_dir) / "checkpoints")


def run_of(ckpt_path: str | Path) -> str:
    """The directory of the run that a checkpoint is of, where its bank is too."""
    return str(Path(ckpt_path).absolute().parent.parent)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint or the bank's files that it names; None if it is intact.

    Nothing in the file is run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()  # compares checksums, which torch.load does not
        if broken is not None:
            return f"its checksum of '{broken}' is wrong"
        content = torch.load(path, map_location="cpu", weights_only=True)
        if KEY not in content:
            return "it was not written by this program"
        for record in _records(content):
            read_verified(path.parent.parent / "bank", record)
    except InputError as error:
        return str(error).rstrip(".")
    except Exception as error:  # a damaged pickle can raise anything
        return str(error).partition("\n")[0].rstrip(".") or type(error).__name__
    return None


def _records(checkpoint: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for state in checkpoint.get("SyntheticDataModule", {}).get("ranks", []):
        for bank in ("bank", "holdout"):
            yield from state.get(bank, {}).get("files", [])


def _newest_intact(folder: Path) -> Path | None:
    problems: dict[Path, str] = {}
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        problem = damage(path)
        if problem is None:
            for name in problems:
                log.warning("Going on from '%s'.", path)
                _put_aside(name)
            return path
        problems[path] = problem
        log.warning("'%s' is damaged: %s.", path, problem)
    if problems:
        raise InputError(
            f"No checkpoint in '{folder}' is intact; start a new run with another run_dir=PATH."
        )
    return None


@rank_zero_only
def _put_aside(path: Path) -> None:
    """Keep a damaged file from being rotated over an intact one."""
    os.replace(path, path.with_name(f"{path.name}.damaged-{time.time_ns()}"))


def _intact_or_error(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"There is no checkpoint '{path}'.")
    problem = damage(path)
    if problem is None:
        return path
    others = (path.with_name(name) for name in (LAST, PREVIOUS) if name != path.name)
    intact = next((o for o in others if o.exists() and damage(o) is None), None)
    offer = f"; ckpt_path='{intact}' is the newest intact one" if intact else ""
    raise InputError(f"'{path}' cannot be continued from: {problem}{offer}.")


def finished(run_dir: str | Path) -> dict[str, Any] | None:
    """The summary of a run that is over.

    Raises:
        InputError: there is one, but damaged.
    """
    file = Path(run_dir) / "summary.json"
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    except ValueError as error:
        raise InputError(
            f"'{file}' is damaged ({error}); delete it: the run then goes on from its last "
            "checkpoint, and writes it again."
        ) from error


def check_same_run(cfg: DictConfig) -> None:
    """Compare `cfg` with the configuration that its `run_dir` was started with.

    Raises:
        InputError: it would be another run; the message names up to three differences.
    """
    file = Path(cfg.run_dir) / "config.yaml"
    if not file.exists():
        return
    try:
        then = dict(_flat(OmegaConf.to_container(OmegaConf.load(file))))
    except Exception as error:  # of YAML, of UTF-8, of OmegaConf
        raise InputError(
            f"'{file}' is damaged ({str(error).partition(chr(10))[0]}); delete it: the checkpoints "
            "know themselves what else they are of."
        ) from error
    now = dict(_flat(OmegaConf.to_container(cfg, resolve=True)))
    changed = [name for name in sorted(then.keys() | now.keys()) if then.get(name) != now.get(name)]
    if changed:
        differences = ", ".join(
            f"{name}={_briefly(now.get(name))} (was {_briefly(then.get(name))})"
            for name in changed[:3]
        )
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise InputError(
            f"'{cfg.run_dir}' was started with other settings: {differences}{more}; type the same "
            "again to go on with it, or start a new run with another run_dir=PATH."
        )


def _briefly(value: Any) -> str:
    """A value, of a long list the beginning only."""
    return textwrap.shorten(str(value), 40, placeholder=" ...")


def _flat(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of what makes a run, each once."""
    if not isinstance(node, dict):
        yield name, node
        return
    for key, value in node.items():
        if name in ONLY:
            counts = key in ONLY[name]
        else:
            counts = key not in (*ELSEWHERE, *TWICE) if name else key in IDENTITY
        if counts and (key != "path" or name == "text_encoder"):
            yield from _flat(value, f"{name}.{key}" if name else key)
