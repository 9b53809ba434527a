import copy
import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.distributions import Categorical

from nayer_pl import BankOptions, Classifier, InputError, networks
from nayer_pl.app.train import build
from nayer_pl.bank import DistillationBatch, MemoryBank
from nayer_pl.bank.epoch import EpochPlan
from nayer_pl.methods.dafl import DAFL, activation_loss, last_linear, onehot_loss
from nayer_pl.networks.hooks import layer_inputs

SHAPE = (1, 8, 8)
PLAN = {
    "epochs": 2, "warmup_epochs": 0, "rounds_per_epoch": 3, "kd_steps": 3, "round_size": 16,
    "batch_size": 16, "interleaved": True,
}  # fmt: skip


@pytest.fixture
def dafl(tiny_classifier):
    def make(**options):
        nets = {"teacher": tiny_classifier(), "student": tiny_classifier()}
        defaults = {"noise_features": 6, "check_teacher": False, "generator_lr": 1e-3}
        return DAFL(image_shape=SHAPE, **{**nets, **defaults, **options})

    return make


def test_onehot_term_is_minus_the_log_of_the_highest_probability():
    logits = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.1, 0.6]]).log() + 5
    expected = -(math.log(0.7) + math.log(0.6)) / 2
    assert float(onehot_loss(logits)) == pytest.approx(expected, rel=1e-5)


def test_activation_term_is_minus_the_mean_absolute_feature():
    assert float(activation_loss(torch.tensor([[1.0, -2.0, 0.0], [3.0, 0.5, -1.0]]))) == -1.25


def test_loss_is_the_weighted_sum_of_three_terms(dafl):
    """Against the network written out layer by layer, not seen through hooks."""
    method = dafl(onehot_weight=0.5, activation_weight=3.0, balance_weight=7.0)
    images = torch.rand(16, *SHAPE, requires_grad=True)
    net, x = method.teacher.network, (images - method.teacher.mean) / method.teacher.std
    features = net.norm2(net.conv2(net.norm1(net.conv1(x)).relu())).relu().mean((2, 3))
    p = (features @ net.head.weight.T + net.head.bias).softmax(1)
    expected = {
        "onehot": -p.max(1).values.log().mean(),
        "activation": -features.abs().sum() / features.numel(),
        "balance": -Categorical(p.mean(0)).entropy(),
    }
    weights = {"onehot": 0.5, "activation": 3.0, "balance": 7.0}
    expected["loss"] = sum(weight * expected[name] for name, weight in weights.items())
    terms = method.judge(images)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)
    slopes = [torch.autograd.grad(each["loss"], images)[0] for each in (terms, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)
    assert not any(m._forward_pre_hooks for m in method.teacher.modules())


class Crooked(nn.Module):
    """The head is registered first, the layer before it is called twice, one is never called."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Dropout(), nn.Linear(6, 3))
        self.unused = nn.Linear(6, 3)
        self.inner = nn.Linear(6, 6)
        self.squeeze = nn.Linear(8, 6)
        self.conv = nn.Conv2d(1, 8, 3)

    def forward(self, x):
        x = self.squeeze(self.conv(x).amax((2, 3)))
        return self.head(self.inner(self.inner(x).relu()).tanh())


@pytest.mark.parametrize(
    ("build_network", "shape", "head"),
    [
        (lambda: networks.wrn16_1(10), (3, 16, 16), "fc"),
        (lambda: networks.wrn40_2(10), (3, 8, 8), "fc"),
        (lambda: networks.resnet18(10), (3, 8, 8), "linear"),
        (lambda: networks.resnet20(10), (3, 16, 16), "fc"),
        (lambda: networks.vgg11(10), (3, 16, 16), "classifier"),
        (lambda: networks.mobilenetv2(10), (3, 16, 16), None),
        (Crooked, SHAPE, "head.1"),
    ],
    ids=["wrn16_1", "wrn40_2", "resnet18", "resnet20", "vgg11", "mobilenetv2", "custom"],
)
def test_features_are_what_goes_into_the_last_linear_layer(build_network, shape, head):
    """A network whose head is taken off puts them out; head and features make up the logits."""
    net = Classifier(build_network(), [0.4], [0.3]).freeze()
    images = torch.rand(4, *shape)
    name = last_linear(net, shape)
    assert head in (name, None)
    logits, inputs = layer_inputs(net, images, [name])
    features, layer = inputs[name], net.network.get_submodule(name)
    assert torch.equal(logits, net(images))
    torch.testing.assert_close(F.linear(features, layer.weight, layer.bias), logits)
    headless = copy.deepcopy(net)
    headless.network.set_submodule(name, nn.Identity())
    torch.testing.assert_close(headless(images), features)
    assert features.std(0).max() > 0


def test_looking_for_the_last_layer_leaves_no_trace():
    net = Classifier(networks.wrn16_1(10), [0.5], [0.5]).train()
    before = copy.deepcopy(net.state_dict())
    last_linear(net, (3, 16, 16))
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


class Convolutional(nn.Sequential):
    """Its only linear layer is inside; a convolution puts out the logits."""

    def __init__(self):
        inside = nn.Conv2d(1, 8, 8), nn.Flatten(), nn.Linear(8, 5), nn.Unflatten(1, (5, 1, 1))
        super().__init__(*inside, nn.Conv2d(5, 3, 1), nn.Flatten())


@pytest.mark.parametrize(
    "network", [Convolutional, lambda: nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())]
)
def test_a_teacher_without_a_last_linear_layer_is_refused(dafl, network, tiny_data, fit):
    teacher = Classifier(network(), [0.4], [0.3])
    with pytest.raises(InputError, match=r"linear layer.*activation_weight=0.*model=zskt"):
        dafl(teacher=teacher)
    method = dafl(teacher=teacher, activation_weight=0)
    assert "activation" not in method.judge(torch.rand(4, *SHAPE))
    fit(method, tiny_data(PLAN, bank=BankOptions(capacity=16)))
    assert method.student_updates == 6


def test_the_generator_does_not_look_at_the_student(dafl):
    method, images = dafl(), torch.rand(16, *SHAPE)
    before = method.judge(images)["loss"]
    for parameter in method.student.parameters():
        nn.init.constant_(parameter, torch.nan)
    assert torch.equal(method.judge(images)["loss"], before)


def test_student_learns_the_divergence_at_temperature_one(dafl):
    method, images = dafl(), torch.rand(16, *SHAPE)
    method.student.eval()
    p, q = method.teacher(images).softmax(1), method.student(images).softmax(1)
    expected = (p * (p / q).log()).sum() / 16
    torch.testing.assert_close(method.student_loss(images), expected, rtol=1e-4, atol=1e-6)


def test_students_rate_steps_down_and_the_generators_stays(dafl, tiny_data, fit):
    rates = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, method, item, i):
            if i == 0:
                rates.append([o.param_groups[0]["lr"] for o in trainer.optimizers])

    plan = {**PLAN, "epochs": 5, "rounds_per_epoch": 1, "kd_steps": 1}
    fit(dafl(), tiny_data(plan, bank=BankOptions(capacity=16)), callbacks=[Watch()])
    assert rates == [pytest.approx([rate, 1e-3]) for rate in (0.1, 0.1, 0.01, 0.01, 0.001)]


def test_it_goes_on_from_the_middle_of_an_epoch(dafl, tiny_data, fit, tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, method, outputs, item, i):
            if trainer.current_epoch == 1 and i == 2:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    def run(**options):
        torch.manual_seed(3)
        method = dafl()
        fit(method, tiny_data(PLAN, bank=BankOptions(capacity=16)), **options)
        return method.student.state_dict()

    whole = run(callbacks=[Save()])
    again = run(ckpt_path=tmp_path / "middle.ckpt")
    assert all(torch.equal(whole[key], value) for key, value in again.items())


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "digits", "fashion_mnist"])
def test_recipes(config, data):
    """Turns of one step each; the published weight of the entropy, in nats."""
    cfg = config("model=dafl", f"data={data}")
    plan = build(cfg.plan)
    bank = MemoryBank(1, (1, 2, 2))
    bank.add(torch.rand(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64))
    items = EpochPlan(plan, 0, 3, bank)
    kinds = [
        "RS"[isinstance(item, DistillationBatch)] for item, _ in zip(items, range(8), strict=False)
    ]
    assert "".join(kinds) == "RSRSRSRS"
    assert cfg.model.balance_weight == pytest.approx(5 / math.log(10), rel=1e-3)
    assert cfg.model.generator_steps == 1
