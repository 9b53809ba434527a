"""Files that are whole or absent, also after a full disk or a power failure."""

import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Write or replace a file; several processes may do so at once.

    Raises:
        OSError: It cannot be written, and is unchanged; `filename` names it.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        sync_folder(path.parent)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        _remove(unfinished)


def write_or_warn(path: Path, content: bytes) -> None:
    """As `write_durably`, for a file that a run can do without."""
    try:
        write_durably(path, content)
    except OSError as error:
        log.warning("%s; the run continues without it.", cannot_write(error))


def append(path: Path, content: bytes) -> None:
    """Append to a file.

    Raises:
        OSError: It cannot be written, and is as long as before; `filename` names it.
    """
    before = path.stat().st_size
    try:
        with open(path, "ab") as file:
            file.write(content)
    except OSError as error:
        os.truncate(path, before)
        error.filename = str(path)
        raise


def check_folder(folder: Path) -> None:
    """Make a folder if it is not there, and check that files can be written to it.

    Raises:
        OSError: They cannot; `filename` names the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
    except OSError as error:
        error.filename = str(folder)
        raise


def cannot_write(error: OSError) -> str:
    """Which file cannot be written, and why, in words."""
    if error.filename is None:
        return str(error)
    return f"'{error.filename}' cannot be written ({error.strerror})"


def is_path(name: str) -> bool:
    """Whether this is a path, and cannot be a name on the Hugging Face Hub."""
    place = Path(name).expanduser()
    return place.is_absolute() or name.startswith(".") or len(place.parts) > 2


def remove_unfinished(folder: Path) -> None:
    """Remove the half-written files of killed processes from a folder."""
    for path in folder.glob("*.part"):
        _remove(path)


def sync_folder(folder: Path) -> None:
    """Make the names of a folder's files durable."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    with suppress(OSError):  # where nothing can be written, perhaps nothing can be removed
        path.unlink(missing_ok=True)
