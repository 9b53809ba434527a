"""The directory of a run: that it can be used, before any work."""

import shutil
from contextlib import suppress
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from nayer_pl.errors import InputError
from nayer_pl.runtime.files import cannot_write, check_folder, remove_unfinished

SPACE_NEEDED = 64 * 1024**2  # bytes: weights, pictures and logs of a small run


@rank_zero_only
def prepare_run_dir(path: str, again: bool = False) -> None:
    """Make the run's directory and see that it can be written and is not another run's.

    Args:
        path: the directory.
        again: it may be that of a run which did not finish.

    What a killed process left half-written in it is removed.

    Raises:
        InputError: read-only, full, or already the directory of a finished run.
    """
    run_dir = Path(path).absolute()
    try:
        check_folder(run_dir)
        free = shutil.disk_usage(run_dir).free
    except OSError as error:
        raise InputError(
            f"The run's directory {cannot_write(error)}; choose another with run_dir=PATH."
        ) from error
    if free < SPACE_NEEDED:
        raise InputError(
            f"The disk of '{run_dir}' has {free / 1e6:.0f} MB left and a run needs at least "
            f"{SPACE_NEEDED / 1e6:.0f} MB; make room, or choose another with run_dir=PATH."
        )
    traces = ("config.yaml", "checkpoints", "bank")
    if not again and any((run_dir / name).exists() for name in traces):
        raise InputError(
            f"'{run_dir}' already holds a run; go on with it with resume=auto, choose another "
            "directory with run_dir=PATH, or delete that one."
        )
    for folder in (run_dir, run_dir / "checkpoints", run_dir / "bank"):
        remove_unfinished(folder)


@rank_zero_only
def remove_if_empty(path: str) -> None:
    """Leave no directory behind of a run that was refused before it began."""
    with suppress(OSError):
        Path(path).rmdir()
