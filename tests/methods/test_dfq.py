import copy
import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.distributions import Categorical, Normal, kl_divergence

from nayer_pl import BankOptions
from nayer_pl.losses.functional import entropy_loss
from nayer_pl.losses.inversion import GaussianMatching
from nayer_pl.methods.dfq import DFQ
from nayer_pl.networks.teacher import FrozenTeacher

SHAPE = (1, 8, 8)
PLAN = {
    "epochs": 1, "warmup_epochs": 0, "rounds_per_epoch": 3, "kd_steps": 3, "round_size": 16,
    "batch_size": 16, "interleaved": True,
}  # fmt: skip


@pytest.fixture
def dfq(tiny_classifier):
    def make(**options):
        nets = {"teacher": tiny_classifier(), "student": tiny_classifier()}
        defaults = {"noise_features": 6, "check_teacher": False}
        return DFQ(image_shape=SHAPE, **{**nets, **defaults, **options})

    return make


def statistics_loss(teacher, images):
    return GaussianMatching(teacher.norms)(teacher.observe(images).statistics)


def norm_inputs(classifier, images):
    """The network written out: the input and the module of each BatchNorm."""
    net, x = classifier.network, (images - classifier.mean) / classifier.std
    first = net.conv1(x)
    return [(first, net.norm1), (net.conv2(net.norm1(first).relu()), net.norm2)]


@pytest.fixture
def teacher(tiny_classifier):
    return FrozenTeacher(tiny_classifier())


def test_statistics_term(teacher):
    """Summed over the channels of all layers, as torch.distributions has each."""
    images, expected = torch.rand(16, *SHAPE), 0.0
    for x, norm in norm_inputs(teacher.classifier, images):
        flat = x.transpose(0, 1).flatten(1).double()
        for channel, mean, variance in zip(flat, norm.running_mean, norm.running_var, strict=True):
            spread = (channel.var(correction=0) + norm.eps).sqrt()
            data = Normal(mean.double(), (variance.double() + norm.eps).sqrt())
            expected += float(kl_divergence(Normal(channel.mean(), spread), data))
    assert statistics_loss(teacher, images).item() == pytest.approx(expected, rel=1e-4)
    assert expected > 0.1


def test_statistics_term__known_batch(teacher):
    images = torch.rand(16, *SHAPE)
    for layer in (0, 1):  # the second one's input depends on the first one
        x, norm = norm_inputs(teacher.classifier, images)[layer]
        norm.running_mean.copy_(x.mean((0, 2, 3)))
        norm.running_var.copy_(x.var((0, 2, 3), correction=0))
    assert statistics_loss(teacher, images).item() == pytest.approx(0, abs=1e-4)


def test_statistics_term__constant_channels(teacher):
    nn.init.zeros_(teacher.classifier.network.conv1.weight)
    nn.init.zeros_(teacher.classifier.network.norm1.running_var)
    images = torch.rand(4, *SHAPE, requires_grad=True)
    loss = statistics_loss(teacher, images)
    loss.backward()
    assert loss.isfinite()
    assert images.grad.isfinite().all()


def test_entropy_term__certain_teacher():
    sure = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    entropy_loss(sure).backward()
    assert sure.grad.isfinite().all()


@pytest.mark.parametrize("warm_up", [False, True])
def test_loss(dfq, warm_up):
    weights = {"bn": 0.5, "entropy": 3.0, "balance": 7.0, "divergence": -11.0}
    method = dfq(bn_weight=0.5, entropy_weight=3.0, balance_weight=7.0, adv_weight=11.0)
    images = torch.rand(16, *SHAPE, requires_grad=True)
    logits, student = method.teacher(images), method.student.eval()
    predicted = Categorical(logits=logits)
    expected = {
        "bn": statistics_loss(method.teacher, images),
        "entropy": predicted.entropy().mean(),
        "balance": -Categorical(logits.softmax(1).mean(0)).entropy(),
        "divergence": kl_divergence(predicted, Categorical(logits=student(images))).mean(),
    }
    if warm_up:
        del expected["divergence"]
        student = None  # nobody may ask it
    expected["loss"] = sum(weights[name] * value for name, value in expected.items())
    terms = method.synthesizer.loss(images, None, method.teacher, student, warm_up)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-6)
    slopes = [torch.autograd.grad(each["loss"], images)[0] for each in (terms, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)


def test_warm_up(dfq, tiny_data, fit):
    """The generator learns the statistics, and the student waits."""
    method, found = dfq(generator_lr=0.01), []
    student = copy.deepcopy(method.student.state_dict())

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, item, i):
            if trainer.current_epoch == 0:
                with torch.no_grad():
                    images = method.synthesizer.sample(64)
                    found.append(float(statistics_loss(method.teacher, images)))

        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                state = method.student.state_dict()
                assert all(torch.equal(student[key], value) for key, value in state.items())

    sizes = {**PLAN, "warmup_epochs": 1, "warmup_rounds": 15}
    fit(method, tiny_data(sizes, bank=BankOptions(capacity=16)), callbacks=[Watch()])
    assert found[-1] < 0.7 * found[0]
    assert method.student_updates == 3


def test_first_step_is_nesterovs(dfq, tiny_data, fit):
    """p - lr (1 + momentum) (gradient + decay p), from the loss written out."""
    method = dfq()
    pair, seen = copy.deepcopy(method.student).train(), []
    learn = method.student_objective
    method.student_objective = lambda x, y: seen.append(x.clone()) or learn(x, y)
    sizes = {**PLAN, "rounds_per_epoch": 1, "kd_steps": 1}
    fit(method, tiny_data(sizes, bank=BankOptions(capacity=16)))
    answers = [Categorical(logits=net(seen[0])) for net in (method.teacher, pair)]
    grads = torch.autograd.grad(kl_divergence(*answers).mean(), list(pair.parameters()))
    for p, grad, found in zip(pair.parameters(), grads, method.student.parameters(), strict=True):
        expected = p - 0.1 * 1.9 * (grad + 1e-4 * p)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("balance_weight", [1.0, 0.0])
def test_balance_term_alone(dfq, tiny_classifier, tiny_data, fit, balance_weight):
    """From a generator that makes a class too often; without the term it stays as far from even."""
    teacher = tiny_classifier()
    teacher.network.head.weight.data.mul_(20)
    method = dfq(
        teacher=teacher, balance_weight=balance_weight, bn_weight=0.0, entropy_weight=0.0,
        adv_weight=0.0, generator_lr=5e-3,
    )  # fmt: skip
    z = torch.randn(300, 6)

    def answers():
        with torch.no_grad():
            return method.teacher(copy.deepcopy(method.synthesizer.generator)(z))

    def gap():
        return math.log(3) - float(Categorical(answers().softmax(1).mean(0)).entropy())

    logits = answers()
    favourite = torch.tensor([0.0, 0.0, 1.5 * float(logits.std())])
    teacher.network.head.bias.data.add_(favourite - logits.mean(0))
    before = gap()
    sizes = {**PLAN, "rounds_per_epoch": 40, "kd_steps": 40, "round_size": 32}
    fit(method, tiny_data(sizes, bank=BankOptions(capacity=32)))
    assert (gap() < 0.3 * before) == (balance_weight > 0)
