import itertools
import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from nayer_pl import Classifier, Generator, InputError, RandomCropFlip, RandomResizedPart
from nayer_pl.methods.cmi import CMI
from nayer_pl.networks import wrn16_1

SHAPE = (1, 8, 8)


@pytest.fixture
def cmi(tiny_classifier):
    def make(**options):
        defaults = {
            "teacher": tiny_classifier(), "student": tiny_classifier(), "image_shape": SHAPE,
            "noise_features": 16, "generator_steps": 4, "embedding_features": 8, "round_size": 12,
            "check_teacher": False,
            "generator": lambda n, s: Generator(n, s, width=8),
        }  # fmt: skip
        return CMI(**{**defaults, **options})

    return make


class Spy(Callback):
    """Keeps every step's views, earlier features, head and terms, and the bank before a round."""

    def __init__(self):
        self.rounds, self.views = [], None

    def on_fit_start(self, trainer, method):
        synthesizer = method.synthesizer
        start, loss, views = synthesizer.start_round, synthesizer.loss, synthesizer._views

        def watched_start(targets, teacher, bank):
            self.rounds.append(([], bank.images.clone()))
            start(targets, teacher, bank)

        def watched_views(images):
            self.views = views(images)
            return self.views

        def watched_loss(*args):
            head = {n: t.clone() for n, t in synthesizer.head.state_dict().items()}
            terms = loss(*args)
            seen = [view.detach().clone() for view in self.views]
            numbers = {name: float(term) for name, term in terms.items()}
            self.rounds[-1][0].append((*seen, synthesizer._earlier, head, numbers))
            return terms

        synthesizer.start_round, synthesizer.loss = watched_start, watched_loss
        synthesizer._views = watched_views


def seen_by(teacher, images):
    """Mean of every channel that goes into a BatchNorm, by hooks of its own: [B, features]."""
    found = []
    norms = [module for module in teacher.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    handles = [n.register_forward_hook(lambda _, x, y: found.append(x[0])) for n in norms]
    teacher.eval()(images)
    for handle in handles:
        handle.remove()
    return torch.stack([torch.cat([x[i].mean((1, 2)) for x in found]) for i in range(len(images))])


def embedded(head, features):
    hidden = (features @ head["0.weight"].T + head["0.bias"]).clamp(min=0)
    out = hidden @ head["2.weight"].T + head["2.bias"]
    return out / out.square().sum(1, keepdim=True).sqrt()


def test_contrastive_term__loop(cmi, tiny_data, fit):
    """Features by hooks on the teacher, of the views and of what the bank held before the round."""
    method, spy = cmi(part=(1.0, 1.0), cr_temperature=0.2), Spy()
    fit(method, tiny_data(), callbacks=[spy])
    assert [len(before) for _, before in spy.rounds] == [0, 12, 24, 36]
    for steps, before in spy.rounds:
        banked = (
            seen_by(method.teacher.classifier, before / 255) if len(before) else torch.empty(0, 14)
        )
        for whole, part, earlier, head, terms in steps:
            order = torch.cdist(earlier[0], banked).argmin(1) if len(before) else torch.arange(0)
            assert sorted(order.tolist()) == list(range(len(before)))  # each of them, once
            torch.testing.assert_close(earlier[0], banked[order], rtol=1e-4, atol=1e-5)
            wholes = torch.cat([seen_by(method.teacher.classifier, whole), banked[order]])
            parts = torch.cat([seen_by(method.teacher.classifier, part), earlier[1]])
            wholes, parts = embedded(head, wholes), embedded(head, parts)
            each = []
            for i, one in enumerate(parts):
                alike = [math.exp(float(one @ other) / 0.2) for other in wholes]
                each.append(-math.log(alike[i] / sum(alike)))
            expected = sum(each[:12]) / 12 + (sum(each[12:]) / len(before) if len(before) else 0)
            assert terms["cr"] == pytest.approx(expected, rel=1e-3)


def test_contrastive_term__gradient_of_the_part(cmi):
    method = cmi(cr_temperature=0.2)
    whole, part = torch.rand(2, 12, *SHAPE).unbind()
    views = [whole.requires_grad_(), part.requires_grad_()]
    earlier, synthesizer = torch.rand(2, 5, 14), method.synthesizer
    head = dict(synthesizer.head.named_parameters())
    seen = [
        torch.cat([seen_by(method.teacher.classifier, view), old])
        for view, old in zip(views, earlier, strict=True)
    ]
    wholes, parts = (embedded(head, features) for features in seen)
    alike = parts @ wholes.detach().T / 0.2
    each = alike.logsumexp(1) - alike.diag()
    expected = each[:12].mean() + each[12:].mean()
    synthesizer._earlier, synthesizer._views = tuple(earlier), lambda images: views
    targets = torch.arange(12) % 3
    found = synthesizer.loss(views[0], targets, method.teacher, method.student, True)["cr"]
    inputs = [*views, *synthesizer.head.parameters()]
    slopes = [torch.autograd.grad(x, inputs, materialize_grads=True) for x in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)
    assert not slopes[0][0].any()


def test_contrastive_term__alone(cmi, tiny_data, fit):
    """Other weights are 0; the same noise and weights, so without the term nothing ever moves."""

    def banked(cr_weight):
        torch.manual_seed(3)
        weights = {"bn_weight": 0, "ce_weight": 0, "adv_weight": 0, "cr_weight": cr_weight}
        method, data = cmi(generator_steps=10, generator_lr=0.01, **weights), tiny_data()
        fit(method, data, max_epochs=1, limit_train_batches=1)
        return data.bank.images.clone()

    assert not torch.equal(banked(0.0), banked(1.0))


def test_head__trained_all_along(cmi, tiny_data, fit):
    ages, starts, latents, heads = [], [], [], []

    class Watch(Callback):
        def on_train_start(self, trainer, method):
            def after(adam, *_):
                groups = [group["params"] for group in adam.param_groups]
                ages.append([{int(adam.state[p]["step"]) for p in group} for group in groups])
                heads.append(method.synthesizer.head[0].weight.detach().clone())

            def before(*_):
                starts.append(method.synthesizer.generator.layers[0].weight.detach().clone())
                latents.append(method.synthesizer.latents.detach().clone())

            trainer.optimizers[1].register_step_post_hook(after)
            trainer.optimizers[1].register_step_pre_hook(before)

    fit(cmi(), tiny_data(), callbacks=[Watch()])
    assert ages == [[{step % 4 + 1}, {step + 1}] for step in range(16)]
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(heads))
    for first, second in itertools.pairwise(range(0, 16, 4)):
        for kept, scale in ((starts, 0.02), (latents, 1.0)):
            assert float(kept[second].std()) == pytest.approx(scale, rel=0.2)
            assert float((kept[second] - kept[first]).std()) == pytest.approx(
                2**0.5 * scale, rel=0.3
            )
    assert all(not torch.equal(latents[i], latents[i + 1]) for i in (0, 4, 8))


def test_negatives__limit(cmi, tiny_data, fit):
    spy = Spy()
    fit(cmi(negatives=20), tiny_data(), callbacks=[spy])
    counts = [[len(steps[0][2][view]) for view in (0, 1)] for steps, _ in spy.rounds]
    assert counts == [[0, 0], [12, 12], [20, 20], [20, 20]]


@pytest.mark.parametrize(("layers", "features"), [("all", 464), ("stages", 16 + 32 + 64)])
def test_features(layers, features):
    nets = [Classifier(wrn16_1(10, channels=1), [0.4], [0.3]) for _ in "ts"]
    method = CMI(*nets, (1, 16, 16), layers=layers)
    assert method.synthesizer.head[0].weight.shape == (features, features)
    images = torch.rand(2, 1, 16, 16)
    seen, every = (
        method.synthesizer.features(method.teacher, images),
        seen_by(method.teacher.classifier, images),
    )
    if layers == "all":
        torch.testing.assert_close(seen, every)
    else:
        torch.testing.assert_close(seen[:, -64:], every[:, -64:])


def test_recipes(config):
    for data in ("cifar10", "cifar100"):
        cfg = config("model=cmi", f"data={data}")
        model, plan = cfg.model, cfg.plan
        assert (model.generator_steps, model.generator_lr, model.noise_features) == (200, 1e-3, 256)
        assert (model.bn_weight, model.ce_weight, model.adv_weight) == (1, 0.5, 0.5)
        assert (model.cr_weight, model.cr_temperature, model.embedding_features) == (0.8, 0.1, 256)
        assert plan.warmup_epochs * plan.warmup_rounds * plan.round_size == 51_200
        assert (plan.epochs, plan.kd_steps, plan.batch_size) == (40, 2000, 128)


def test_twins__spread(cmi, tiny_data, fit):
    """In the embedding of a trained head; nothing but the contrastive term moves the pixels."""
    method = cmi()
    fit(method, tiny_data())
    synthesizer, nets = method.synthesizer, (method.teacher, method.student)
    synthesizer.criterion.ce_weight = synthesizer.criterion.bn_weight = 0.0
    twin = torch.rand(1, *SHAPE)
    banked = twin + 0.02 * torch.rand(6, *SHAPE)
    seen = seen_by(method.teacher.classifier, banked)
    synthesizer._earlier = tuple(seen.detach().expand(2, -1, -1))
    images = (twin + 0.02 * torch.rand(6, *SHAPE)).requires_grad_()

    def alike():
        both = torch.cat([images.detach(), banked])
        unit = embedded(
            method.synthesizer.head.state_dict(), seen_by(method.teacher.classifier, both)
        )
        among = (unit[:6] @ unit[:6].T)[~torch.eye(6, dtype=torch.bool)]
        return float(among.mean()), float((unit[:6] @ unit[6:].T).mean())

    before = alike()
    adam = torch.optim.Adam([images], lr=0.01)
    for _ in range(30):
        synthesizer._views = lambda images: (images.detach(), images)
        loss = synthesizer.loss(images, torch.zeros(6).long(), *nets, True)["loss"]
        adam.zero_grad()
        loss.backward()
        adam.step()
    after = alike()
    assert all(new < old for new, old in zip(after, before, strict=True))


@pytest.mark.parametrize("flip", [False, True])
def test_views(cmi, flip):
    """The augmented image, and a part of the plain one."""
    crop = RandomCropFlip(2, flip=flip)
    synthesizer = cmi(augmentation=crop, part=(0.25, 0.5)).synthesizer
    images = torch.rand(12, *SHAPE)
    synthesizer.rng, rng = (torch.Generator().manual_seed(7) for _ in "ab")
    whole, part = synthesizer._views(images)
    assert torch.equal(whole, crop(images, rng))
    assert torch.equal(part, RandomResizedPart((0.25, 0.5), flip)(images, rng))


def test_options__refused(cmi):
    with pytest.raises(InputError, match="layers must be 'all' or 'stages'"):
        cmi(layers="last")
    with pytest.raises(InputError, match="two shares, the smaller first"):
        cmi(part=(0.5, 0.25))
