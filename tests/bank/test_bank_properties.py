"""The bank against a list of everything that was ever added to it."""

import tempfile
from pathlib import Path

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from nayer_pl import InputError, MemoryBank
from nayer_pl.bank.bank import read_bank

SHAPE = (2, 1, 3)
PIXELS = st.integers(0, 255)


def batch(first, count, pixel):
    """Images of which each pixel depends on the image's number, and labels that do not."""
    values = torch.arange(first * 6, (first + count) * 6) * 7 + pixel
    return (values % 256).to(torch.uint8).view(count, *SHAPE), torch.arange(count) % 3


def pairs(images, labels):
    """[(pixels, label)] as plain values."""
    return list(zip(images.flatten(1).tolist(), labels.tolist(), strict=True))


class BankAgainstList(RuleBasedStateMachine):
    """Whatever is done to the bank, it holds the end of the list."""

    @initialize(capacity=st.integers(1, 15))
    def start(self, capacity):
        # No image is white, so room that none was written to would show.
        memory = torch.full((capacity, *SHAPE), 255, dtype=torch.uint8)
        self.bank, self.everything = MemoryBank(capacity, SHAPE, memory=memory), []
        self.bytes = self.bank.nbytes

    @property
    def held(self):
        return self.everything[-self.bank.capacity :]

    @rule(count=st.integers(0, 12), pixel=PIXELS, floats=st.booleans())
    def add(self, count, pixel, floats):
        images, labels = batch(len(self.everything), count, pixel)
        self.bank.add(images / 255 if floats else images, labels)
        self.everything += pairs(images, labels)

    @rule(count=st.integers(1, 3))
    def add_what_does_not_fit(self, count):
        images, labels = batch(0, count, 0)
        wrong = [(images[:, :1], labels), (images, labels[1:]), (images.long(), labels)]
        for images, labels in wrong:
            try:
                self.bank.add(images, labels)
            except InputError:
                continue
            raise AssertionError("taken")

    @precondition(lambda self: self.everything)
    @rule(count=st.integers(0, 30), seed=st.integers(0, 5))
    def sample(self, count, seed):
        rng = torch.Generator().manual_seed(seed)
        drawn = pairs(*self.bank.sample(count, rng))
        assert len(drawn) == count
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
        assert other.added == before + len(self.held)

    @invariant()
    def it_holds_the_newest(self):
        order = self.bank.oldest_first()
        assert pairs(self.bank.images[order], self.bank.labels[order]) == self.held
        assert sorted(order.tolist()) == list(range(len(self.bank)))
        assert len(self.bank) == len(self.held)
        assert self.bank.added == len(self.everything)
        assert self.bank.nbytes == self.bytes


BankAgainstList.TestCase.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
TestBankAgainstList = BankAgainstList.TestCase
