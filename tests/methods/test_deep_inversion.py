from functools import partial

import pytest
import torch
import torch.nn.functional as F

from nayer_pl import DeepInversion, RollFlip
from nayer_pl.losses import BatchNormMatching
from nayer_pl.losses.functional import total_variation
from nayer_pl.runtime.numerics import Stream, stream_seed

SHAPE = (1, 8, 8)


@pytest.fixture
def inversion(make):
    return partial(make, DeepInversion)


def test_round__loop(inversion, tiny_data, fit, watch_rounds):
    """New noise and a new Adam; all terms by hand, in normalized units, clipped by hand."""
    weights = {"ce_weight": 0.7, "tv_weight": 0.02, "l2_weight": 0.03, "bn_weight": 2.0}
    method = inversion(seed=9, image_steps=12, **weights).double()
    rounds, teacher = watch_rounds(method), method.teacher.classifier
    fit(method, tiny_data(), max_epochs=1, precision="64-true")
    matching = BatchNormMatching(method.teacher.norms, momentum=0.0).double()
    rng = torch.Generator().manual_seed(stream_seed(9, 0, Stream.NOISE))
    low, high = (float((value - teacher.mean) / teacher.std) for value in (0, 1))
    assert len(rounds) == 2
    for found in rounds:
        pixels = torch.empty(12, *SHAPE, dtype=torch.float64).normal_(generator=rng)
        adam, losses, images = torch.optim.Adam([pixels.requires_grad_()], lr=0.05), [], []
        for _ in range(12):
            pixels.data.clamp_(low, high)
            images.append(pixels * teacher.std + teacher.mean)
            logits, statistics = method.teacher.observe(images[-1])
            loss = 0.7 * F.cross_entropy(logits, found.targets) + 2.0 * matching(statistics)
            loss = loss + 0.02 * total_variation(pixels) + 0.03 * pixels.square().sum().sqrt()
            losses.append(loss.item())
            adam.zero_grad()
            loss.backward()
            adam.step()
        assert found.terms["loss"].tolist() == pytest.approx(losses)
        torch.testing.assert_close(found.kept, images[losses.index(min(losses))].detach())


def test_competition(inversion):
    """One less the Jensen-Shannon divergence of predictions at this temperature."""
    method = inversion(adv_temperature=2.0)
    images, networks = torch.rand(12, *SHAPE), (method.teacher, method.student.eval())
    p, q = ((net(images) / 2).softmax(1) for net in networks)
    middle = (p + q) / 2
    both = (p * (p / middle).log()).sum(1) + (q * (q / middle).log()).sum(1)
    terms = method.synthesizer.loss(images, torch.arange(12) % 3, *networks, warm_up=False)
    torch.testing.assert_close(terms["adv"], 1 - both.mean() / 2)


def test_pixels__range(inversion, tiny_data, fit, watch_rounds):
    """Images stay images, and no pixel is stuck at the border."""
    method = inversion(image_lr=100.0, augmentation=RollFlip(1))
    rounds, pixels = watch_rounds(method), method.synthesizer.pixels
    fit(method, tiny_data())
    assert method.synthesizer.pixels is pixels
    assert all(0 <= each.kept.min() <= each.kept.max() <= 1 for each in rounds)
    pixels.data = 1000 * torch.rand_like(pixels).sub(0.5).sign()
    images = method.synthesizer.generate(torch.arange(12))
    torch.testing.assert_close(images, images.round())
    images.sum().backward()
    assert (pixels.grad != 0).all()
