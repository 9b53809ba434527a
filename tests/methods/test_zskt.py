import copy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from nayer_pl import BankOptions, Classifier, InputError, networks
from nayer_pl.bank import SynthesisRound
from nayer_pl.losses.functional import attention, attention_loss
from nayer_pl.methods.zskt import ZSKT, last_layers

SHAPE = (1, 8, 8)
TURNS, STEPS = 2, 10
PLAN = {
    "epochs": 2, "warmup_epochs": 0, "rounds_per_epoch": TURNS, "kd_steps": TURNS * STEPS,
    "round_size": 16, "batch_size": 16, "interleaved": True,
}  # fmt: skip
BANK = BankOptions(capacity=16)


@pytest.fixture
def zskt(tiny_classifier):
    def make(**options):
        defaults = {"round_size": 16, "noise_features": 6, "check_teacher": False}
        nets = {"teacher": tiny_classifier(), "student": tiny_classifier()}
        return ZSKT(image_shape=SHAPE, **{**nets, **defaults, **options})

    return make


def test_turn_is_one_batch_of_z(zskt, tiny_data, fit):
    """Ten steps on the same images, and no other turn sees them again."""
    method, seen = zskt(), []
    learn = method.student_objective
    method.student_objective = lambda x, y: seen.append(x.clone()) or learn(x, y)
    fit(method, tiny_data(PLAN, bank=BANK))
    turns = [seen[i : i + STEPS] for i in range(0, len(seen), STEPS)]
    assert len(turns) == 2 * TURNS
    for turn in turns:
        assert all(torch.equal(images, turn[0]) for images in turn)
    flat = torch.cat([turn[0] for turn in turns]).flatten(1)
    assert len(flat.unique(dim=0)) == 2 * TURNS * 16


def naive_attention(maps):
    """Zagoruyko and Komodakis, one pixel at a time."""
    pixels = [pixel for row in maps.unbind(2) for pixel in row.unbind(2)]
    means = [sum(channel**2 for channel in pixel.T) / pixel.shape[1] for pixel in pixels]
    length = sum(mean**2 for mean in means).sqrt()
    return torch.stack([mean / length for mean in means], dim=1)


def test_attention():
    student, teacher = torch.randn(3, 4, 5, 2), torch.randn(3, 7, 5, 2)
    a, b = naive_attention(student), naive_attention(teacher)
    torch.testing.assert_close(attention(student), a)
    squares = [(x - y) ** 2 for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)]
    assert float(attention_loss(student, teacher)) == pytest.approx(float(sum(squares)) / 30)


def test_student_objective(zskt):
    """Against the network written out layer by layer, not seen through hooks."""
    method = zskt(beta=7.0)
    images, teacher = torch.rand(16, *SHAPE), method.teacher.classifier

    def by_hand(net):
        net, x = net.network, (images - net.mean) / net.std
        first = net.conv1(x)
        second = net.conv2(net.norm1(first).relu())
        return net.head(net.norm2(second).relu().mean((2, 3))).softmax(1), first, second

    method.student.eval()
    (q, *own), (p, *theirs) = by_hand(method.student), by_hand(teacher)
    gaps = [naive_attention(s) - naive_attention(t) for s, t in zip(own, theirs, strict=True)]
    divergence = (p * (p / q).log()).sum() / 16 / 3
    expected = divergence + 7.0 * sum(gap.square().mean() for gap in gaps)
    found = method.student_objective(images, None)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(each, method.student.parameters()) for each in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)
    assert not any(m._forward_hooks for m in [*method.student.modules(), *teacher.modules()])


def test_student_objective__copy_of_the_teacher(zskt, tiny_classifier):
    teacher = tiny_classifier()
    method = zskt(teacher=teacher, student=copy.deepcopy(teacher))
    method.student.eval()
    loss = method.student_objective(torch.rand(16, *SHAPE), None)
    assert loss.item() == pytest.approx(0, abs=1e-6)


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
def test_pairs(teacher, student, pairs):
    nets = [
        Classifier(networks.create_model(name, 10), [0.5], [0.5]) for name in (teacher, student)
    ]
    method = ZSKT(*nets, (3, 32, 32), round_size=4, noise_features=6)
    assert method.pairs == pairs
    assert method.student_objective(torch.rand(2, 3, 32, 32), None).isfinite()


def test_last_layers():
    net = Classifier(networks.wrn16_1(10), [0.5], [0.5])
    assert last_layers(net, (3, 16, 16)) == {(16, 16): "block1", (8, 8): "block2", (4, 4): "block3"}


def test_no_common_resolution(zskt, tiny_data, fit):
    flat = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), [0.4], [0.3])
    with pytest.raises(InputError, match=r"teacher: 8x8, 4x4; student: none.*beta=0"):
        zskt(student=flat)
    method = zskt(student=flat, beta=0)
    fit(method, tiny_data(PLAN, bank=BANK))
    assert method.student_updates == 2 * TURNS * STEPS


def test_batch_larger_than_a_turn(zskt, tiny_data, fit):
    with pytest.raises(InputError, match=r"16 images.*batch_size is 17"):
        fit(zskt(), tiny_data({**PLAN, "batch_size": 17}))


class Gradients(Callback):
    """How long the gradient is that each step of an optimizer is made with."""

    def __init__(self):
        self.norms = {"student": [], "generator": []}

    def on_train_batch_end(self, trainer, method, outputs, item, i):
        generating = isinstance(item, SynthesisRound)
        net = method.synthesizer.generator if generating else method.student
        norm = float(torch.cat([p.grad.flatten() for p in net.parameters()]).norm())
        self.norms["generator" if generating else "student"].append(norm)


def test_long_gradients_are_clipped(zskt, tiny_data, fit):
    def norms(limit):
        gradients = Gradients()
        torch.manual_seed(0)
        adam = lambda parameters: torch.optim.Adam(parameters, lr=1e-9)  # noqa: E731
        method = zskt(max_gradient_norm=limit, optimizer=adam, generator_lr=0.0)
        fit(method, tiny_data(PLAN), callbacks=[gradients])
        return gradients.norms

    free = norms(1e9)
    limit = sorted(free["student"])[len(free["student"]) // 2]  # some are longer, some not
    clipped = norms(limit)
    assert clipped["student"] == pytest.approx([min(n, limit) for n in free["student"]], rel=0.01)
    tight = norms(1e-3)
    assert tight["student"] + tight["generator"] == pytest.approx([1e-3] * 44, rel=1e-3)


def test_scaled_gradients_are_clipped_alike(zskt):
    method, scaler = zskt(), torch.amp.GradScaler("cpu", init_scale=128.0)
    method.trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
    parameters = list(method.student.parameters())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 128.0)  # 1, times the scale
    method.on_before_optimizer_step(torch.optim.SGD(parameters, lr=0.1))
    found = [parameter.grad / 128 for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    nn.utils.clip_grad_norm_(parameters, 5.0)
    torch.testing.assert_close(found, [parameter.grad for parameter in parameters])


@pytest.mark.slow
def test_compiled_objective(zskt):
    method = zskt()
    images = torch.rand(16, *SHAPE)
    method.student.eval()

    def loss_and_gradient(objective):
        loss = objective(images, None)
        return [loss, *torch.autograd.grad(loss, list(method.student.parameters()))]

    plain = loss_and_gradient(method.student_objective)
    compiled = loss_and_gradient(torch.compile(method.student_objective, dynamic=False))
    for fast, expected in zip(compiled, plain, strict=True):
        torch.testing.assert_close(fast, expected, rtol=1e-3, atol=1e-5)
