import math

import pytest
import torch
import torch.nn.functional as F

from nayer_pl.synthesis.contrast import contrastive_loss, random_part, resampling


@pytest.mark.parametrize("earlier", [0, 4])
def test_contrastive_loss_is_that_of_a_loop(earlier):
    new, temperature = 3, 0.3
    parts, wholes = F.normalize(torch.randn(2, new + earlier, 5, dtype=torch.float64), dim=2)
    each = []
    for i, part in enumerate(parts):
        alike = [math.exp(float(part @ whole) / temperature) for whole in wholes]
        each.append(-math.log(alike[i] / sum(alike)))
    expected = sum(each[:new]) / new + (sum(each[new:]) / earlier if earlier else 0)
    assert float(contrastive_loss(parts, wholes, new, temperature)) == pytest.approx(expected)


def test_contrastive_loss_falls_when_images_spread():
    apart, alike = torch.eye(4), F.normalize(torch.ones(4, 4) + 0.1 * torch.eye(4))
    losses = [float(contrastive_loss(x, x, 4, 0.1)) for x in (apart, alike)]
    assert losses == pytest.approx([math.log1p(3 * math.exp(-10)), math.log(4)], abs=0.02)


@pytest.mark.parametrize(("start", "length"), [(0, 8), (2, 5), (3, 4), (7, 1)])
def test_a_part_of_whole_pixels_is_enlarged_as_torch_does(start, length):
    line = torch.rand(1, 1, 8, dtype=torch.float64)
    part = line[..., start : start + length]
    expected = F.interpolate(part, size=8, mode="linear", align_corners=False)
    matrix = resampling(torch.tensor([start]).double(), torch.tensor([length]).double(), 8)
    torch.testing.assert_close(line @ matrix[0].T, expected)


def parts_of_a_ramp(area, flip):
    """First and last pixel of 2,000 parts of an image whose values are its coordinates."""
    height, width = 12, 16
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    ramp = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(2000, 2, -1, -1)
    found = random_part(ramp, area, flip, torch.Generator().manual_seed(0))
    assert found.shape == ramp.shape
    # Away from the border, where the ramp ends: slopes say how large the part was.
    tall = (found[:, 0, 7, 8] - found[:, 0, 5, 8]) / 2 * height
    wide = (found[:, 1, 6, 9] - found[:, 1, 6, 7]) / 2 * width
    return found, tall / height, wide / width


def test_parts_have_the_wanted_areas_and_lie_inside():
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


def test_half_of_the_parts_are_mirrored_if_they_may_be():
    _, _, wide = parts_of_a_ramp((0.25, 1.0), flip=True)
    assert 0.45 < float((wide < 0).float().mean()) < 0.55
    assert float(wide.abs().max()) <= 1 + 1e-4
    _, _, wide = parts_of_a_ramp((0.25, 1.0), flip=False)
    assert float(wide.min()) > 0


def test_gradients_reach_the_image():
    images = torch.rand(3, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    rng = torch.Generator()
    assert torch.autograd.gradcheck(
        lambda x: random_part(x, (0.25, 1.0), True, rng.manual_seed(1)), images
    )
