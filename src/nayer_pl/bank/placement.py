"""Where a bank's bytes are: on the device, in host memory, or in a file."""

import contextlib
import logging
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nayer_pl.errors import InputError

log = logging.getLogger(__name__)

PLACES = (None, "cpu", "cuda", "disk")

# Of what is free when a run starts: networks need memory too, pinned memory is handed out in powers
# of two, and the files that checkpoints name hold every image of the bank once more.
MEMORY_SHARE, DISK_SHARE = 0.5, 0.45


@dataclass(frozen=True)
class BankOptions:
    """How the bank is kept. With several ranks each keeps its share of it.

    Args:
        capacity: images it holds, over all ranks; None for all that the plan makes.
        device: "cpu", "cuda", "disk" (a file in the trainer's `default_root_dir`), or None for the
            trainer's device; where it does not fit, the next of these places is taken.
        initial: a saved bank to start from, or the folder `bank` of another run; None for none.
    """

    capacity: int | None = None
    device: str | None = None
    initial: str | Path | None = None

    def __post_init__(self) -> None:
        if self.capacity is not None and self.capacity < 1:
            raise InputError(f"bank.capacity must be at least 1 image, not {self.capacity}.")
        if self.device not in PLACES:
            raise InputError(f"bank.device is null, cpu, cuda or disk, not '{self.device}'.")


def allocate(
    shape: Sequence[int],
    device: torch.device,
    wanted: str | None = None,
    directory: str | Path = ".",
    processes: int = 1,
) -> Tensor:
    """Memory for a bank of `shape[0]` images, not initialized: uint8 [*shape].

    The first of these places that it fits into: half of the device's free memory, half of the
    machine's (pinned if the device is a GPU), a file in `directory`. If that is not the place that
    was asked for, a line in the log says so. The file has no name once it is open: it is gone when
    the process is, however that ends. (Windows keeps the names of open files; there it stays.)

    Args:
        shape: the number of images first.
        device: the trainer's.
        wanted: "cpu", "cuda" or "disk": the first place to try; None for `device`.
        directory: of the file.
        processes: on this machine, each with a bank of this size.

    Raises:
        InputError: no such place, or the disk has not enough room either.
    """
    if wanted not in PLACES or (wanted == "cuda" and device.type != "cuda"):
        raise InputError(
            f"bank.device={wanted} cannot be had in a run on '{device}': it is null (for where the "
            "student is), cpu, cuda (in a run on a GPU) or disk."
        )
    full: list[str] = []
    if wanted not in ("cpu", "disk") and device.type != "cpu":
        free = free_device_memory(device)
        if math.prod(shape) <= MEMORY_SHARE * free:
            return torch.empty(shape, dtype=torch.uint8, device=device)
        full.append(f"{device} ({free / 1e9:,.2f} GB are free)")
    if wanted != "disk":
        free = free_host_memory()
        if processes * math.prod(shape) <= MEMORY_SHARE * free:
            _say(shape, "host memory", full)
            return torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
        full.append(f"host memory ({free / 1e9:,.2f} GB are free)")
    free = _free_on_disk(Path(directory))
    room = int(DISK_SHARE * free) // math.prod(shape[1:])
    if processes * shape[0] > room:
        full.append(f"the disk of '{directory}' ({free / 1e9:,.2f} GB are free)")
        raise InputError(
            f"A memory bank of {_size(shape)} is too large for {', '.join(full)}; set "
            f"bank.capacity to at most {room:,} images, or choose another disk with run_dir=PATH."
        )
    _say(shape, f"a file in '{directory}'", full)
    try:
        return _file(shape, Path(directory))
    except OSError as error:
        raise InputError(
            f"A memory bank of {_size(shape)} cannot be kept in '{directory}' ({error.strerror}); "
            "make room, or choose another disk with run_dir=PATH."
        ) from error


def free_device_memory(device: torch.device) -> int:
    """Bytes; of an accelerator other than a CUDA one, those of the host, which it shares."""
    if device.type != "cuda":
        return free_host_memory()
    # What tensors gave back is kept for the next ones, and free for them.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def free_host_memory() -> int:
    """Bytes that this process could have without any other being swapped out, or stopped."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # Linux; the kernel counts the caches that it would give up
        lines = (line.partition(":") for line in meminfo.read_text().splitlines())
        available = {name: rest for name, _, rest in lines}["MemAvailable"]
        return min(int(available.removesuffix("kB")) * 1024, _left_in_container())
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return sys.maxsize  # unknown


def _left_in_container(
    own: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")
) -> int:
    """Bytes that a container or a batch system still allows (Linux control groups, version 2)."""
    names = [line[4:] for line in own.read_text().splitlines() if line.startswith("0::/")]
    folders = [groups / name for name in names]
    found = [_left(part) for folder in folders for part in (folder, *folder.parents)]
    return min(found, default=sys.maxsize)


def _left(group: Path) -> int:
    limit, current, stat = (group / f"memory.{name}" for name in ("max", "current", "stat"))
    if not limit.exists() or limit.read_text().strip() == "max":
        return sys.maxsize
    used = int(current.read_text())
    caches = [line for line in stat.read_text().splitlines() if line.startswith("inactive_file ")]
    used -= sum(int(line.split()[1]) for line in caches)  # files' pages, given up when wanted
    return max(0, int(limit.read_text()) - used)


def _free_on_disk(directory: Path) -> int:
    directory.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(directory).free


def _file(shape: Sequence[int], directory: Path) -> Tensor:
    """A file that is mapped into memory."""
    handle, path = tempfile.mkstemp(prefix="bank-", dir=directory)
    try:
        if hasattr(os, "posix_fallocate"):
            # Or the first image for which a full disk has no room would end the process (SIGBUS).
            os.posix_fallocate(handle, 0, math.prod(shape))
        flat = torch.from_file(path, shared=True, size=math.prod(shape), dtype=torch.uint8)
    finally:
        os.close(handle)
        with contextlib.suppress(PermissionError):  # on Windows
            os.unlink(path)
    return flat.view(*shape)


def _say(shape: Sequence[int], place: str, full: Sequence[str]) -> None:
    if full:
        log.warning(
            "A memory bank of %s is kept in %s: it would take too much of %s.",
            _size(shape), place, " and of ".join(full),
        )  # fmt: skip


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]:,} images ({math.prod(shape) / 1e9:,.2f} GB)"
