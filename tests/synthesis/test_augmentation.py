import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nayer_pl import InputError, RandomCropFlip, RandomResizedPart
from nayer_pl.synthesis import RollFlip
from nayer_pl.synthesis.augmentation import _resampling


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# RandomCropFlip


def by_rows_and_columns(images, padding, flip, rng):
    """RandomCrop and RandomHorizontalFlip, pixel by pixel; torch derives the gradient."""
    batch, _, height, width = images.shape
    rows = torch.randint(2 * padding + 1, (batch, 1), generator=rng) + torch.arange(height)
    columns = torch.randint(2 * padding + 1, (batch, 1), generator=rng) + torch.arange(width)
    if flip:
        mirrored = torch.rand(batch, 1, generator=rng) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, [padding] * 4)
    image = torch.arange(batch)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(*[st.integers(1, size) for size in (5, 4, 9, 9)]),
    padding=st.integers(0, 5),
    flip=st.booleans(),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    seed=st.integers(0, 99),
)
def test_random_crop_flip__plain_form(shape, padding, flip, layout, seed):
    images = torch.rand(shape, generator=seeded(seed)).to(memory_format=layout).requires_grad_()
    before = images.detach().clone()
    expected = by_rows_and_columns(images, padding, flip, seeded(seed))
    results = RandomCropFlip(padding, flip)(images, seeded(seed))
    assert torch.equal(results, expected)
    assert torch.equal(images, before)
    assert results.is_contiguous(memory_format=torch.channels_last)
    factors = torch.rand(shape, generator=seeded(seed + 1))
    slopes = [torch.autograd.grad(out, images, factors)[0] for out in (expected, results)]
    assert torch.equal(*slopes)


def test_random_crop_flip__dtype():
    images = torch.randint(0, 256, (20, 3, 6, 6), dtype=torch.uint8, generator=seeded())
    augmentation = RandomCropFlip(padding=2)
    whole = augmentation(images, seeded(5))
    for dtype in (torch.uint8, torch.float32, torch.float64, torch.bfloat16):
        result = augmentation(images.to(dtype), seeded(5))
        assert result.dtype == dtype
        assert torch.equal(result.to(torch.uint8), whole)


# RollFlip


@pytest.mark.parametrize("flip", [False, True])
def test_roll_flip(flip):
    """All images are rolled alike, and every roll comes."""
    images, rng = torch.rand(2, 1, 4, 5), seeded()
    views = [images, images.flip(3)] if flip else [images]
    shifts = itertools.product(range(-1, 2), repeat=2)
    expected = [torch.roll(view, shift, (2, 3)) for shift in shifts for view in views]
    seen = [RollFlip(1, flip)(images, rng) for _ in range(200)]
    found = torch.tensor([[torch.equal(a, b) for b in expected] for a in seen])
    assert found.any(0).all()
    assert found.any(1).all()


# RandomResizedPart


@pytest.mark.parametrize(("start", "length"), [(0, 8), (2, 5), (3, 4), (7, 1)])
def test_resampling(start, length):
    """A part of whole pixels is enlarged as torch does."""
    line = torch.rand(1, 1, 8, dtype=torch.float64)
    part = line[..., start : start + length]
    expected = F.interpolate(part, size=8, mode="linear", align_corners=False)
    matrix = _resampling(torch.tensor([start]).double(), torch.tensor([length]).double(), 8)
    torch.testing.assert_close(line @ matrix[0].T, expected)


def parts_of_a_ramp(area, flip):
    """2,000 parts of an image whose values are its coordinates; their heights and widths."""
    height, width = 12, 16
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    ramp = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(2000, 2, -1, -1)
    found = RandomResizedPart(area, flip)(ramp, seeded())
    assert found.shape == ramp.shape
    # Away from the border, where the ramp ends: slopes say how large the part was.
    tall = (found[:, 0, 7, 8] - found[:, 0, 5, 8]) / 2
    wide = (found[:, 1, 6, 9] - found[:, 1, 6, 7]) / 2
    return found, tall, wide


def test_random_resized_part():
    """Areas and shapes fill their range, and parts lie inside of the image."""
    found, tall, wide = parts_of_a_ramp((0.25, 0.5), flip=False)
    share, shape = tall * wide, wide / tall
    for values, low, high in ((share, 0.25, 0.5), (shape, 0.75, 4 / 3)):
        assert low - 1e-4 < float(values.min()) < low + 0.01
        assert 0.96 * high < float(values.max()) < high + 1e-4
    for axis, size in enumerate((12, 16)):
        values = found[:, axis]
        assert 0.5 <= float(values.min()) < 0.7
        assert size - 0.7 < float(values.max()) <= size - 0.5


@pytest.mark.parametrize(("flip", "mirrored"), [(True, 0.5), (False, 0)])
def test_random_resized_part__flip(flip, mirrored):
    _, _, wide = parts_of_a_ramp((0.25, 1.0), flip)
    assert float((wide < 0).float().mean()) == pytest.approx(mirrored, abs=0.05)
    assert float(wide.abs().max()) <= 1 + 1e-4


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (RandomCropFlip, {"padding": -1}),
        (RollFlip, {"jitter": -1}),
        (RandomResizedPart, {"area": (0.0, 1.0)}),
        (RandomResizedPart, {"area": (0.5, 1.1)}),
        (RandomResizedPart, {"area": (1.0, 0.5)}),
    ],
)
def test_options(kind, options):
    with pytest.raises(InputError, match=next(iter(options))):
        kind(**options)
