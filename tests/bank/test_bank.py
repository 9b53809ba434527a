"""The bank against a list of everything that was ever added to it."""

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from safetensors.torch import save_file

from nayer_pl import InputError, MemoryBank, RandomCropFlip
from nayer_pl.bank.bank import read_bank
from nayer_pl.bank.files import BankFiles

SHAPE = (2, 1, 3)
PIXELS = st.integers(0, 255)


def batch(first, count, pixel=0):
    """Images of which each pixel depends on the image's number, and labels that do not."""
    values = torch.arange(first * 6, (first + count) * 6) * 7 + pixel
    return (values % 256).to(torch.uint8).view(count, *SHAPE), torch.arange(count) % 3


def pairs(images, labels):
    """[(pixels, label)] as plain values."""
    return list(zip(images.flatten(1).tolist(), labels.tolist(), strict=True))


class BankAgainstList(RuleBasedStateMachine):
    """After any operations the bank holds the end of the list."""

    @initialize(capacity=st.integers(1, 15))
    def start(self, capacity):
        # No image is white, so room that was not written to would show.
        memory = torch.full((capacity, *SHAPE), 255, dtype=torch.uint8)
        self.bank, self.everything = MemoryBank(capacity, SHAPE, memory=memory), []

    @property
    def held(self):
        return self.everything[-self.bank.capacity :]

    @rule(count=st.integers(0, 30), pixel=PIXELS, floats=st.booleans())
    def add(self, count, pixel, floats):
        images, labels = batch(len(self.everything), count, pixel)
        self.everything += pairs(images, labels)
        given = images / 255 if floats else images
        before = given.clone()
        self.bank.add(given, labels)
        assert torch.equal(given, before)
        given.zero_()  # the bank has copies
        if len(self.everything) <= self.bank.capacity:
            assert pairs(self.bank.images, self.bank.labels) == self.everything

    @rule(count=st.integers(1, 3))
    def add_wrong_shapes(self, count):
        images, labels = batch(0, count)
        wrong = [(images[:, :1], labels), (images[..., :2], labels), (images[0], labels),
                 (images, labels[1:]), (images.long(), labels)]  # fmt: skip
        for images, labels in wrong:
            with pytest.raises(InputError):
                self.bank.add(images, labels)

    @precondition(lambda self: self.everything)
    @rule(count=st.integers(0, 30), seed=st.integers(0, 5))
    def sample(self, count, seed):
        images, labels = self.bank.sample(count, torch.Generator().manual_seed(seed))
        drawn = pairs(images, labels)
        assert (len(drawn), images.dtype, labels.dtype) == (count, torch.uint8, torch.int64)
        assert all(pair in self.held for pair in drawn)
        again = self.bank.sample(count, torch.Generator().manual_seed(seed))
        assert pairs(*again) == drawn

    @rule(room=st.integers(1, 12), before=st.integers(0, 4))
    def save_and_add_to_another(self, room, before):
        other = MemoryBank(room, SHAPE)
        there = batch(1000, before, 1)
        other.add(*there)
        with tempfile.TemporaryDirectory() as folder:
            self.bank.save(Path(folder) / "bank.safetensors")
            other.add(*read_bank(Path(folder) / "bank.safetensors"))
        order = other.oldest_first()
        expected = [*pairs(*there), *self.held][-room:]
        assert pairs(other.images[order], other.labels[order]) == expected
        assert other.num_added == before + len(self.held)

    @invariant()
    def holds_the_newest(self):
        order = self.bank.oldest_first()
        assert pairs(self.bank.images[order], self.bank.labels[order]) == self.held
        assert sorted(order.tolist()) == list(range(len(self.bank)))
        assert len(self.bank) == len(self.held)
        assert self.bank.num_added == len(self.everything)
        assert self.bank.nbytes == self.bank.capacity * (6 + 8)  # six pixels and a label
        assert self.bank.image_shape == SHAPE


BankAgainstList.TestCase.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
TestBankAgainstList = BankAgainstList.TestCase


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_add__floats_to_bytes(dtype):
    values = [*torch.arange(256, dtype=dtype) / 255,
              *(v / 255 for v in (0.4, 0.6, 99.4, 99.6, 254.6)), -0.2, 1.3]  # fmt: skip
    bank = MemoryBank(len(values), (1, 1, 1))
    images = torch.tensor(values, dtype=dtype).view(-1, 1, 1, 1)
    bank.add(images, torch.zeros(len(values), dtype=torch.long))
    expected = np.clip(np.round(np.array([float(v) for v in values]) * 255), 0, 255)
    assert bank.images.flatten().tolist() == expected.tolist()


@pytest.mark.parametrize("augmentation", [None, RandomCropFlip()])
def test_sample__channels_last(augmentation):
    bank = MemoryBank(8, (3, 4, 5))
    bank.add(torch.rand(8, 3, 4, 5), torch.arange(8))
    images, _ = bank.sample(6, augmentation=augmentation)
    assert images.stride() == (60, 1, 15, 3)


@pytest.mark.parametrize(("capacity", "count"), [(10, 10), (10, 6), (6, 16)])
def test_sample__uniform(capacity, count):
    bank, draws = MemoryBank(capacity, SHAPE), 20_000
    bank.add(torch.rand(count, *SHAPE), torch.arange(count))
    counts = Counter(bank.sample(draws, torch.Generator().manual_seed(0))[1].tolist())
    assert set(counts) == set(bank.labels.tolist())
    expected = draws / len(bank)
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 40  # p < 1e-5


def test_bank__no_capacity():
    with pytest.raises(InputError, match="capacity must be at least 1"):
        MemoryBank(0, SHAPE)


def test_read_bank__folder_of_a_run(tmp_path):
    """Files of several ranks and checkpoints, but not those of the holdout."""
    banks = [MemoryBank(4, SHAPE), MemoryBank(20, SHAPE)]
    files = [BankFiles(tmp_path, f"bank-{rank}") for rank in range(2)]
    added = {0: [], 1: []}
    for turn in range(3):
        for rank, bank in enumerate(banks):
            images, labels = batch(20 * rank + 3 * turn, 3)
            bank.add(images, labels)
            files[rank].save(bank)
            added[rank] += pairs(images, labels)
    BankFiles(tmp_path, "holdout-0").save(banks[0])
    assert pairs(*read_bank(tmp_path)) == added[0] + added[1]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_bytes(b"not a bank"), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "damaged"),
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.unlink() or path.mkdir(), "files of a bank"),
        (lambda path: save_file({"weight": torch.zeros(2)}, path), "images"),
        (lambda path: save_file({n: torch.zeros(2) for n in ("images", "labels")}, path), "uint8"),
    ],
)
def test_read_bank__damaged_file(tmp_path, damage, reason):
    path, bank = tmp_path / "bank.safetensors", MemoryBank(5, SHAPE)
    bank.add(*batch(0, 3))
    bank.save(path)
    damage(path)
    with pytest.raises(InputError, match=rf"bank\.safetensors' is not a saved memory.*{reason}"):
        read_bank(path)
