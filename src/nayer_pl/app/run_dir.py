"""The directory of a run, which must be usable before any work begins."""

import shutil
from contextlib import suppress
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from nayer_pl.errors import InputError
from nayer_pl.runtime.files import cannot_write, check_folder, remove_unfinished

SPACE_NEEDED = 64 * 1024**2  # bytes: weights, pictures and logs of a small run
FOLDERS = ("checkpoints", "bank")


@rank_zero_only
def prepare_run_dir(path: str, resume: bool = False) -> None:
    """Make the run's directory, check that it is usable, and remove half-written files from it.

    Args:
        path: The directory.
        resume: Whether it may already be the directory of an unfinished run.

    Raises:
        InputError: It is read-only or full, or it holds another run.
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
    if not resume and any((run_dir / name).exists() for name in ("config.yaml", *FOLDERS)):
        raise InputError(
            f"'{run_dir}' already holds a run; resume it with resume=auto, choose another "
            "directory with run_dir=PATH, or delete that one."
        )
    for folder in (run_dir, *(run_dir / name for name in FOLDERS)):
        remove_unfinished(folder)


@rank_zero_only
def remove_if_empty(path: str) -> None:
    """Remove the directory of a run that was refused before it began."""
    with suppress(OSError):
        Path(path).rmdir()
