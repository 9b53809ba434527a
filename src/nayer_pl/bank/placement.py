"""Memory of a bank: on the device, on the host, or in a file."""

import contextlib
import logging
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from nayer_pl.errors import InputError
from nayer_pl.runtime.options import CheckedFields

log = logging.getLogger(__name__)

Place = Literal["cpu", "cuda", "disk"]

# Shares of what is free when a run starts: networks need memory too, pinned memory is allocated in
# powers of two, and the files of checkpoints hold every image of the bank once more.
MEMORY_SHARE, DISK_SHARE = 0.5, 0.45


@dataclass(frozen=True)
class BankOptions(CheckedFields):
    """Size, place and initial content of the bank; each rank keeps its part of it.

    Args:
        capacity: number of images, over all ranks; None for all that the plan makes.
        device: "cpu", "cuda", "disk" (a file in the trainer's `default_root_dir`), or None for the
            trainer's device. A bank that does not fit there goes to the next of cuda, cpu, disk.
        initial: a saved bank to start from, or the folder `bank` of another run; None for none.

    Raises:
        InputError: an option is out of its range.

    Example:
        >>> BankOptions(capacity=10_000, device="cpu").capacity
        10000
    """

    capacity: PositiveInt | None = None
    device: Place | None = None
    initial: str | Path | None = None


def allocate(
    shape: Sequence[int],
    device: torch.device,
    place: Place | None = None,
    directory: str | Path = ".",
    processes: int = 1,
) -> Tensor:
    """Memory for a bank of `shape[0]` images, not initialized: uint8 [*shape].

    It goes to the first of these places that it fits into, beginning with `place`: half of the
    device's free memory (None), half of the host's (pinned if the device is a GPU), a file in
    `directory`. A warning is logged if that is not the requested place. The file loses its name as
    soon as it is open, so it is deleted when the process ends, in whatever way. (On Windows it
    stays: open files keep their names.) On this machine, `processes` each take as much.

    Raises:
        InputError: there is no such place, or not enough room on the disk either.
    """
    if place == "cuda" and device.type != "cuda":
        raise InputError(
            f"A bank with device=cuda needs a run on a GPU, and this one is on '{device}'; choose "
            "null (the device of the run), cpu or disk."
        )
    full: list[str] = []
    if place not in ("cpu", "disk") and device.type != "cpu":
        free = free_device_memory(device)
        if math.prod(shape) <= MEMORY_SHARE * free:
            return torch.empty(shape, dtype=torch.uint8, device=device)
        full.append(f"{device} ({free / 1e9:,.2f} GB are free)")
    if place != "disk":
        free = free_host_memory()
        if processes * math.prod(shape) <= MEMORY_SHARE * free:
            _warn_if_moved(shape, "host memory", full)
            return torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
        full.append(f"host memory ({free / 1e9:,.2f} GB are free)")
    Path(directory).mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    room = int(DISK_SHARE * free) // math.prod(shape[1:])
    if processes * shape[0] > room:
        full.append(f"the disk of '{directory}' ({free / 1e9:,.2f} GB are free)")
        raise InputError(
            f"A memory bank of {_size(shape)} is too large for {', '.join(full)}; set capacity to "
            f"at most {room:,} images, or run in a folder on another disk."
        )
    _warn_if_moved(shape, f"a file in '{directory}'", full)
    try:
        return _mapped_file(shape, Path(directory))
    except OSError as error:
        raise InputError(
            f"A memory bank of {_size(shape)} cannot be kept in '{directory}' ({error.strerror}); "
            "make room, or run in a folder on another disk."
        ) from error


def free_device_memory(device: torch.device) -> int:
    """Free bytes of a GPU; other accelerators share the memory of the host."""
    if device.type != "cuda":
        return free_host_memory()
    # torch's allocator keeps the memory of freed tensors and uses it for new ones.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def free_host_memory() -> int:
    """Bytes that this process can take without swapping, and within its container's limit."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # Linux; the count includes caches that the kernel can drop
        (kilobytes,) = re.findall(r"^MemAvailable: *(\d+) kB", meminfo.read_text(), re.MULTILINE)
        return min(int(kilobytes) * 1024, _container_free())
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return sys.maxsize  # unknown


def _container_free(
    own: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")
) -> int:
    """Bytes left under the limits of Linux control groups, version 2 (containers, batch jobs)."""
    folders = [groups / name for name in re.findall(r"^0::/(.*)", own.read_text(), re.MULTILINE)]
    found = [_group_free(part) for folder in folders for part in (folder, *folder.parents)]
    return min(found, default=sys.maxsize)


def _group_free(group: Path) -> int:
    limit, current, stat = (group / f"memory.{name}" for name in ("max", "current", "stat"))
    if not limit.exists() or limit.read_text().strip() == "max":
        return sys.maxsize
    caches = re.findall(r"^inactive_file (\d+)", stat.read_text(), re.MULTILINE)
    used = int(current.read_text()) - sum(map(int, caches))  # cached files can be dropped
    return max(0, int(limit.read_text()) - used)


def _mapped_file(shape: Sequence[int], directory: Path) -> Tensor:
    """A file mapped into memory, uint8 [*shape]."""
    handle, path = tempfile.mkstemp(prefix="bank-", dir=directory)
    try:
        if hasattr(os, "posix_fallocate"):
            # Without this, writing an image to a full disk would kill the process (SIGBUS).
            os.posix_fallocate(handle, 0, math.prod(shape))
        flat = torch.from_file(path, shared=True, size=math.prod(shape), dtype=torch.uint8)
    finally:
        os.close(handle)
        with contextlib.suppress(PermissionError):  # on Windows
            os.unlink(path)
    return flat.view(*shape)


def _warn_if_moved(shape: Sequence[int], place: str, full: Sequence[str]) -> None:
    if full:
        log.warning(
            "A memory bank of %s is kept in %s: it would take too much of %s.",
            _size(shape), place, " and of ".join(full),
        )  # fmt: skip


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]:,} images ({math.prod(shape) / 1e9:,.2f} GB)"
