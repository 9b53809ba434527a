import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nayer_pl import MemoryBank
from nayer_pl.distillation.quality import label_agreement, within_class_distance

SHAPE = (2, 3, 3)


def bank_of(labels, seed=0):
    bank = MemoryBank(max(1, len(labels)), SHAPE)
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(labels), *SHAPE), dtype=torch.uint8, generator=rng)
    bank.add(images, torch.tensor(labels, dtype=torch.long))
    return bank


def pairwise_distance(bank, chosen=None):
    """Every pair of every class, pixel by pixel."""
    images = [[pixel / 255 for pixel in image.flatten().tolist()] for image in bank.images]
    labels, distances = bank.labels.tolist(), []
    chosen = list(range(len(labels))) if chosen is None else chosen
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
    """Sees label 0 or 1 by the brighter channel; counts the images it was shown."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.batches = []

    def forward(self, images):
        assert images.dtype == torch.float32
        assert float(images.min()) >= 0
        assert float(images.max()) <= 1
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
def test_distance_is_that_of_all_pairs(labels, seed):
    bank = bank_of(labels, seed)
    assert within_class_distance(bank) == pytest.approx(pairwise_distance(bank), rel=1e-4)


def test_distance_of_black_and_white_is_one():
    bank = MemoryBank(2, SHAPE)
    bank.add(torch.stack([torch.zeros(SHAPE), torch.ones(SHAPE)]), torch.tensor([3, 3]))
    assert within_class_distance(bank) == pytest.approx(1)


def test_equal_images_have_no_distance():
    bank = MemoryBank(6, SHAPE)
    bank.add(torch.full((6, *SHAPE), 0.3), torch.tensor([0, 0, 0, 1, 1, 2]))
    assert within_class_distance(bank) == pytest.approx(0, abs=1e-6)


def test_classes_of_one_image_have_no_distance():
    assert within_class_distance(bank_of([0, 1, 2])) == 0


def test_distance_can_look_at_a_part_of_the_bank():
    bank = bank_of([i % 2 for i in range(21)])
    expected = pairwise_distance(bank, chosen=range(0, 21, 4))
    assert within_class_distance(bank, at_most=6) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4, 500])
def test_agreement_is_the_share_of_wanted_labels_that_are_seen(batch_size):
    bank = bank_of([0, 1, 1, 0, 1, 0, 0, 0, 1, 2, 1])
    teacher = BrightestChannel()
    share = label_agreement(bank, teacher, batch_size=batch_size)
    assert share == pytest.approx(counted_agreement(bank, range(11)))
    assert 0 < share < 1
    assert sum(teacher.batches) == 11
    assert max(teacher.batches) <= batch_size


def test_agreement_can_look_at_an_even_part_of_the_bank():
    images = torch.zeros(21, *SHAPE)
    images[:, 1] = 1
    labels = torch.zeros(21, dtype=torch.long)
    labels[::5] = 1
    bank, teacher = MemoryBank(21, SHAPE), BrightestChannel()
    bank.add(images, labels)
    assert label_agreement(bank, teacher, at_most=5) == 1
    assert sum(teacher.batches) == 5


def test_agreement_looks_at_what_is_held_only():
    bank = MemoryBank(50, SHAPE)
    images = torch.zeros(4, *SHAPE)
    images[:, 1] = 1
    bank.add(images, torch.tensor([1, 1, 1, 0]))
    assert label_agreement(bank, BrightestChannel()) == pytest.approx(0.75)


def test_agreement_leaves_no_gradient():
    teacher = BrightestChannel()
    label_agreement(bank_of([0, 1]), teacher)
    assert teacher.scale.grad is None
