import itertools
from functools import partial

import pytest
import torch

from nayer_pl import CMI, FrozenTeacher, RandomCropFlip, RandomResizedPart
from nayer_pl.losses.functional import contrastive_loss
from nayer_pl.networks.teacher import TeacherFeatures

SHAPE = (1, 8, 8)


@pytest.fixture
def cmi(make):
    return partial(make, CMI)


def seen_by(classifier, images):
    """What another reader sees: [B, features]."""
    return TeacherFeatures(FrozenTeacher(classifier), SHAPE, "all")(images)


def embedded(head, features):
    hidden = (features @ head["0.weight"].T + head["0.bias"]).clamp(min=0)
    out = hidden @ head["2.weight"].T + head["2.bias"]
    return out / out.square().sum(1, keepdim=True).sqrt()


def watch_steps(method, data):
    """Every round's steps (views, earlier features, head, contrastive term) and the bank before."""
    rounds, synthesizer = [], method.synthesizer
    views, loss, start_round = synthesizer._views, synthesizer.loss, synthesizer.start_round

    def watched_views(images):
        synthesizer.shown = views(images)
        return synthesizer.shown

    def watched_start(*arguments):
        rounds.append((data.bank.images.clone(), []))
        start_round(*arguments)

    def watched_loss(*arguments, **options):
        terms = loss(*arguments, **options)
        head = {name: tensor.clone() for name, tensor in synthesizer.head.state_dict().items()}
        shown = [view.detach().clone() for view in synthesizer.shown]
        rounds[-1][1].append((*shown, synthesizer._earlier, head, terms["cr"].item()))
        return terms

    synthesizer._views, synthesizer.start_round = watched_views, watched_start
    synthesizer.loss = watched_loss
    return rounds


@pytest.mark.parametrize("negatives", [4096, 20])
def test_contrastive_term__loop(cmi, tiny_data, fit, negatives):
    """Features by hooks on the teacher, of the views and of what the bank held before the round."""
    method, data = cmi(negatives=negatives, part=(1.0, 1.0), cr_temperature=0.2), tiny_data()
    rounds, teacher = watch_steps(method, data), method.teacher.classifier
    fit(method, data)
    assert [len(before) for before, _ in rounds] == [0, 12, 24, 36]
    for before, steps in rounds:
        banked = seen_by(teacher, before / 255) if len(before) else torch.empty(0, 14)
        for whole, part, earlier, head, found in steps:
            order = torch.cdist(earlier[0], banked).argmin(1) if len(before) else torch.arange(0)
            assert len(order.unique()) == len(order) == min(negatives, len(before))
            torch.testing.assert_close(earlier[0], banked[order], rtol=1e-4, atol=1e-5)
            wholes = embedded(head, torch.cat([seen_by(teacher, whole), banked[order]]))
            parts = embedded(head, torch.cat([seen_by(teacher, part), earlier[1]]))
            expected = contrastive_loss(parts, wholes, 12, temperature=0.2)
            assert found == pytest.approx(float(expected), rel=1e-3)


def test_contrastive_term__gradient(cmi):
    """Through the part only."""
    method = cmi(cr_temperature=0.2)
    views = [view.requires_grad_() for view in torch.rand(2, 12, *SHAPE).unbind()]
    earlier, head = torch.rand(2, 5, 14), dict(method.synthesizer.head.named_parameters())
    wholes, parts = (
        embedded(head, torch.cat([seen_by(method.teacher.classifier, view), old]))
        for view, old in zip(views, earlier, strict=True)
    )
    alike = parts @ wholes.detach().T / 0.2
    each = alike.logsumexp(1) - alike.diag()
    expected = each[:12].mean() + each[12:].mean()
    synthesizer = method.synthesizer
    synthesizer._earlier, synthesizer._views = tuple(earlier), lambda _: views
    targets, networks = torch.zeros(12).long(), (method.teacher, method.student)
    found = synthesizer.loss(views[0], targets, *networks, warm_up=True)["cr"]
    inputs = [*views, *head.values()]
    slopes = [torch.autograd.grad(x, inputs, materialize_grads=True) for x in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)
    assert not slopes[0][0].any()


@pytest.mark.parametrize("flip", [False, True])
def test_views(cmi, flip):
    """The augmented image, and a part of the plain one."""
    crop, part = RandomCropFlip(2, flip=flip), RandomResizedPart((0.25, 0.5), flip)
    synthesizer = cmi(augmentation=crop, part=part.area).synthesizer
    images = torch.rand(12, *SHAPE, requires_grad=True)
    synthesizer.rng, rng = (torch.Generator().manual_seed(7) for _ in "ab")
    expected = crop(images, rng), part(images, rng)
    for view, target in zip(synthesizer._views(images), expected, strict=True):
        assert torch.equal(view, target)
        slopes = [torch.autograd.grad(each.square().sum(), images)[0] for each in (view, target)]
        assert torch.equal(*slopes)


def test_round__new_generator(cmi, tiny_data, fit):
    """Drawn as in DCGAN, with its noise; the noise and the head learn at every step."""
    method, steps = cmi(), []
    synthesizer = method.synthesizer
    learned = (
        synthesizer.generator.layers[0].weight,
        synthesizer.latents,
        synthesizer.head[0].weight,
    )
    synthesizer.generator.register_forward_pre_hook(
        lambda *_: steps.append([tensor.detach().clone() for tensor in learned])
    )
    fit(method, tiny_data())
    weights, latents, heads = zip(*steps, strict=True)
    assert not any(
        torch.equal(a, b) for each in (latents, heads) for a, b in itertools.pairwise(each)
    )
    for drawn, scale in ((weights[::4], 0.02), (latents[::4], 1.0)):
        for first, second in itertools.pairwise(drawn):
            assert float(second.std()) == pytest.approx(scale, rel=0.2)
            assert float((second - first).std()) == pytest.approx(2**0.5 * scale, rel=0.3)
