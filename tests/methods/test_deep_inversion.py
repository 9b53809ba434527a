import pytest
import torch
import torch.nn.functional as F

from nayer_pl import DeepInversion, RollFlip
from nayer_pl.losses.functional import jensen_shannon, total_variation
from nayer_pl.runtime.numerics import Stream, stream_seed

SHAPE = (1, 8, 8)


@pytest.fixture
def inversion(tiny_classifier):
    def make(decided=False, **options):
        """`decided`: networks with opinions; never trained, but their logits are far apart."""
        networks = tiny_classifier(), tiny_classifier()
        for net in networks if decided else ():
            net.network.head.weight.data.mul_(20)
        defaults = {"round_size": 12, "check_teacher": False, "augmentation": RollFlip(1)}
        return DeepInversion(*networks, SHAPE, **{**defaults, **options})

    return make


def statistics_loss(classifier, images):
    """Logits, and the statistics term, one layer after the other, by hooks of its own."""
    terms = []

    def look(norm, inputs):
        x = inputs[0].transpose(0, 1).flatten(1)
        mean, variance = x.mean(1), x.var(1, correction=0)
        terms.append((norm.running_var - variance).norm() + (norm.running_mean - mean).norm())

    norms = [each for each in classifier.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(look) for norm in norms]
    logits = classifier(images)
    for handle in handles:
        handle.remove()
    return logits, sum(terms)


def test_round__loop(inversion, tiny_data, fit, watch_rounds):
    """New noise and a new Adam; all terms by hand, in normalized units, clipped by hand."""
    weights = {"ce_weight": 0.7, "tv_weight": 0.02, "l2_weight": 0.03, "bn_weight": 2.0}
    method = inversion(augmentation=None, seed=9, image_steps=12, **weights).double()
    rounds, teacher = watch_rounds(method), method.teacher.classifier
    fit(method, tiny_data(), max_epochs=1, precision="64-true")
    rng = torch.Generator().manual_seed(stream_seed(9, 0, Stream.NOISE))
    low, high = (float((value - teacher.mean) / teacher.std) for value in (0, 1))
    assert len(rounds) == 2
    for found in rounds:
        pixels = torch.empty(12, *SHAPE, dtype=torch.float64).normal_(generator=rng)
        adam, losses, images = torch.optim.Adam([pixels.requires_grad_()], lr=0.05), [], []
        for _ in range(12):
            pixels.data.clamp_(low, high)
            images.append(pixels * teacher.std + teacher.mean)
            logits, matching = statistics_loss(teacher, images[-1])
            loss = 0.7 * F.cross_entropy(logits, found.targets) + 2.0 * matching
            loss = loss + 0.02 * total_variation(pixels) + 0.03 * pixels.square().sum().sqrt()
            losses.append(loss.item())
            adam.zero_grad()
            loss.backward()
            adam.step()
        assert found.terms["loss"].tolist() == pytest.approx(losses)
        torch.testing.assert_close(found.kept, images[losses.index(min(losses))].detach())


def test_round__lowers_the_label_term(inversion, tiny_data, fit, watch_rounds):
    options = {"image_steps": 40, "image_lr": 0.2, "adv_weight": 0, "bn_weight": 0}
    method = inversion(decided=True, **options)
    rounds, teacher = watch_rounds(method), method.teacher.classifier
    fit(method, tiny_data())
    for each in rounds:
        assert each.terms["loss"][-5:].mean() < 0.8 * each.terms["loss"][0]
        noise = torch.randn_like(each.kept).mul(0.3).add(0.4).clamp(0, 1)
        made, drawn = (F.cross_entropy(teacher(x), each.targets) for x in (each.kept, noise))
        assert made < drawn


def test_competition(inversion, tiny_data, fit, watch_rounds):
    """The same networks, noise and rolls; the student is as it was at the start."""

    def disagreement(adv_weight):
        torch.manual_seed(4)
        options = {"image_steps": 40, "image_lr": 0.2, "bn_weight": 0.5, "adv_weight": adv_weight}
        method = inversion(decided=True, **options)
        rounds = watch_rounds(method)
        fit(method, tiny_data({"rounds_per_epoch": 2}), limit_train_batches=2)
        assert [each.warm_up for each in rounds] == 2 * [True] + 4 * [False]
        method.student.eval()
        images = torch.cat([each.kept for each in rounds[2:]])
        return float(jensen_shannon(method.student(images), method.teacher(images), 3.0).mean())

    assert disagreement(100.0) > 1.5 * disagreement(0.0)


def test_pixels__range(inversion, tiny_data, fit, watch_rounds):
    """Images stay images, and no pixel is stuck at the border."""
    method = inversion(image_steps=4, image_lr=100.0)
    rounds, pixels = watch_rounds(method), method.synthesizer.pixels
    fit(method, tiny_data())
    assert method.synthesizer.pixels is pixels
    assert all(0 <= each.kept.min() <= each.kept.max() <= 1 for each in rounds)
    pixels.data = 1000 * torch.rand_like(pixels).sub(0.5).sign()
    images = method.synthesizer.generate(torch.arange(12))
    torch.testing.assert_close(images, images.round())
    images.sum().backward()
    assert (pixels.grad != 0).all()
