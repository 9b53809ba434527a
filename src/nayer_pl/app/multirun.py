"""Keeps the jobs of a sweep apart that run in one process, one after the other.

`train.py -m` runs its jobs like that, and so do the workers of joblib. Lightning expects one run
per process: it starts the processes of the other devices by repeating `sys.argv`, which would be
the whole sweep; it says where they meet in environment variables, which the next job would obey;
and it kills this process if one of them fails, even when the job is over.
"""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from nayer_pl.app.run_dir import require
from nayer_pl.app.signals import Terminated
from nayer_pl.errors import InputError

CHILD_GRACE_SECONDS = 12.0  # for the first process to say why it stops

# What Lightning sets when it starts processes.
VARIABLES = (
    "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS",
    "PL_GLOBAL_SEED", "PL_SEED_WORKERS",
)  # fmt: skip


@contextmanager
def isolated_job(script: str, run_dir: str) -> Iterator[None]:
    """Let processes that the job starts repeat this job only, and leave nothing of it behind.

    They are told `run_dir`, because its default holds the time, which would be another one there.
    """
    require(bool(run_dir), "run_dir", "a directory", run_dir)
    main = sys.modules["__main__"]
    argv, spec, threads = sys.argv, main.__spec__, torch.get_num_threads()
    variables = {name: os.environ.get(name) for name in VARIABLES}
    had_group = _has_group()
    # Without a spec (a worker of joblib or submitit has one), Lightning repeats the script.
    sys.argv, main.__spec__ = command(script, run_dir), None
    try:
        yield
    except BaseException as error:
        if _is_child() and isinstance(error, Exception | Terminated):
            # Most likely the first process stops for the same reason, says so, and ends this one.
            time.sleep(CHILD_GRACE_SECONDS)
        _end_children(timeout=0)  # they may wait for this process
        raise
    finally:
        if _has_group() and not had_group:
            dist.destroy_process_group()
        sys.argv, main.__spec__ = argv, spec
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        torch.set_num_threads(threads)
    _end_children(timeout=60)


def check_start() -> None:
    """Refuse command lines that Hydra accepts but that cannot be meant.

    These are a sweep without `-m`, of which Hydra would run a single job with the defaults; and
    torchrun without `run_dir`, whose default holds the second of each process's start.
    """
    hydra = HydraConfig.get()
    named = any(word.startswith(("run_dir=", "ckpt_path=")) for word in hydra.overrides.task)
    if "TORCHELASTIC_RUN_ID" in os.environ and hydra.mode == RunMode.RUN and not named:
        raise InputError(
            "With torchrun every process must know the run's directory: give run_dir=PATH, a "
            "folder that all of them see."
        )
    typed = "hydra.mode=RUN" in sys.argv  # as by `command`; Hydra's own list always has it
    if hydra.mode == RunMode.RUN and hydra.sweeper.params and not typed:
        swept = " and ".join(hydra.sweeper.params)
        raise InputError(
            f"What was chosen is a sweep over {swept}, which needs -m: python train.py -m ...; "
            "hydra.mode=RUN runs a single job of it."
        )


def command(script: str, run_dir: str) -> list[str]:
    """The `sys.argv` of the current Hydra job alone: no sweeper, no launcher, no `-m`."""
    hydra = HydraConfig.get()
    sources = {source.provider: source.path for source in hydra.runtime.config_sources}
    flags = ["--config-path", sources["main"], "--config-name", str(hydra.job.config_name)]
    if "command-line" in sources:
        flags += ["--config-dir", sources["command-line"]]
    of_hydra = [
        override
        for override in hydra.overrides.hydra
        if not re.match(r"[+~]*hydra[./](launcher|sweep|mode)", override)
    ]
    path = os.path.abspath(run_dir).replace("'", r"\'")
    this_job = [*hydra.overrides.task, f"run_dir='{path}'", *of_hydra, "hydra.mode=RUN"]
    return [os.path.abspath(script), *flags, *this_job]


def objective(summary: Mapping[str, Any], key: str) -> float | None:
    """The value for a sweeper; None in processes of other devices, or if it was not measured."""
    if _is_child():
        return None
    if key not in summary:
        raise InputError(
            f"The run is complete, but its summary has no '{key}' for a sweeper; choose objective= "
            f"from {', '.join(sorted(summary))}."
        )
    return summary[key]


def _is_child() -> bool:
    return rank_zero_only.rank != 0  # type: ignore[attr-defined]


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _end_children(timeout: float) -> None:
    """Wait up to `timeout` seconds for the processes of the other devices; then end them."""
    for observer in threading.enumerate():
        if isinstance(observer, _ChildProcessObserver):
            children = list(observer._child_processes)
            observer._child_processes.clear()  # the job is over: nothing is killed for it now
            for child in children:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(timeout)
                child.kill()
                child.wait()
