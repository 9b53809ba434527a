import itertools
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from nayer_pl import CMI, Classifier, Generator, InputError, RandomCropFlip
from nayer_pl.networks import wrn16_1
from nayer_pl.synthesis import RandomResizedPart

SHAPE = (1, 8, 8)


@pytest.fixture
def cmi(tiny_classifier):
    def make(**options):
        defaults = {
            "teacher": tiny_classifier(), "student": tiny_classifier(), "image_shape": SHAPE,
            "noise_features": 16, "generator_steps": 4, "embedding_features": 8, "round_size": 12,
            "optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9), "check_teacher": False,
            "generator": partial(Generator, width=8),
        }  # fmt: skip
        return CMI(**{**defaults, **options})

    return make


class View:
    """Keeps what a view is made of, and what it becomes."""

    def __init__(self, view):
        self.view, self.sources, self.results = view, [], []

    def __call__(self, images, rng):
        found = self.view(images, rng)
        self.sources.append(images.detach())
        self.results.append(found.detach())
        return found


class Spy(Callback):
    """Keeps the bank, both views of earlier images, and every step's head, views and terms."""

    def __init__(self):
        self.rounds = []

    def on_fit_start(self, trainer, method):
        synthesizer = method.synthesizer
        start, loss = synthesizer.start_round, synthesizer.loss

        def watched_start(targets, teacher, bank):
            views = View(RandomCropFlip(1)), View(RandomResizedPart((0.25, 1.0)))
            synthesizer.augmentation, synthesizer.part = self.views = views
            start(targets, teacher, bank)
            none = torch.empty(0, *SHAPE)
            sources, earlier = (
                [torch.cat([none, *seen]) for seen in found]
                for found in ([v.sources for v in views], [v.results for v in views])
            )
            known = {"bank": bank.images / 255, "sources": sources, "earlier": earlier}
            self.rounds.append(SimpleNamespace(**known, steps=[]))

        def watched_loss(images, targets, teacher, student, warm_up):
            head = {name: t.clone() for name, t in synthesizer.head.state_dict().items()}
            terms = loss(images, targets, teacher, student, warm_up)
            values = {name: float(term.detach()) for name, term in terms.items()}
            views = [view.results[-1] for view in self.views]
            self.rounds[-1].steps.append((head, views, values, warm_up))
            return terms

        synthesizer.start_round, synthesizer.loss = watched_start, watched_loss


def seen_by(teacher, images):
    """Mean of every channel that goes into a BatchNorm, by hooks of its own: [B, features]."""
    found = []
    norms = [module for module in teacher.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    handles = [n.register_forward_hook(lambda _, x, y: found.append(x[0])) for n in norms]
    teacher(images)
    for handle in handles:
        handle.remove()
    return torch.cat([x.mean((2, 3)) for x in found], dim=1)


def embedded(head, features):
    hidden = (features @ head["0.weight"].T + head["0.bias"]).clamp(min=0)
    out = hidden @ head["2.weight"].T + head["2.bias"]
    return out / out.square().sum(1, keepdim=True).sqrt()


def rows(images):
    return sorted(images.flatten(1).tolist())


def test_contrastive_term(cmi, tiny_data, fit):
    """That of a loop over new and banked images; the loss is the weighted sum of all terms."""
    weights = {"bn_weight": 3.0, "ce_weight": 0.7, "adv_weight": 2.0, "cr_weight": 1.5}
    method, spy = cmi(cr_temperature=0.2, **weights), Spy()
    fit(method, tiny_data(), callbacks=[spy])
    assert [len(each.bank) for each in spy.rounds] == [0, 12, 24, 36]
    for number, each in enumerate(spy.rounds):
        assert torch.equal(*each.sources)
        assert rows(each.sources[0]) == rows(each.bank)  # each of them, once
        for head, views, terms, warm_up in each.steps:
            wholes, parts = (
                embedded(head, seen_by(method.teacher.classifier, torch.cat(pair)))
                for pair in zip(views, each.earlier, strict=True)
            )
            alike = (parts @ wholes.T / 0.2).exp()
            cross = [-math.log(row[i] / row.sum()) for i, row in enumerate(alike)]
            old = cross[12:]
            expected = sum(cross[:12]) / 12 + (sum(old) / len(old) if old else 0)
            assert terms["cr"] == pytest.approx(expected, rel=1e-3)
            assert warm_up == (number < 2) == ("adv" not in terms)
            parts = {name: terms[name] for name in terms if name != "loss"}
            total = sum(weights[f"{name}_weight"] * value for name, value in parts.items())
            assert terms["loss"] == pytest.approx(total, rel=1e-4)


def test_contrastive_term__gradient(cmi):
    """It flows through the part only."""
    method = cmi(cr_temperature=0.2)
    synthesizer, teacher = method.synthesizer, method.teacher
    whole, part = (torch.rand(12, *SHAPE, requires_grad=True) for _ in "wp")
    earlier, head = torch.rand(2, 5, 14), dict(synthesizer.head.named_parameters())
    synthesizer._earlier, synthesizer.rng = tuple(earlier), None
    synthesizer.augment, synthesizer.part = lambda images: whole, lambda images, rng: part
    found = synthesizer.loss(whole, torch.arange(12) % 3, teacher, method.student, True)["cr"]
    wholes, parts = (
        embedded(head, torch.cat([seen_by(teacher.classifier, view), old]))
        for view, old in zip((whole, part), earlier, strict=True)
    )
    alike = parts @ wholes.detach().T / 0.2
    each = alike.logsumexp(1) - alike.diag()
    expected = each[:12].mean() + each[12:].mean()
    inputs = [whole, part, *synthesizer.head.parameters()]
    slopes = [torch.autograd.grad(x, inputs, materialize_grads=True) for x in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)
    assert not slopes[0][0].any()


@pytest.mark.parametrize("flip", [False, True])
def test_views(cmi, flip):
    """The augmented image, and a part of the plain one."""
    crop, images = RandomCropFlip(2, flip=flip), torch.rand(12, *SHAPE)
    synthesizer = cmi(augmentation=crop, part=(0.25, 0.5)).synthesizer
    synthesizer.rng, rng = (torch.Generator().manual_seed(7) for _ in "ab")
    expected = crop(images, rng), RandomResizedPart((0.25, 0.5), flip)(images, rng)
    assert all(map(torch.equal, synthesizer._views(images), expected))


def test_cr_weight__zero(cmi, tiny_data, fit):
    spy = Spy()
    fit(cmi(cr_weight=0), tiny_data(), callbacks=[spy])
    assert not any("cr" in terms for each in spy.rounds for *_, terms, _ in each.steps)


def test_fresh_start(cmi, tiny_data, fit):
    """Generator and z start again in every round, and the head is trained all along."""
    ages, weights, latents, heads = [], [], [], []

    class Watch(Callback):
        def on_train_start(self, trainer, method):
            synthesizer = method.synthesizer

            def before(*_):
                weights.append(synthesizer.generator.layers[0].weight.detach().clone())
                latents.append(synthesizer.latents.detach().clone())

            def after(adam, *_):
                groups = [group["params"] for group in adam.param_groups]
                ages.append([{int(adam.state[p]["step"]) for p in group} for group in groups])
                heads.append(synthesizer.head[0].weight.detach().clone())

            trainer.optimizers[1].register_step_pre_hook(before)
            trainer.optimizers[1].register_step_post_hook(after)

    fit(cmi(), tiny_data(), callbacks=[Watch()])
    assert ages == [[{step % 4 + 1}, {step + 1}] for step in range(16)]
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(heads))
    assert not any(torch.equal(latents[i], latents[i + 1]) for i in (0, 4, 8))
    for kept, scale in ((weights, 0.02), (latents, 1.0)):
        for first, second in itertools.pairwise(kept[::4]):
            assert float(second.std()) == pytest.approx(scale, rel=0.2)
            assert float((second - first).std()) == pytest.approx(2**0.5 * scale, rel=0.3)


def test_negatives(cmi, tiny_data, fit):
    spy = Spy()
    fit(cmi(negatives=20), tiny_data(), callbacks=[spy])
    counts = [[len(view) for view in each.earlier] for each in spy.rounds]
    assert counts == [[0, 0], [12, 12], [20, 20], [20, 20]]


@pytest.mark.parametrize(("layers", "features"), [("all", 464), ("stages", 16 + 32 + 64)])
def test_layers(layers, features):
    """All layers, or the last one at each resolution."""
    nets = [Classifier(wrn16_1(10, channels=1), [0.4], [0.3]) for _ in "ts"]
    method, images = CMI(*nets, (1, 16, 16), layers=layers), torch.rand(2, 1, 16, 16)
    assert method.synthesizer.head[0].weight.shape == (features, features)
    seen = method.synthesizer.features(method.teacher, images)
    every = seen_by(method.teacher.classifier, images)
    last = slice(None) if layers == "all" else slice(-64, None)
    torch.testing.assert_close(seen[:, last], every[:, last])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "last"}, "layers must be"),
        ({"part": (0, 1)}, r"part\[0\] must be"),
        ({"part": (0.5, 0.25)}, "part.*the smaller first"),
    ],
)
def test_options(cmi, options, message):
    with pytest.raises(InputError, match=message):
        cmi(**options)


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
def test_recipe(config, data):
    """The numbers of its authors."""
    cfg = config("model=cmi", f"data={data}")
    model, plan = cfg.model, cfg.plan
    assert (model.generator_steps, model.generator_lr, model.noise_features) == (200, 1e-3, 256)
    assert (model.bn_weight, model.ce_weight, model.adv_weight) == (1, 0.5, 0.5)
    assert (model.cr_weight, model.cr_temperature, model.embedding_features) == (0.8, 0.1, 256)
    assert plan.warmup_epochs * plan.warmup_rounds * plan.round_size == 51_200
    assert (plan.epochs, plan.kd_steps, plan.batch_size) == (40, 2000, 128)
