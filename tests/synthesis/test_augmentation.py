import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nayer_pl import RandomCropFlip, RandomResizedPart, RollFlip
from nayer_pl.synthesis.augmentation import _resampling


def possible_crops(image, padding, flip):
    """Every result that pad, crop and flip can have: {bytes: (top, left, mirrored)}."""
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    crops = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[:, top : top + height, left : left + width]
            crops[crop.tobytes()] = (top, left, False)
            if flip:
                crops[crop[:, :, ::-1].tobytes()] = (top, left, True)
    return crops


def outcome(result, image, padding, flip):
    key = np.ascontiguousarray(result.numpy()).tobytes()
    return possible_crops(image.numpy(), padding, flip)[key]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("shape", [(3, 6, 9), (1, 8, 8)])
def test_every_image_becomes_one_of_its_crops(shape, padding, flip):
    images = torch.randint(1, 256, (40, *shape), dtype=torch.uint8, generator=seeded())
    results = RandomCropFlip(padding, flip)(images, seeded(1))
    assert results.shape == images.shape
    assert results.dtype == torch.uint8
    for image, result in zip(images, results, strict=True):
        outcome(result, image, padding, flip)


def test_same_draws_give_what_a_loop_gives():
    images = torch.rand(30, 2, 5, 7, generator=seeded())
    results = RandomCropFlip(padding=3)(images, seeded(7))
    rng = seeded(7)
    tops = torch.randint(7, (30, 1), generator=rng).flatten().tolist()
    lefts = torch.randint(7, (30, 1), generator=rng).flatten().tolist()
    mirrored = (torch.rand(30, 1, generator=rng) < 0.5).flatten().tolist()
    for i, (top, left, mirror) in enumerate(zip(tops, lefts, mirrored, strict=True)):
        padded = np.pad(images[i].numpy(), ((0, 0), (3, 3), (3, 3)))
        expected = padded[:, top : top + 5, left : left + 7]
        expected = expected[:, :, ::-1] if mirror else expected
        np.testing.assert_array_equal(results[i].numpy(), expected)


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
def test_images_and_gradients_are_those_of_the_plain_form(shape, padding, flip, layout, seed):
    images = torch.rand(shape, generator=seeded(seed)).to(memory_format=layout).requires_grad_()
    expected = by_rows_and_columns(images, padding, flip, seeded(seed))
    results = RandomCropFlip(padding, flip)(images, seeded(seed))
    assert torch.equal(results, expected)
    assert results.is_contiguous(memory_format=torch.channels_last)
    weights = torch.rand(shape, generator=seeded(seed + 1))
    of_expected, of_results = (
        torch.autograd.grad(out, images, weights)[0] for out in (expected, results)
    )
    assert torch.equal(of_results, of_expected)


def test_all_shifts_and_flips_are_equally_likely():
    image = torch.randint(1, 256, (1, 4, 4), dtype=torch.uint8, generator=seeded())
    draws = 9000
    results = RandomCropFlip(padding=1)(image.expand(draws, -1, -1, -1), seeded(2))
    crops = possible_crops(image.numpy(), 1, True)
    counts = dict.fromkeys(crops.values(), 0)
    for result in results:
        counts[crops[np.ascontiguousarray(result.numpy()).tobytes()]] += 1
    assert len(counts) == 18
    expected = draws / 18
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 50  # 17 degrees of freedom: p < 1e-4


def test_padding_zero_without_flip_changes_nothing():
    images = torch.rand(5, 3, 4, 6)
    assert torch.equal(RandomCropFlip(padding=0, flip=False)(images), images)


def test_padding_zero_with_flip_mirrors_about_half():
    images = torch.rand(400, 1, 2, 3, generator=seeded())
    results = RandomCropFlip(padding=0)(images, seeded(3))
    same = (results == images).flatten(1).all(1)
    mirrored = (results == images.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_digits_are_never_mirrored_without_flip():
    images = torch.randint(1, 256, (50, 1, 5, 5), dtype=torch.uint8, generator=seeded())
    results = RandomCropFlip(padding=2, flip=False)(images, seeded(4))
    for image, result in zip(images, results, strict=True):
        assert not outcome(result, image, 2, True)[2]


def test_every_dtype_sees_the_same_shifts():
    images = torch.randint(0, 256, (20, 3, 6, 6), dtype=torch.uint8, generator=seeded())
    augmentation = RandomCropFlip(padding=2)
    whole = augmentation(images, seeded(5))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        result = augmentation(images.to(dtype), seeded(5))
        assert result.dtype == dtype
        assert torch.equal(result.to(torch.uint8), whole)


def test_gradient_matches_finite_differences():
    images = torch.rand(3, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: RandomCropFlip(padding=2)(x, seeded(6)), images)


def test_gradient_is_one_where_a_pixel_survives():
    images = torch.rand(6, 1, 5, 5, generator=seeded()).requires_grad_()
    results = RandomCropFlip(padding=3)(images, seeded(8))
    results.sum().backward()
    assert set(images.grad.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(images.grad.sum((1, 2, 3)), (results != 0).sum((1, 2, 3)).float())


def test_generator_decides_the_draws():
    images = torch.rand(20, 1, 8, 8)
    augmentation = RandomCropFlip()
    assert torch.equal(augmentation(images, seeded(1)), augmentation(images, seeded(1)))
    assert not torch.equal(augmentation(images, seeded(1)), augmentation(images, seeded(2)))


def test_input_is_left_alone():
    images = torch.rand(8, 3, 5, 5)
    before = images.clone()
    RandomCropFlip()(images)
    assert torch.equal(images, before)


def views_of(images, limit, flip):
    """All that may become of images: their rolls, and those of their mirror images."""
    views = [images, images.flip(3)] if flip else [images]
    shifts = itertools.product(range(-limit, limit + 1), repeat=2)
    return [torch.roll(view, shift, (2, 3)) for shift in shifts for view in views]


@pytest.mark.parametrize("flip", [False, True])
def test_roll_flip__every_roll_of_the_batch(flip):
    images, rng = torch.rand(2, 1, 4, 5), torch.Generator().manual_seed(0)
    expected = views_of(images, 1, flip)
    seen = [RollFlip(1, flip)(images, rng) for _ in range(200)]
    found = [[torch.equal(a, b) for b in expected] for a in seen]
    assert all(any(row) for row in found)
    assert all(any(column) for column in zip(*found, strict=True))


def part_of(images, area, flip, rng):
    return RandomResizedPart(area, flip)(images, rng)


@pytest.mark.parametrize(("start", "length"), [(0, 8), (2, 5), (3, 4), (7, 1)])
def test_resized_part__whole_pixels(start, length):
    line = torch.rand(1, 1, 8, dtype=torch.float64)
    part = line[..., start : start + length]
    expected = F.interpolate(part, size=8, mode="linear", align_corners=False)
    matrix = _resampling(torch.tensor([start]).double(), torch.tensor([length]).double(), 8)
    torch.testing.assert_close(line @ matrix[0].T, expected)


def parts_of_a_ramp(area, flip):
    """First and last pixel of 2,000 parts of an image whose values are its coordinates."""
    height, width = 12, 16
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    ramp = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(2000, 2, -1, -1)
    found = part_of(ramp, area, flip, torch.Generator().manual_seed(0))
    assert found.shape == ramp.shape
    # Away from the border, where the ramp ends: slopes say how large the part was.
    tall = (found[:, 0, 7, 8] - found[:, 0, 5, 8]) / 2 * height
    wide = (found[:, 1, 6, 9] - found[:, 1, 6, 7]) / 2 * width
    return found, tall / height, wide / width


def test_resized_part__area():
    found, tall, wide = parts_of_a_ramp((0.25, 0.5), flip=False)
    share, shape = tall * wide, wide / tall
    assert 0.25 - 1e-4 < float(share.min()) < 0.26
    assert 0.49 < float(share.max()) < 0.5 + 1e-4
    assert 0.75 - 1e-4 < float(shape.min()) < 0.76
    assert 1.3 < float(shape.max()) < 4 / 3 + 1e-4
    for axis, size in enumerate((12, 16)):
        values = found[:, axis]
        assert 0.5 <= float(values.min()) < 0.7
        assert size - 0.7 < float(values.max()) <= size - 0.5


def test_resized_part__flip():
    _, _, wide = parts_of_a_ramp((0.25, 1.0), flip=True)
    assert 0.45 < float((wide < 0).float().mean()) < 0.55
    assert float(wide.abs().max()) <= 1 + 1e-4
    _, _, wide = parts_of_a_ramp((0.25, 1.0), flip=False)
    assert float(wide.min()) > 0


def test_resized_part__gradient():
    images = torch.rand(3, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    rng = torch.Generator()
    assert torch.autograd.gradcheck(
        lambda x: part_of(x, (0.25, 1.0), True, rng.manual_seed(1)), images
    )
