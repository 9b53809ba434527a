import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nayer_pl import MemoryBank
from nayer_pl.distillation.reporting import label_agreement, within_class_distance

SHAPE = (2, 3, 3)


def bank_of(labels, seed=0, capacity=None):
    bank = MemoryBank(capacity or max(1, len(labels)), SHAPE)
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(labels), *SHAPE), dtype=torch.uint8, generator=rng)
    bank.add(images, torch.tensor(labels, dtype=torch.long))
    return bank


def pairwise_distance(bank, chosen):
    """Every pair of every class, pixel by pixel."""
    images = [[pixel / 255 for pixel in image.flatten().tolist()] for image in bank.images]
    labels, distances = bank.labels.tolist(), []
    for label in sorted(set(labels)):
        members = [images[i] for i in chosen if labels[i] == label]
        squares = [
            sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / len(one)
            for i, one in enumerate(members)
            for other in members[:i]
        ]
        if squares:
            distances.append(math.sqrt(sum(squares) / len(squares)))
    return sum(distances) / len(distances) if distances else 0.0


class BrightestChannel(nn.Module):
    """Sees label 0 or 1 by the brighter channel; counts the images of each call."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.batches = []

    def forward(self, images):
        assert images.dtype == torch.float32
        assert 0 <= images.min() <= images.max() <= 1
        self.batches.append(len(images))
        return self.scale * images.mean((2, 3))


def counted_agreement(bank, chosen):
    right = 0
    for i in chosen:
        first, second = (sum(channel.flatten().tolist()) for channel in bank.images[i])
        right += (0 if first >= second else 1) == int(bank.labels[i])
    return right / len(chosen)


@settings(deadline=None, max_examples=40)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=25), seed=st.integers(0, 50))
def test_distance__all_pairs(labels, seed):
    bank = bank_of(labels, seed)
    expected = pairwise_distance(bank, range(len(labels)))
    assert within_class_distance(bank) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("batch_size", [4, 500])
@pytest.mark.parametrize("capacity", [11, 50])
def test_agreement(batch_size, capacity):
    bank = bank_of([0, 1, 1, 0, 1, 0, 0, 0, 1, 2, 1], capacity=capacity)
    teacher = BrightestChannel()
    share = label_agreement(bank, teacher, batch_size=batch_size)
    assert share == pytest.approx(counted_agreement(bank, range(11)))
    assert 0 < share < 1
    assert sum(teacher.batches) == 11
    assert max(teacher.batches) <= batch_size


def test_part_of_the_bank():
    bank, teacher, part = bank_of([i % 2 for i in range(21)]), BrightestChannel(), range(0, 21, 4)
    expected = pairwise_distance(bank, part)
    assert within_class_distance(bank, max_images=6) == pytest.approx(expected, rel=1e-4)
    share = label_agreement(bank, teacher, max_images=6)
    assert share == pytest.approx(counted_agreement(bank, part))
    assert sum(teacher.batches) == 6
