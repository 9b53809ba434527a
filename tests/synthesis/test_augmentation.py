import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nayer_pl import InputError, RandomCropFlip, RandomResizedPart, RollFlip
from nayer_pl.synthesis.augmentation import _resampling


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def by_rows_and_columns(images, padding, flip, rng):
    """Every pixel fetched by its row and its column; torch derives the gradient."""
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
def test_crop__images_and_gradients(shape, padding, flip, layout, seed):
    images = torch.rand(shape, generator=seeded(seed)).to(memory_format=layout).requires_grad_()
    before = images.detach().clone()
    expected = by_rows_and_columns(images, padding, flip, seeded(seed))
    results = RandomCropFlip(padding, flip)(images, seeded(seed))
    assert torch.equal(results, expected)
    assert torch.equal(images, before)
    assert results.is_contiguous(memory_format=torch.channels_last)
    weights = torch.rand(shape, generator=seeded(seed + 1))
    found, wanted = (torch.autograd.grad(x, images, weights)[0] for x in (results, expected))
    assert torch.equal(found, wanted)


def crops_of(image, padding, flip):
    """Every result that padding, cropping and mirroring can have."""
    _, height, width = image.shape
    padded, starts = F.pad(image, [padding] * 4), range(2 * padding + 1)
    crops = [
        padded[:, top : top + height, left : left + width]
        for top, left in itertools.product(starts, starts)
    ]
    return torch.stack([*crops, *(crop.flip(2) for crop in crops if flip)])


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_crop__likelihood(padding, flip):
    """All shifts, mirrored or not, are equally likely, and nothing else comes."""
    image = torch.randint(1, 256, (2, 4, 5), dtype=torch.uint8, generator=seeded())
    possible, draws = crops_of(image, padding, flip), 9000
    results = RandomCropFlip(padding, flip)(image.expand(draws, -1, -1, -1), seeded(2))
    assert results.shape == (draws, 2, 4, 5)
    assert results.dtype == torch.uint8
    counts = (results[:, None] == possible).flatten(2).all(2).sum(0)
    assert counts.sum() == draws
    expected = draws / len(possible)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    freedom = len(possible) - 1
    assert chi_square <= freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations


def test_crop__dtypes():
    images = torch.randint(0, 256, (20, 3, 6, 6), dtype=torch.uint8, generator=seeded())
    augmentation = RandomCropFlip(padding=2)
    whole = augmentation(images, seeded(5))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        result = augmentation(images.to(dtype), seeded(5))
        assert result.dtype == dtype
        assert torch.equal(result.to(torch.uint8), whole)


@pytest.mark.parametrize("flip", [False, True])
def test_roll(flip):
    """All images alike; every roll comes, mirrored or not, and nothing else."""
    images = torch.rand(2, 1, 4, 5)
    views = [images, images.flip(3)] if flip else [images]
    shifts = itertools.product((-1, 0, 1), repeat=2)
    expected = torch.stack([torch.roll(view, shift, (2, 3)) for shift in shifts for view in views])
    rng = seeded()
    seen = torch.stack([RollFlip(1, flip)(images, rng) for _ in range(200)])
    found = (seen[:, None] == expected).flatten(2).all(2)
    assert found.any(1).all()
    assert found.any(0).all()


@pytest.mark.parametrize(("start", "length"), [(0, 8), (2, 5), (3, 4), (7, 1)])
def test_part__whole_pixels(start, length):
    """They are enlarged as torch does."""
    line = torch.rand(1, 1, 8, dtype=torch.float64)
    part = line[..., start : start + length]
    expected = F.interpolate(part, size=8, mode="linear", align_corners=False)
    matrix = _resampling(torch.tensor([start]).double(), torch.tensor([length]).double(), 8)
    torch.testing.assert_close(line @ matrix[0].T, expected)


def parts_of_ramp(area, flip):
    """2,000 parts of an image whose values are its coordinates, and their sides as shares."""
    height, width = 12, 16
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    ramp = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(2000, 2, -1, -1)
    found = RandomResizedPart(area, flip)(ramp, seeded())
    assert found.shape == ramp.shape
    # Away from the border, where the ramp ends: slopes say how large the part was.
    tall, wide = found[:, 0, 7, 8] - found[:, 0, 5, 8], found[:, 1, 6, 9] - found[:, 1, 6, 7]
    return found, tall / 2, wide / 2


def test_part__sizes():
    """Shares and shapes within their limits, up to them; no part leaves the image."""
    found, tall, wide = parts_of_ramp((0.25, 0.5), flip=False)
    for values, low, high in ((tall * wide, 0.25, 0.5), (wide / tall, 0.75, 4 / 3)):
        assert low - 1e-4 < float(values.min()) < low + 0.01
        assert high - 0.03 < float(values.max()) < high + 1e-4
    for axis, size in enumerate((12, 16)):
        values = found[:, axis]
        assert 0.5 <= float(values.min()) < 0.7
        assert size - 0.7 < float(values.max()) <= size - 0.5


@pytest.mark.parametrize(("flip", "low", "high"), [(True, 0.45, 0.55), (False, 0, 0)])
def test_part__flip(flip, low, high):
    _, _, wide = parts_of_ramp((0.25, 1.0), flip)
    assert low <= float((wide < 0).float().mean()) <= high
    assert float(wide.abs().max()) <= 1 + 1e-4


def test_part__area():
    with pytest.raises(InputError, match="the smaller first"):
        RandomResizedPart((0.5, 0.25))


AUGMENTATIONS = [RandomCropFlip(2), RollFlip(2), RandomResizedPart()]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=lambda each: type(each).__name__)
def test_gradient_and_seed(augmentation):
    images = torch.rand(3, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: augmentation(x, seeded(6)), images)
    assert torch.equal(augmentation(images, seeded(1)), augmentation(images, seeded(1)))
    assert not torch.equal(augmentation(images, seeded(1)), augmentation(images, seeded(2)))
