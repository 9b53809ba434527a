import itertools
import math
from functools import partial

import pytest
import torch

from nayer_pl import CMI, Classifier, Generator, InputError, RandomCropFlip, RandomResizedPart
from nayer_pl.networks import wrn16_1

SHAPE = (1, 8, 8)
TARGETS = torch.arange(12) % 3
NO_OTHER_TERM = {"bn_weight": 0, "ce_weight": 0, "adv_weight": 0}


@pytest.fixture
def cmi(tiny_classifier):
    def make(**options):
        defaults = {
            "teacher": tiny_classifier(), "student": tiny_classifier(), "image_shape": SHAPE,
            "noise_features": 16, "generator_steps": 4, "embedding_features": 8, "round_size": 12,
            "check_teacher": False, "generator": partial(Generator, width=8),
        }  # fmt: skip
        return CMI(**{**defaults, **options})

    return make


def seen_by(classifier, images):
    """Mean of every channel that goes into a BatchNorm, by hooks of its own: [B, features]."""
    found = []
    norms = [each for each in classifier.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    handles = [n.register_forward_hook(lambda _, x, y: found.append(x[0])) for n in norms]
    classifier.eval()(images)
    for handle in handles:
        handle.remove()
    return torch.stack([torch.cat([x[i].mean((1, 2)) for x in found]) for i in range(len(images))])


def embedded(head, features):
    hidden = (features @ head["0.weight"].T + head["0.bias"]).clamp(min=0)
    out = hidden @ head["2.weight"].T + head["2.bias"]
    return out / out.square().sum(1, keepdim=True).sqrt()


def contrast(method, whole, part, earlier=None):
    """The contrastive term of two views that are given."""
    synthesizer = method.synthesizer
    synthesizer._earlier, synthesizer._views = earlier, lambda _: (whole, part)
    targets, networks = torch.zeros(len(whole)).long(), (method.teacher, method.student)
    return synthesizer.loss(whole, targets, *networks, warm_up=True)["cr"]


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
        rounds[-1][1].append((*shown, synthesizer._earlier, head, float(terms["cr"])))
        return terms

    synthesizer._views, synthesizer.start_round = watched_views, watched_start
    synthesizer.loss = watched_loss
    return rounds


def test_contrastive_term__loop(cmi, tiny_data, fit):
    """Features by hooks on the teacher, of the views and of what the bank held before the round."""
    method, data = cmi(part=(1.0, 1.0), cr_temperature=0.2), tiny_data()
    rounds, teacher = watch_steps(method, data), method.teacher.classifier
    fit(method, data)
    assert [len(before) for before, _ in rounds] == [0, 12, 24, 36]
    for before, steps in rounds:
        banked = seen_by(teacher, before / 255) if len(before) else torch.empty(0, 14)
        for whole, part, earlier, head, found in steps:
            order = torch.cdist(earlier[0], banked).argmin(1) if len(before) else torch.arange(0)
            assert sorted(order.tolist()) == list(range(len(before)))  # each of them, once
            torch.testing.assert_close(earlier[0], banked[order], rtol=1e-4, atol=1e-5)
            wholes = embedded(head, torch.cat([seen_by(teacher, whole), banked[order]]))
            parts = embedded(head, torch.cat([seen_by(teacher, part), earlier[1]]))
            each = []
            for i, one in enumerate(parts):
                alike = [math.exp(float(one @ other) / 0.2) for other in wholes]
                each.append(-math.log(alike[i] / sum(alike)))
            expected = sum(each[:12]) / 12 + (sum(each[12:]) / len(before) if len(before) else 0)
            assert found == pytest.approx(expected, rel=1e-3)


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
    found, inputs = contrast(method, *views, tuple(earlier)), [*views, *head.values()]
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


def test_contrastive_term__alone(cmi, tiny_data, fit):
    """The same noise and weights: without the term, nothing would ever move."""

    def banked(cr_weight):
        torch.manual_seed(3)
        options = {"generator_steps": 10, "generator_lr": 0.01, "cr_weight": cr_weight}
        method, data = cmi(**options, **NO_OTHER_TERM), tiny_data()
        fit(method, data, max_epochs=1, limit_train_batches=1)
        return data.bank.images.clone()

    assert not torch.equal(banked(0.0), banked(1.0))


def test_contrastive_term__spreads_twins(cmi, tiny_data, fit):
    """From each other and from earlier images, in the embedding of a trained head."""
    method = cmi()
    fit(method, tiny_data())
    teacher, head = method.teacher.classifier, method.synthesizer.head.state_dict()
    twins = torch.rand(1, *SHAPE) + 0.02 * torch.rand(2, 6, *SHAPE)
    images, banked = twins[0].clone().requires_grad_(), twins[1]
    earlier = tuple(seen_by(teacher, banked).expand(2, -1, -1))

    def alike():
        unit = embedded(head, seen_by(teacher, torch.cat([images.detach(), banked])))
        among = (unit[:6] @ unit[:6].T)[~torch.eye(6, dtype=torch.bool)]
        return float(among.mean()), float((unit[:6] @ unit[6:].T).mean())

    before, adam = alike(), torch.optim.Adam([images], lr=0.01)
    for _ in range(30):
        adam.zero_grad()
        contrast(method, images.detach(), images, earlier).backward()
        adam.step()
    assert all(new < old for new, old in zip(alike(), before, strict=True))


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


def test_negatives(cmi, tiny_data, fit):
    method, data = cmi(negatives=20), tiny_data()
    rounds = watch_steps(method, data)
    fit(method, data)
    counts = [[len(steps[0][2][view]) for view in (0, 1)] for _, steps in rounds]
    assert counts == [[0, 0], [12, 12], [20, 20], [20, 20]]


@pytest.mark.parametrize(("layers", "features"), [("all", 464), ("stages", 16 + 32 + 64)])
def test_features(layers, features):
    """Of all layers, or one per resolution."""
    nets = [Classifier(wrn16_1(10, channels=1), [0.4], [0.3]) for _ in "ts"]
    method = CMI(*nets, (1, 16, 16), layers=layers)
    assert method.synthesizer.head[0].weight.shape == (features, features)
    images = torch.rand(2, 1, 16, 16)
    seen = method.synthesizer.features(method.teacher, images)
    expected = seen_by(method.teacher.classifier, images)
    last = features if layers == "all" else 64
    torch.testing.assert_close(seen[:, -last:], expected[:, -last:])


@pytest.mark.parametrize("part", [(0.5, 0.25), (0.0, 0.5), (0.5, 1.5)])
def test_init__part(cmi, part):
    with pytest.raises(InputError, match="part"):
        cmi(part=part)
