import os
import re
import sys
from pathlib import Path
from unittest.mock import Mock

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


def test_allocate__file_without_a_name(room, tmp_path):
    first, second = (allocate((50, 3, 64, 64), CPU, "disk", tmp_path / "run") for _ in range(2))
    assert os.listdir(tmp_path / "run") == []
    values = torch.randint(256, first.shape, dtype=torch.uint8)
    first.copy_(values)
    second.fill_(7)
    assert torch.equal(first, values)
    assert (second == 7).all()


def is_file(tensor):
    """Whether the bytes are those of a file that has lost its name (Linux)."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(address, 16) for address in line.split()[0].split("-"))
        if start <= tensor.data_ptr() < end:
            return "bank-" in line and line.endswith("(deleted)")
    raise AssertionError("nowhere in memory")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="not on this system")
@pytest.mark.parametrize(
    ("module", "step", "failure", "raised", "said"),
    [
        (torch, "from_file", RuntimeError("unable to mmap"), RuntimeError, "mmap"),
        (os, "posix_fallocate", OSError(28, "No space"), InputError, r"in .* \(No space\)"),
    ],
)
def test_allocate__no_file(tmp_path, monkeypatch, module, step, failure, raised, said):
    """It cannot be mapped, or the disk was filled meanwhile."""
    monkeypatch.setattr(module, step, Mock(side_effect=failure))
    with pytest.raises(raised, match=said):
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
    for shape, processes in (((fits + 1, *SHAPE[1:]), 1), ((fits, *SHAPE[1:]), 2)):
        with pytest.raises(InputError, match="set capacity"):
            allocate(shape, CPU, "disk", tmp_path, processes)


LARGE = (1000, 3, 100, 100)
TWICE = 2 * 30_000_000
HOST, PINNED, FILE = (None, False), (None, True), None


@pytest.mark.parametrize(
    ("device", "place", "processes", "free", "expected", "said"),
    [
        (CPU, None, 1, (0, TWICE), HOST, ""),
        (CPU, "cpu", 1, (0, TWICE), HOST, ""),
        (CPU, "cpu", 1, (0, TWICE - 1), FILE, r"in a file in '.*': [^:]* host memory \(0.06 GB"),
        (CPU, None, 3, (0, 3 * TWICE), HOST, ""),
        (CPU, None, 3, (0, 3 * TWICE - 1), FILE, "in a file in"),
        (GPU, None, 1, (TWICE, 0), (GPU, False), ""),
        (GPU, "cuda", 1, (TWICE, 0), (GPU, False), ""),
        (GPU, None, 1, (TWICE - 1, TWICE), PINNED, r"in host memory: .* cuda:1 \(0.06 GB"),
        (GPU, "cuda", 1, (TWICE - 1, TWICE), PINNED, "0.03 GB.* in host memory: .* cuda:1"),
        (GPU, "cpu", 1, (0, TWICE), PINNED, ""),
        (GPU, None, 1, (TWICE - 1, TWICE - 1), FILE, "1,000 .* a file in .* cuda:1 .* and of host"),
        (GPU, "disk", 1, (0, 0), FILE, ""),
    ],
)
def test_allocate__first_place_with_room(
    room, monkeypatch, caplog, tmp_path, device, place, processes, free, expected, said
):
    """And a warning about another place than the one that was asked for."""

    def empty(*_, device=None, pin_memory=False, **__):  # there may be no GPU here
        return device, pin_memory

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(placement, "_mapped_file", lambda *_: FILE)
    room(*free)
    assert allocate(LARGE, device, place, tmp_path, processes) == expected
    assert len(caplog.records) == bool(said)
    assert re.search(said, caplog.text)


def test_allocate__gpu_of_a_run_without_one(tmp_path):
    with pytest.raises(InputError, match="device=cuda needs"):
        allocate(SHAPE, CPU, "cuda", tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
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


def test_run__bank_in_a_file_or_in_memory(tiny_method, tiny_data, fit, tmp_path):
    results = {}
    for device in (None, "disk"):
        torch.manual_seed(1)
        bank = BankOptions(device=device)
        method, data = tiny_method(seed=3), tiny_data(bank=bank, evaluation=False)
        fit(method, data, default_root_dir=tmp_path / str(device))
        results[device] = data.bank.images, data.bank.labels, *method.student.state_dict().values()
        if sys.platform == "linux":
            assert is_file(data.bank.images) == (device == "disk")
    assert len(results["disk"][0]) == 4 * 11  # of each round of 12, one is held back
    assert method.results()["bank_bytes"] == 4 * 12 * (8 * 8 + 8)  # pixels and an int64 label
    for one, other in zip(*results.values(), strict=True):
        assert torch.equal(one, other)
    assert os.listdir(tmp_path / "disk") == []
