import errno
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from nayer_pl import BankOptions, InputError
from nayer_pl.bank import placement
from nayer_pl.bank.placement import allocate

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)
SHAPE = (10, 3, 4, 5)
SIZE = 600


@pytest.fixture
def room(monkeypatch):
    """Say how many bytes are free, by place; without limits at first."""

    def set_free(device=10**12, host=10**12, disk=10**12):
        monkeypatch.setattr(placement, "free_device_memory", lambda _: device)
        monkeypatch.setattr(placement, "free_host_memory", lambda: host)
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": disk})())

    set_free()
    return set_free


@pytest.fixture
def asked(monkeypatch):
    """What torch.empty was asked for; it gives host memory, as there may be no GPU here."""
    calls, empty = [], torch.empty

    def record(*size, device=None, pin_memory=False, **options):
        calls.append((device, pin_memory))
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", record)
    return calls


def is_file(tensor):
    """Whether the bytes are those of a file that has lost its name (Linux)."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(address, 16) for address in line.split()[0].split("-"))
        if start <= tensor.data_ptr() < end:
            return "bank-" in line and line.endswith("(deleted)")
    raise AssertionError("nowhere in memory")


linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


@linux
@pytest.mark.parametrize(
    ("place", "host", "file"),
    [(None, 2 * SIZE, False), (None, 2 * SIZE - 1, True), ("cpu", 2 * SIZE, False),
     ("cpu", 2 * SIZE - 1, True), ("disk", 10**12, True)],
)  # fmt: skip
def test_allocate__file_beyond_half_of_the_memory(room, tmp_path, place, host, file):
    room(host=host)
    tensor = allocate(SHAPE, CPU, place, tmp_path)
    assert tensor.shape == SHAPE
    assert tensor.dtype == torch.uint8
    assert tensor.is_contiguous()
    assert is_file(tensor) == file


def test_allocate__file_without_a_name(room, tmp_path):
    first, second = (allocate((50, 3, 64, 64), CPU, "disk", tmp_path / "run") for _ in range(2))
    assert os.listdir(tmp_path / "run") == []
    values = torch.randint(256, first.shape, dtype=torch.uint8)
    first.copy_(values)
    second.fill_(7)
    assert torch.equal(first, values)
    assert (second == 7).all()


def test_allocate__file_that_cannot_be_mapped(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("unable to mmap")

    monkeypatch.setattr(torch, "from_file", refuse)
    with pytest.raises(RuntimeError, match="mmap"):
        allocate(SHAPE, CPU, "disk", tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="not on this system")
def test_allocate__disk_filled_meanwhile(tmp_path, monkeypatch):
    def full(handle, start, size):
        assert (start, size) == (0, SIZE)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"cannot be kept in .* \(No space left on device\)"):
        allocate(SHAPE, CPU, "disk", tmp_path)
    assert os.listdir(tmp_path) == []


def test_allocate__largest_capacity_on_disk(room, tmp_path):
    room(host=SIZE, disk=650)
    with pytest.raises(InputError) as error:
        allocate(SHAPE, CPU, None, tmp_path)
    message = str(error.value)
    assert "\n" not in message
    assert f"too large for host memory (0.00 GB are free), the disk of '{tmp_path}'" in message
    fits = int(re.search(r"set capacity to at most (\d+) images", message).group(1))
    assert os.listdir(tmp_path) == []
    assert allocate((fits, *SHAPE[1:]), CPU, "disk", tmp_path).shape[0] == fits
    with pytest.raises(InputError, match="set capacity"):
        allocate((fits + 1, *SHAPE[1:]), CPU, "disk", tmp_path)


@linux
def test_allocate__several_processes(room, tmp_path):
    room(host=6 * SIZE, disk=8 * SIZE)
    assert not is_file(allocate(SHAPE, CPU, None, tmp_path, processes=3))
    room(host=6 * SIZE - 1, disk=8 * SIZE)
    assert is_file(allocate(SHAPE, CPU, None, tmp_path, processes=3))
    with pytest.raises(InputError, match="at most 36 images"):
        allocate(SHAPE, CPU, None, tmp_path, processes=4)


@pytest.mark.parametrize(
    ("place", "device", "host", "expected"),
    [
        (None, 2 * SIZE, 0, (GPU, False)),
        ("cuda", 2 * SIZE, 0, (GPU, False)),
        (None, 2 * SIZE - 1, 2 * SIZE, (None, True)),
        ("cuda", 2 * SIZE - 1, 2 * SIZE, (None, True)),
        ("cpu", 10**12, 2 * SIZE, (None, True)),
        (None, 2 * SIZE - 1, 2 * SIZE - 1, None),
        ("cpu", 10**12, 2 * SIZE - 1, None),
        ("disk", 10**12, 10**12, None),
    ],
)
def test_allocate__order_of_places_with_a_gpu(room, asked, tmp_path, place, device, host, expected):
    room(device=device, host=host)
    allocate(SHAPE, GPU, place, tmp_path)
    assert asked == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("place", "free", "said"),
    [
        (None, {}, None),
        ("cpu", {"device": 0}, None),
        ("disk", {"device": 0, "host": 0}, None),
        (None, {"device": 2 * 10**9}, ["3.00 GB", "host memory", "cuda:1 (2.00 GB are free)"]),
        ("cuda", {"device": 10**9, "host": 5 * 10**9},
         ["1,000 images", "a file in", "cuda:1 (1.00 GB", "host memory (5.00 GB"]),
        ("cpu", {"host": 5 * 10**9}, ["a file in", "host memory (5.00 GB"]),
    ],
)  # fmt: skip
def test_allocate__warning_about_another_place(
    room, monkeypatch, caplog, tmp_path, place, free, said
):
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    room(**free)
    allocate((1000, 3, 1000, 1000), GPU, place, tmp_path)
    assert len(caplog.records) == (0 if said is None else 1)
    for part in said or []:
        assert part in caplog.text


@pytest.mark.parametrize("place", ["cuda", "cuda:0", "ram", ""])
def test_allocate__missing_place(tmp_path, place):
    with pytest.raises(
        InputError, match="device=cuda needs" if place == "cuda" else "^place must be"
    ):
        allocate(SHAPE, CPU, place, tmp_path)


@linux
def test_free_host_memory__bounds():
    page = os.sysconf("SC_PAGE_SIZE")
    free = placement.free_host_memory()
    limit = placement._container_free()
    assert free <= min(limit, page * os.sysconf("SC_PHYS_PAGES"))
    assert free >= min(limit, page * os.sysconf("SC_AVPHYS_PAGES") // 2)
    assert placement.free_device_memory(torch.device("mps")) > 0


@pytest.mark.parametrize(
    ("limits", "own", "expected"),
    [
        ({}, "0::/", sys.maxsize),
        ({"": "4096"}, "0::/", 4096 - 700),
        ({"job": "max", "job/step": "max"}, "0::/job/step", sys.maxsize),
        ({"job": "8192", "job/step": "max"}, "0::/job/step", 8192 - 700),
        ({"job": "8192", "job/step": "4096", "other": "1"}, "0::/job/step", 4096 - 700),
        ({"job": "8192"}, "4:memory:/job\n0::/", sys.maxsize),
    ],
)
def test_container_free__tightest_limit(tmp_path, limits, own, expected):
    for folder, limit in limits.items():
        (tmp_path / "groups" / folder).mkdir(parents=True, exist_ok=True)
        group = tmp_path / "groups" / folder
        (group / "memory.max").write_text(limit + "\n")
        (group / "memory.current").write_text("1000\n")
        (group / "memory.stat").write_text("anon 700\ninactive_file 300\n")
    (tmp_path / "own").write_text(own + "\n")
    assert placement._container_free(tmp_path / "own", tmp_path / "groups") == expected


@pytest.mark.parametrize(("device", "host"), [("disk", 10**12), (None, 100)])
def test_run__bank_in_a_file_or_in_memory(
    room, tiny_method, tiny_data, fit, tmp_path, device, host
):
    results = {}
    for where in ("memory", "file"):
        torch.manual_seed(1)
        room(host=10**12 if where == "memory" else host)
        bank = BankOptions(device=device if where == "file" else None)
        method, data = tiny_method(seed=3), tiny_data(bank=bank, evaluation=False)
        fit(method, data, default_root_dir=tmp_path / where)
        results[where] = data.bank.images, data.bank.labels, *method.student.state_dict().values()
        if sys.platform == "linux":
            assert is_file(data.bank.images) == (where == "file")
    assert len(results["file"][0]) == 4 * 11  # of each round of 12, one is held back
    assert method.results()["bank_bytes"] == 4 * 12 * (8 * 8 + 8)  # pixels and an int64 label
    for one, other in zip(*results.values(), strict=True):
        assert torch.equal(one, other)
    assert os.listdir(tmp_path / "file") == []
