import itertools
import math
import shutil

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from nayer_pl import Classifier, Generator, InputError, RandomCropFlip
from nayer_pl.callbacks.checkpoint import Checkpoints
from nayer_pl.methods.cmi import CMI
from nayer_pl.networks import wrn16_1
from nayer_pl.synthesis.contrast import random_part

SHAPE = (1, 8, 8)


@pytest.fixture
def cmi(tiny_classifier):
    def make(**options):
        defaults = {
            "teacher": tiny_classifier(), "student": tiny_classifier(), "image_shape": SHAPE,
            "noise_features": 16, "generator_steps": 4, "embedding_features": 8, "round_size": 12,
            "learning_rate": 0.05, "check_teacher": False,
            "generator": lambda n, s: Generator(n, s, width=8),
        }  # fmt: skip
        return CMI(**{**defaults, **options})

    return make


class Spy(Callback):
    """Keeps every step's views, earlier features and terms, and each round's images."""

    def __init__(self):
        self.rounds, self.steps = [], []

    def on_fit_start(self, trainer, method):
        judge, synthesize = method._judge, method.synthesize

        def watched_judge(whole, part, earlier, targets, warm_up):
            terms = judge(whole, part, earlier, targets, warm_up)
            views = whole.detach().clone(), part.detach().clone()
            head = {n: t.clone() for n, t in method.head.state_dict().items()}
            self.steps.append((*views, earlier, head, {k: float(v) for k, v in terms.items()}))
            return terms

        def watched(targets, warm_up):
            self.steps, before = [], trainer.datamodule.bank.images.clone()
            images, _ = synthesize(targets, warm_up)
            self.rounds.append((images, self.steps, before, warm_up))
            return images, _

        method._judge, method.synthesize = watched_judge, watched


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


def test_the_contrastive_term_is_that_of_a_loop_over_new_and_banked_images(cmi, tiny_data, fit):
    """Features by hooks on the teacher, of the views and of what the bank held before the round."""
    method, spy = cmi(part=(1.0, 1.0), cr_temperature=0.2), Spy()
    fit(method, tiny_data(), callbacks=[spy])
    assert [len(before) for _, _, before, _ in spy.rounds] == [0, 12, 24, 36]
    for _, steps, before, _ in spy.rounds:
        banked = seen_by(method.teacher, before / 255) if len(before) else torch.empty(0, 14)
        for whole, part, earlier, head, terms in steps:
            order = torch.cdist(earlier[0], banked).argmin(1) if len(before) else torch.arange(0)
            assert sorted(order.tolist()) == list(range(len(before)))  # each of them, once
            torch.testing.assert_close(earlier[0], banked[order], rtol=1e-4, atol=1e-5)
            wholes = torch.cat([seen_by(method.teacher, whole), banked[order]])
            parts = torch.cat([seen_by(method.teacher, part), earlier[1]])
            wholes, parts = embedded(head, wholes), embedded(head, parts)
            each = []
            for i, one in enumerate(parts):
                alike = [math.exp(float(one @ other) / 0.2) for other in wholes]
                each.append(-math.log(alike[i] / sum(alike)))
            expected = sum(each[:12]) / 12 + (sum(each[12:]) / len(before) if len(before) else 0)
            assert terms["cr"] == pytest.approx(expected, rel=1e-3)


def test_gradients_of_the_contrastive_term_flow_through_the_part_only(cmi):
    method = cmi(cr_temperature=0.2)
    whole, part = torch.rand(2, 12, *SHAPE).unbind()
    views = [whole.requires_grad_(), part.requires_grad_()]
    earlier, head = torch.rand(2, 5, 14), dict(method.head.named_parameters())
    seen = [
        torch.cat([seen_by(method.teacher, view), old])
        for view, old in zip(views, earlier, strict=True)
    ]
    wholes, parts = (embedded(head, features) for features in seen)
    alike = parts @ wholes.detach().T / 0.2
    each = alike.logsumexp(1) - alike.diag()
    expected = each[:12].mean() + each[12:].mean()
    found = method._judge(*views, tuple(earlier), torch.arange(12) % 3, True)["cr"]
    inputs = [*views, *method.head.parameters()]
    slopes = [torch.autograd.grad(x, inputs, materialize_grads=True) for x in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)
    assert not slopes[0][0].any()


@pytest.mark.parametrize("flip", [False, True])
def test_views_are_the_augmented_image_and_a_part_of_the_plain_one(cmi, flip):
    crop = RandomCropFlip(2, flip=flip)
    method = cmi(augmentation=crop, part=(0.25, 0.5))
    images = torch.rand(12, *SHAPE, requires_grad=True)
    method.rng, rng = (torch.Generator().manual_seed(7) for _ in "ab")
    found = method._views(images)
    expected = crop(images, rng), random_part(images, (0.25, 0.5), flip, rng)
    for view, wanted in zip(found, expected, strict=True):
        assert torch.equal(view, wanted)
        slopes = [torch.autograd.grad(each.square().sum(), images)[0] for each in (view, wanted)]
        assert torch.equal(*slopes)


def test_the_contrastive_term_alone_changes_what_a_round_makes(cmi, tiny_data, fit):
    """Other weights are 0; the same noise and weights, so without the term nothing ever moves."""

    def banked(cr_weight):
        torch.manual_seed(3)
        weights = {"bn_weight": 0, "ce_weight": 0, "adv_weight": 0, "cr_weight": cr_weight}
        method, data = cmi(generator_steps=10, generator_lr=0.01, **weights), tiny_data()
        fit(method, data, max_epochs=1, limit_train_batches=1)
        return data.bank.images.clone()

    assert not torch.equal(banked(0.0), banked(1.0))


def test_loss_is_the_weighted_sum_and_warm_up_has_no_adversary(cmi, tiny_data, fit):
    weights = {"bn_weight": 3.0, "ce_weight": 0.7, "adv_weight": 2.0, "cr_weight": 1.5}
    spy = Spy()
    fit(cmi(**weights), tiny_data(), callbacks=[spy])
    assert [warm_up for *_, warm_up in spy.rounds] == [True, True, False, False]
    for _, steps, _, warm_up in spy.rounds:
        for *_, terms in steps:
            assert ("adv" in terms) != warm_up
            parts = {name: terms[name] for name in terms if name != "loss"}
            total = sum(weights[f"{name}_weight"] * value for name, value in parts.items())
            assert terms["loss"] == pytest.approx(total, rel=1e-4)


def test_gradient_is_that_of_the_label_and_the_adversarial_term(cmi, terms_written_out):
    method = cmi(bn_weight=0, ce_weight=0.7, adv_weight=2.0)
    terms_written_out(method, lambda x, y: method._judge(x, x, None, y, False)["loss"])


def test_gradients_push_a_new_image_away_from_an_earlier_one(cmi, tiny_data, fit):
    """In the embedding of a trained head; nothing but the contrastive term, and no other image."""
    method = cmi()
    fit(method, tiny_data())
    twin = torch.rand(1, *SHAPE)
    earlier = tuple(seen_by(method.teacher, twin)[None].expand(2, -1, -1))
    image = (twin + 0.02 * torch.rand_like(twin)).requires_grad_()

    def alike():
        both = torch.cat([seen_by(method.teacher, image.detach()), earlier[0]])
        one, other = embedded(method.head.state_dict(), both)
        return float(one @ other)

    first = alike()
    adam = torch.optim.Adam([image], lr=0.01)
    for _ in range(10):
        method.ce_weight = method.bn_weight = method.adv_weight = 0.0
        loss = method._judge(image.detach(), image, earlier, torch.tensor([0]), True)["loss"]
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert alike() < first


def test_head_is_trained_all_along_and_generator_starts_anew(cmi, tiny_data, fit):
    ages, starts, latents, heads = [], [], [], []

    class Watch(Callback):
        def on_train_start(self, trainer, method):
            def after(adam, *_):
                groups = [group["params"] for group in adam.param_groups]
                ages.append([{int(adam.state[p]["step"]) for p in group} for group in groups])
                heads.append(method.head[0].weight.detach().clone())

            def before(*_):
                starts.append(method.generator.layers[0].weight.detach().clone())
                latents.append(method.latents.detach().clone())

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


def test_no_more_negatives_than_wanted(cmi, tiny_data, fit):
    spy = Spy()
    fit(cmi(negatives=20), tiny_data(), callbacks=[spy])
    counts = [[len(steps[0][2][view]) for view in (0, 1)] for _, steps, *_ in spy.rounds]
    assert counts == [[0, 0], [12, 12], [20, 20], [20, 20]]


@pytest.mark.parametrize(("layers", "features"), [("all", 464), ("stages", 16 + 32 + 64)])
def test_features_are_of_all_layers_or_one_per_resolution(layers, features):
    nets = [Classifier(wrn16_1(10, channels=1), [0.4], [0.3]) for _ in "ts"]
    method = CMI(*nets, (1, 16, 16), layers=layers)
    assert method.head[0].weight.shape == (features, features)
    images = torch.rand(2, 1, 16, 16)
    seen, every = method._features(images), seen_by(method.teacher, images)
    if layers == "all":
        torch.testing.assert_close(seen, every)
    else:
        torch.testing.assert_close(seen[:, -64:], every[:, -64:])


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(cmi, tiny_data, fit, tmp_path):
    class KeepAll(Checkpoints):
        kept = 0

        def save(self, trainer):
            super().save(trainer)
            self.kept += 1
            shutil.copy(self.folder / "last.ckpt", self.folder / f"{self.kept}.ckpt")

    def run(**options):
        torch.manual_seed(3)
        method, data = cmi(augmentation=RandomCropFlip(1), negatives=20), tiny_data()
        saver = KeepAll(tmp_path / "checkpoints", minutes=0)
        fit(method, data, callbacks=[saver], enable_checkpointing=True, **options)
        nets = (method.student, method.head)
        weights = [tensor for net in nets for tensor in net.state_dict().values()]
        return [*weights, data.bank.images], saver.kept

    whole, kept = run()
    names = ["1.ckpt", "4.ckpt", f"{kept}.ckpt"]  # in warm-up, between two steps, near the end
    for name in names:
        shutil.copy(tmp_path / "checkpoints" / name, tmp_path / name)
    for name in names:
        again, _ = run(ckpt_path=tmp_path / name)
        assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))


def test_what_cannot_work_is_refused(cmi, tiny_classifier):
    with pytest.raises(
        InputError, match=r"no BatchNorm2d .*model=dfad works with every teacher.*feature maps\.$"
    ):
        cmi(teacher=tiny_classifier(norm=False))
    with pytest.raises(InputError, match=r"model.layers must be all or stages, not last"):
        cmi(layers="last")
    with pytest.raises(InputError, match=r"model.part must be two shares"):
        cmi(part=(0.5, 0.25))


def test_recipes_are_those_of_the_authors(config):
    for data in ("cifar10", "cifar100"):
        cfg = config("model=cmi", f"data={data}")
        model, plan = cfg.model, cfg.plan
        assert (model.generator_steps, model.generator_lr, model.noise_features) == (200, 1e-3, 256)
        assert (model.bn_weight, model.ce_weight, model.adv_weight) == (1, 0.5, 0.5)
        assert (model.cr_weight, model.cr_temperature, model.embedding_features) == (0.8, 0.1, 256)
        assert plan.warmup_epochs * plan.warmup_rounds * plan.round_size == 51_200
        assert (plan.epochs, plan.kd_steps, plan.batch_size) == (40, 2000, 128)


def test_a_batch_of_twins_spreads_from_each_other_and_from_the_memory(cmi, tiny_data, fit):
    """In the embedding of a trained head; nothing but the contrastive term moves the pixels."""
    method = cmi()
    fit(method, tiny_data())
    method.ce_weight = method.bn_weight = method.adv_weight = 0.0
    twin = torch.rand(1, *SHAPE)
    banked = twin + 0.02 * torch.rand(6, *SHAPE)
    earlier = tuple(seen_by(method.teacher, banked).expand(2, -1, -1))
    images = (twin + 0.02 * torch.rand(6, *SHAPE)).requires_grad_()

    def alike():
        both = torch.cat([images.detach(), banked])
        unit = embedded(method.head.state_dict(), seen_by(method.teacher, both))
        among = (unit[:6] @ unit[:6].T)[~torch.eye(6, dtype=torch.bool)]
        return float(among.mean()), float((unit[:6] @ unit[6:].T).mean())

    before = alike()
    adam = torch.optim.Adam([images], lr=0.01)
    for _ in range(30):
        loss = method._judge(images.detach(), images, earlier, torch.zeros(6).long(), True)["loss"]
        adam.zero_grad()
        loss.backward()
        adam.step()
    after = alike()
    assert all(new < old for new, old in zip(after, before, strict=True))
