import copy
import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim import Adam

from nayer_pl import BankOptions, Classifier, InputError, networks
from nayer_pl.app.train import build
from nayer_pl.bank import DistillationBatch, MemoryBank, SynthesisRound
from nayer_pl.bank.epoch import EpochPlan
from nayer_pl.methods.zskt import ZSKT, attention, attention_loss, last_layers

SHAPE = (1, 8, 8)
TURNS, STEPS = 2, 10
PLAN = {
    "epochs": 2, "warmup_epochs": 0, "rounds_per_epoch": TURNS, "kd_steps": TURNS * STEPS,
    "round_size": 16, "batch_size": 16, "interleaved": True,
}  # fmt: skip


@pytest.fixture
def zskt(tiny_classifier):
    def make(**options):
        defaults = {"round_size": 16, "noise_features": 6, "check_teacher": False}
        nets = {"teacher": tiny_classifier(), "student": tiny_classifier()}
        return ZSKT(image_shape=SHAPE, **{**nets, **defaults, **options})

    return make


def kl(teacher_logits, student_logits):
    """KL(teacher || student) of each image, written out."""
    p, q = teacher_logits.softmax(1), student_logits.softmax(1)
    return (p * (p.log() - q.log())).sum(1)


class Duel(Callback):
    """What each side's turn does to the divergence on the images of the same z."""

    def __init__(self):
        self.made, self.learned, self.seen = [], [], []

    def on_fit_start(self, trainer, method):
        learn = method.student_loss
        method.student_loss = lambda images: self.seen.append(images.clone()) or learn(images)

    def measure(self, method, generator, training):
        student = copy.deepcopy(method.student).train(training)
        with torch.no_grad():
            images = copy.deepcopy(generator)(method.z)
            return float(kl(method.teacher(images), student(images)).mean())

    def on_train_batch_start(self, trainer, method, item, i):
        if isinstance(item, SynthesisRound):
            self.before = copy.deepcopy(method.generator)

    def on_train_batch_end(self, trainer, method, outputs, item, i):
        if isinstance(item, SynthesisRound):
            old, new = (self.measure(method, g, False) for g in (self.before, method.generator))
            self.made.append((old, new))
            self.start = self.measure(method, method.generator, True)
        elif len(self.seen) % STEPS == 0:
            self.learned.append((self.start, self.measure(method, method.generator, True)))


def test_generator_moves_away_from_the_student_and_the_student_follows(zskt, tiny_data, fit):
    duel = Duel()
    method = zskt(beta=0)
    fit(method, tiny_data(PLAN, bank=BankOptions(capacity=16)), callbacks=[duel])
    assert len(duel.made) == len(duel.learned) == 2 * TURNS
    assert all(new > old for old, new in duel.made)
    assert all(new < old for old, new in duel.learned)


def test_a_turn_is_one_batch_of_z(zskt, tiny_data, fit):
    """Ten steps on the same images, and no other turn sees them again."""
    duel = Duel()
    fit(zskt(), tiny_data(PLAN, bank=BankOptions(capacity=16)), callbacks=[duel])
    turns = [duel.seen[i : i + STEPS] for i in range(0, len(duel.seen), STEPS)]
    assert len(turns) == 2 * TURNS
    for turn in turns:
        assert all(torch.equal(images, turn[0]) for images in turn)
    flat = torch.cat([turn[0] for turn in turns]).flatten(1)
    assert len(flat.unique(dim=0)) == 2 * TURNS * 16


@pytest.mark.parametrize("beta", [0.0, 250.0])
def test_a_copy_of_the_teacher_has_nothing_to_learn(zskt, tiny_classifier, beta):
    teacher, other = tiny_classifier().eval(), tiny_classifier().eval()
    images = torch.rand(16, *SHAPE)

    def losses(student):
        method = zskt(teacher=copy.deepcopy(teacher), student=student, beta=beta)
        return float(method.judge(images)["loss"].detach()), float(
            method.student_loss(images).detach()
        )

    assert losses(copy.deepcopy(teacher)) == pytest.approx((0, 0), abs=1e-6)
    generators, students = losses(other)
    assert generators == pytest.approx(-float(kl(teacher(images), other(images)).mean()), rel=1e-4)
    assert generators < -1e-3
    assert students > 1e-3


def test_generators_gradient_is_that_of_the_divergence_through_both_networks(zskt):
    method, images = zskt(), torch.rand(16, *SHAPE, requires_grad=True)
    method.student.eval()
    expected = -kl(method.teacher(images), method.student(images)).mean()
    losses = method.judge(images)["loss"], expected
    slopes = [torch.autograd.grad(loss, images)[0] for loss in losses]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)


def naive_attention(maps):
    """Zagoruyko and Komodakis, one pixel at a time."""
    pixels = [pixel for row in maps.unbind(2) for pixel in row.unbind(2)]
    means = [sum(channel**2 for channel in pixel.T) / pixel.shape[1] for pixel in pixels]
    length = sum(mean**2 for mean in means).sqrt()
    return torch.stack([mean / length for mean in means], dim=1)


def test_attention_is_the_slow_loops():
    student, teacher = torch.randn(3, 4, 5, 2), torch.randn(3, 7, 5, 2)
    a, b = naive_attention(student), naive_attention(teacher)
    torch.testing.assert_close(attention(student), a)
    squares = [(x - y) ** 2 for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)]
    assert float(attention_loss(student, teacher)) == pytest.approx(float(sum(squares)) / 30)


def test_student_loss_is_divergence_over_classes_and_weighted_attention(zskt):
    """Against the network written out layer by layer, not seen through hooks."""
    method = zskt(beta=7.0)
    images = torch.rand(16, *SHAPE)

    def by_hand(net):
        net, x = net.network, (images - net.mean) / net.std
        first = net.conv1(x)
        second = net.conv2(net.norm1(first).relu())
        return net.head(net.norm2(second).relu().mean((2, 3))), first, second

    method.student.eval()
    (logits, *own), (wanted, *theirs) = by_hand(method.student), by_hand(method.teacher)
    gaps = [naive_attention(s) - naive_attention(t) for s, t in zip(own, theirs, strict=True)]
    expected = kl(wanted, logits).mean() / 3 + 7.0 * sum(gap.square().mean() for gap in gaps)
    found = method.student_loss(images)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(each, method.student.parameters()) for each in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)
    assert not method.student.network._forward_hooks
    assert not any(m._forward_hooks for m in [*method.student.modules(), *method.teacher.modules()])


STAGES = ["layer1", "layer2", "layer3", "layer4"]
BLOCKS = ["block1", "block2", "block3"]


@pytest.mark.parametrize(
    ("teacher", "student", "pairs"),
    [
        ("wrn40_2", "wrn16_1", [*zip(BLOCKS, BLOCKS, strict=True)]),
        ("resnet34", "resnet18", [*zip(STAGES, STAGES, strict=True)]),
        ("resnet34", "wrn16_2", [*zip(STAGES[:3], BLOCKS, strict=True)]),
        ("vgg11", "resnet20", [*zip(["block0", "block1", "block2"], STAGES[:3], strict=True)]),
    ],
)
def test_maps_are_paired_by_resolution(teacher, student, pairs):
    nets = [Classifier(getattr(networks, name)(10), [0.5], [0.5]) for name in (teacher, student)]
    method = ZSKT(*nets, (3, 32, 32), round_size=4, noise_features=6)
    assert method.pairs == pairs
    assert method.student_loss(torch.rand(2, 3, 32, 32)).isfinite()


def test_looking_for_layers_leaves_no_trace():
    net = Classifier(networks.wrn16_1(10), [0.5], [0.5]).train()
    before = copy.deepcopy(net.state_dict())
    assert last_layers(net, (3, 16, 16)) == {(16, 16): "block1", (8, 8): "block2", (4, 4): "block3"}
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_without_a_common_resolution_beta_must_be_zero(zskt, tiny_data, fit):
    flat = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), [0.4], [0.3])
    with pytest.raises(InputError, match=r"teacher: 8x8, 4x4; student: none.*model\.beta=0"):
        zskt(student=flat)
    method = zskt(student=flat, beta=0)
    fit(method, tiny_data(PLAN, bank=BankOptions(capacity=16)))
    assert method.student_updates == 2 * TURNS * STEPS


def test_a_batch_larger_than_a_turn_is_refused(zskt, tiny_data, fit):
    with pytest.raises(InputError, match=r"16 images.*plan\.batch_size is 17"):
        fit(zskt(), tiny_data({**PLAN, "batch_size": 17}))


def test_students_adam_falls_along_a_cosine_and_the_generators_with_it(zskt, tiny_data, fit):
    rates = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, method, item, i):
            if i == 0:
                rates.append({type(o): o.param_groups[0]["lr"] for o in trainer.optimizers[:1]})
                rates.append({type(o): o.param_groups[0]["lr"] for o in trainer.optimizers[1:]})

    plan = {**PLAN, "epochs": 4, "rounds_per_epoch": 1, "kd_steps": 1}
    fit(zskt(learning_rate=2e-3, generator_lr=1e-3), tiny_data(plan), callbacks=[Watch()])
    cosine = [(1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert rates[::2] == [{Adam: pytest.approx(2e-3 * share)} for share in cosine]
    assert rates[1::2] == [{Adam: pytest.approx(1e-3 * share)} for share in cosine]


def test_it_goes_on_from_the_middle_of_a_turn(zskt, tiny_data, fit, tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, method, outputs, item, i):
            if trainer.current_epoch == 1 and i == STEPS // 2:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    def run(**options):
        torch.manual_seed(3)
        method = zskt()
        fit(method, tiny_data(PLAN, bank=BankOptions(capacity=16)), **options)
        return method.student.state_dict()

    whole = run(callbacks=[Save()])
    again = run(ckpt_path=tmp_path / "middle.ckpt")
    assert all(torch.equal(whole[key], value) for key, value in again.items())


class Gradients(Callback):
    """How long the gradient is that each step of an optimizer is made with."""

    def __init__(self):
        self.norms = {"student": [], "generator": []}

    def on_train_batch_end(self, trainer, method, outputs, item, i):
        name = "generator" if isinstance(item, SynthesisRound) else "student"
        grads = [p.grad.flatten() for p in getattr(method, name).parameters()]
        self.norms[name].append(float(torch.cat(grads).norm()))


def test_long_gradients_are_clipped_and_short_ones_left_alone(zskt, tiny_data, fit):
    def norms(limit):
        gradients = Gradients()
        torch.manual_seed(0)
        method = zskt(max_gradient_norm=limit, learning_rate=1e-9, generator_lr=0.0)
        fit(method, tiny_data(PLAN), callbacks=[gradients])
        return gradients.norms

    free = norms(1e9)
    limit = sorted(free["student"])[len(free["student"]) // 2]  # some are longer, some not
    clipped = norms(limit)
    assert clipped["student"] == pytest.approx([min(n, limit) for n in free["student"]], rel=0.01)
    tight = norms(1e-3)
    assert tight["student"] + tight["generator"] == pytest.approx([1e-3] * 44, rel=1e-3)


def test_scaled_gradients_are_clipped_as_if_they_were_not(zskt):
    method, scaler = zskt(), torch.amp.GradScaler("cpu", init_scale=128.0)
    method.trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
    optimizer = method.student_optimizer()
    for parameter in method.student.parameters():
        parameter.grad = torch.full_like(parameter, 128.0)  # 1, times the scale
    method.on_before_optimizer_step(optimizer)
    grads = [parameter.grad.flatten() / 128 for parameter in method.student.parameters()]
    expected = [torch.ones_like(parameter) for parameter in method.student.parameters()]
    for copy_of, grad in zip(method.student.parameters(), expected, strict=True):
        copy_of.grad = grad
    nn.utils.clip_grad_norm_(method.student.parameters(), 5.0)
    torch.testing.assert_close(
        torch.cat(grads), torch.cat([p.grad.flatten() for p in method.student.parameters()])
    )


@pytest.mark.parametrize(
    ("data", "images"),
    [
        ("cifar10", 80_000 * 11 * 128),  # as published
        ("cifar100", 80_000 * 11 * 128),
        ("digits", 120_000),  # what every method may use there
        ("fashion_mnist", 570_000),
    ],
)
def test_recipes_take_one_step_of_the_generator_to_ten_of_the_student(config, data, images):
    cfg = config("model=zskt", f"data={data}")
    plan = build(cfg.plan)
    bank = MemoryBank(1, (1, 2, 2))
    bank.add(torch.rand(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64))
    items = EpochPlan(plan, 0, 3, bank)
    kinds = [
        "RS"[isinstance(item, DistillationBatch)] for item, _ in zip(items, range(33), strict=False)
    ]
    assert "".join(kinds) == 3 * "RSSSSSSSSSS"
    assert cfg.model.generator_steps == 1
    assert plan.batch_size == plan.round_size
    assert plan.images + plan.epochs * plan.kd_steps * plan.batch_size == pytest.approx(
        images, 0.05
    )


@pytest.mark.slow
def test_compiled_step_computes_the_same(zskt):
    method = zskt()
    images = torch.rand(16, *SHAPE)
    method.student.eval()

    def loss_and_gradient(step):
        loss = step(images)
        return [loss, *torch.autograd.grad(loss, list(method.student.parameters()))]

    plain = loss_and_gradient(method.student_loss)
    compiled = loss_and_gradient(torch.compile(method.student_loss, dynamic=False))
    for fast, expected in zip(compiled, plain, strict=True):
        torch.testing.assert_close(fast, expected, rtol=1e-3, atol=1e-5)
