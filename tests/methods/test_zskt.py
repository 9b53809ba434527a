from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from nayer_pl import ZSKT, Classifier, InputError, networks
from nayer_pl.bank import SynthesisRound

SHAPE = (1, 8, 8)
TURNS, STEPS = 2, 10


@pytest.fixture
def zskt(make):
    return partial(make, ZSKT)


@pytest.fixture
def data(turns):
    return turns(TURNS, STEPS)


def test_turn_is_one_batch_of_z(zskt, data, fit):
    """Ten steps on the same images, and no other turn sees them again."""
    method, seen = zskt(), []
    learn = method.student_objective
    method.student_objective = lambda x, y: seen.append(x.clone()) or learn(x, y)
    fit(method, data)
    turns = [seen[i : i + STEPS] for i in range(0, len(seen), STEPS)]
    assert len(turns) == 2 * TURNS
    for turn in turns:
        assert all(torch.equal(images, turn[0]) for images in turn)
    flat = torch.cat([turn[0] for turn in turns]).flatten(1)
    assert len(flat.unique(dim=0)) == 2 * TURNS * 16


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
    squares = [[x.square().mean(1).flatten(1) for x in maps] for maps in (own, theirs)]
    unit = [[each / each.norm(dim=1, keepdim=True) for each in maps] for maps in squares]
    gaps = [s - t for s, t in zip(*unit, strict=True)]
    divergence = (p * (p / q).log()).sum() / 16 / 3
    expected = divergence + 7.0 * sum(gap.square().mean() for gap in gaps)
    found = method.student_objective(images, None)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(each, method.student.parameters()) for each in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)
    assert not any(m._forward_hooks for m in [*method.student.modules(), *teacher.modules()])


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


def test_no_common_resolution(zskt, data, fit):
    flat = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), [0.4], [0.3])
    with pytest.raises(InputError, match=r"teacher: 8x8, 4x4; student: none.*beta=0"):
        zskt(student=flat)
    method = zskt(student=flat, beta=0)
    fit(method, data)
    assert method.student_updates == 2 * TURNS * STEPS


def test_batch_larger_than_a_turn(zskt, turns, fit):
    with pytest.raises(InputError, match=r"16 images.*batch_size is 17"):
        fit(zskt(), turns(batch_size=17))


@pytest.mark.parametrize("size", [0.01, 3.0])
@pytest.mark.parametrize("scaler", [None, torch.amp.GradScaler("cpu", init_scale=128.0)])
def test_gradients_are_clipped(zskt, size, scaler):
    """As torch does, also where they are multiplied by a loss's scale; short ones stay."""
    method, scale = zskt(), 1.0 if scaler is None else 128.0
    method.trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
    parameters = list(method.student.parameters())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, size * scale)
    method.on_before_optimizer_step(torch.optim.SGD(parameters, lr=0.1))
    found = [parameter.grad / scale for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, size)
    nn.utils.clip_grad_norm_(parameters, 5.0)
    torch.testing.assert_close(found, [parameter.grad for parameter in parameters])


def test_gradients_are_clipped__steps(zskt, turns, fit):
    """Those of every step, of the student and of the generator."""
    norms = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, method, outputs, item, i):
            generating = isinstance(item, SynthesisRound)
            net = method.synthesizer.generator if generating else method.student
            norms.append(float(torch.cat([p.grad.flatten() for p in net.parameters()]).norm()))

    fit(zskt(max_gradient_norm=1e-3), turns(TURNS, 2), callbacks=[Watch()])
    assert norms == pytest.approx([1e-3] * 12, rel=1e-3)
