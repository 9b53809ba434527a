import copy
import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.distributions import Categorical, Normal, kl_divergence

from nayer_pl import BankOptions, InputError
from nayer_pl.app.train import build
from nayer_pl.bank import DistillationBatch, MemoryBank, SynthesisRound
from nayer_pl.bank.epoch import EpochPlan
from nayer_pl.methods.dfq import DFQ, GaussianMatching, entropy_loss, gaussian_kl

SHAPE = (1, 8, 8)
PLAN = {
    "epochs": 2, "warmup_epochs": 1, "warmup_rounds": 3, "rounds_per_epoch": 3, "kd_steps": 3,
    "round_size": 16, "batch_size": 16, "interleaved": True,
}  # fmt: skip


@pytest.fixture
def dfq(tiny_classifier):
    def make(**options):
        nets = {"teacher": tiny_classifier(), "student": tiny_classifier()}
        defaults = {"noise_features": 6, "check_teacher": False}
        return DFQ(image_shape=SHAPE, **{**nets, **defaults, **options})

    return make


def kl(teacher_logits, student_logits):
    """Of each image, as torch.distributions has it."""
    return kl_divergence(Categorical(logits=teacher_logits), Categorical(logits=student_logits))


def norm_inputs(net, images):
    """The network written out: the input and the module of each BatchNorm."""
    net, x = net.network, (images - net.mean) / net.std
    first = net.conv1(x)
    return [(first, net.norm1), (net.conv2(net.norm1(first).relu()), net.norm2)]


def test_gaussian_divergence_is_that_of_torch_distributions():
    mean, other_mean = torch.randn(2, 50, dtype=torch.float64)
    variance, other_variance = torch.rand(2, 50, dtype=torch.float64) + 0.01
    expected = kl_divergence(
        Normal(mean, variance.sqrt()), Normal(other_mean, other_variance.sqrt())
    )
    found = gaussian_kl(mean, variance, other_mean, other_variance)
    torch.testing.assert_close(found, expected)
    assert float((gaussian_kl(mean, variance, mean, variance)).abs().max()) < 1e-12


def test_statistics_term_is_summed_over_the_channels_of_all_layers(tiny_classifier):
    teacher, images = tiny_classifier().freeze(), torch.rand(16, *SHAPE)
    expected = 0.0
    for x, norm in norm_inputs(teacher, images):
        flat = x.transpose(0, 1).flatten(1).double()
        for channel, mean, variance in zip(flat, norm.running_mean, norm.running_var, strict=True):
            spread = (channel.var(correction=0) + norm.eps).sqrt()
            data = Normal(mean.double(), (variance.double() + norm.eps).sqrt())
            expected += float(kl_divergence(Normal(channel.mean(), spread), data))
    matching = GaussianMatching(teacher)
    assert torch.equal(matching(images), teacher(images))
    assert float(matching.loss()) == pytest.approx(expected, rel=1e-4)
    assert expected > 0.1


def test_statistics_term_vanishes_where_the_teacher_knows_exactly_this_batch(tiny_classifier):
    teacher, images = tiny_classifier().freeze(), torch.rand(16, *SHAPE)
    for layer in (0, 1):  # the second one's input depends on the first one
        x, norm = norm_inputs(teacher, images)[layer]
        norm.running_mean.copy_(x.mean((0, 2, 3)))
        norm.running_var.copy_(x.var((0, 2, 3), correction=0))
    matching = GaussianMatching(teacher)
    matching(images)
    assert float(matching.loss()) == pytest.approx(0, abs=1e-4)


def test_channels_that_never_vary_do_no_harm(tiny_classifier):
    teacher = tiny_classifier().freeze()
    nn.init.zeros_(teacher.network.conv1.weight)
    nn.init.zeros_(teacher.network.norm1.running_var)
    matching = GaussianMatching(teacher)
    images = torch.rand(4, *SHAPE, requires_grad=True)
    matching(images)
    matching.loss().backward()
    assert matching.loss().isfinite()
    assert images.grad.isfinite().all()


def test_entropy_term_is_the_mean_of_torch_distributions():
    logits = 3 * torch.randn(20, 5, dtype=torch.float64)
    torch.testing.assert_close(entropy_loss(logits), Categorical(logits=logits).entropy().mean())
    sure = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    entropy_loss(sure).backward()
    assert sure.grad.isfinite().all()


@pytest.mark.parametrize("warm_up", [False, True])
def test_loss_is_three_terms_less_the_divergence_and_without_it_in_warm_up(dfq, warm_up):
    weights = {"bn": 0.5, "entropy": 3.0, "balance": 7.0, "divergence": -11.0}
    method = dfq(bn_weight=0.5, entropy_weight=3.0, balance_weight=7.0, adv_weight=11.0)
    method.student.eval()
    images = torch.rand(16, *SHAPE, requires_grad=True)
    logits = method.teacher(images)
    matching = GaussianMatching(method.teacher)
    matching(images)
    expected = {
        "bn": matching.loss(),
        "entropy": Categorical(logits=logits).entropy().mean(),
        "balance": -Categorical(logits.softmax(1).mean(0)).entropy(),
        "divergence": kl(logits, method.student(images)).mean(),
    }
    if warm_up:
        del expected["divergence"]
        method.student = None  # nobody may ask it
    expected["loss"] = sum(weights[name] * value for name, value in expected.items())
    terms = method.judge(images, warm_up)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-6)
    slopes = [torch.autograd.grad(each["loss"], images)[0] for each in (terms, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)


class Duel(Callback):
    """What each side's step does to the divergence on images of the same z."""

    def __init__(self):
        self.made, self.learned, self.z = [], [], torch.randn(64, 6)

    def measure(self, method, generator, student):
        with torch.no_grad():
            images = copy.deepcopy(generator)(self.z)
            return float(kl(method.teacher(images), student(images)).mean())

    def on_train_batch_start(self, trainer, method, item, i):
        self.before = copy.deepcopy(method.generator), copy.deepcopy(method.student)

    def on_train_batch_end(self, trainer, method, outputs, item, i):
        generator, student = self.before
        if isinstance(item, SynthesisRound):
            student.eval()
            sides = (generator, student), (method.generator, student)
            self.made.append([self.measure(method, *side) for side in sides])
        else:
            after = copy.deepcopy(method.student)
            sides = (method.generator, student), (method.generator, after)
            self.learned.append([self.measure(method, *side) for side in sides])


def test_a_copy_of_the_teacher_has_no_divergence(dfq, tiny_classifier):
    teacher, images = tiny_classifier(), torch.rand(16, *SHAPE)
    method = dfq(teacher=teacher, student=copy.deepcopy(teacher))
    method.student.eval()
    assert float(method.judge(images)["divergence"]) == pytest.approx(0, abs=1e-6)
    assert float(method.student_loss(images)) == pytest.approx(0, abs=1e-6)


def test_in_warm_up_the_generator_learns_the_statistics_and_the_student_waits(dfq, tiny_data, fit):
    method, found = dfq(generator_lr=0.01), []
    student = copy.deepcopy(method.student.state_dict())

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, item, i):
            if trainer.current_epoch == 0:
                with torch.no_grad():
                    method.statistics(method.make(64))
                    found.append(float(method.statistics.loss()))

        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                state = method.student.state_dict()
                assert all(torch.equal(student[key], value) for key, value in state.items())

    plan = {**PLAN, "epochs": 1, "warmup_rounds": 15}
    fit(method, tiny_data(plan, bank=BankOptions(capacity=16)), callbacks=[Watch()])
    assert found[-1] < 0.7 * found[0]
    assert method.student_updates == 3


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_students_first_step_is_nesterovs(dfq, tiny_data, fit, momentum):
    """p - lr (1 + momentum) (gradient + decay p), from the loss written out."""
    method = dfq(weight_decay=0.01, learning_rate=0.05, momentum=momentum)
    pair, seen = copy.deepcopy(method.student).train(), []
    learn = method.student_loss
    method.student_loss = lambda images: seen.append(images.clone()) or learn(images)
    plan = {**PLAN, "warmup_epochs": 0, "epochs": 1, "rounds_per_epoch": 1, "kd_steps": 1}
    fit(method, tiny_data(plan, bank=BankOptions(capacity=16)))
    loss = kl(method.teacher(seen[0]), pair(seen[0])).mean()
    grads = torch.autograd.grad(loss, list(pair.parameters()))
    for p, grad, found in zip(pair.parameters(), grads, method.student.parameters(), strict=True):
        expected = p - 0.05 * (1 + momentum) * (grad + 0.01 * p)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_teacher_without_statistics_is_refused(dfq, tiny_classifier):
    with pytest.raises(
        InputError, match=r"no BatchNorm2d.*model=dfad works with every teacher.*feature maps\.$"
    ):
        dfq(teacher=tiny_classifier(norm=False))


@pytest.mark.parametrize(("epoch", "items"), [(0, 1), (1, 3)], ids=["warm-up", "distillation"])
def test_it_goes_on_from_the_middle_of_an_epoch(dfq, tiny_data, fit, tmp_path, epoch, items):
    class Save(Callback):
        def on_train_batch_end(self, trainer, method, outputs, item, i):
            if (trainer.current_epoch, i) == (epoch, items):
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    def run(**options):
        torch.manual_seed(3)
        method = dfq()
        fit(method, tiny_data(PLAN, bank=BankOptions(capacity=16)), **options)
        return method.student.state_dict()

    whole = run(callbacks=[Save()])
    again = run(ckpt_path=tmp_path / "middle.ckpt")
    assert all(torch.equal(whole[key], value) for key, value in again.items())


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "digits", "fashion_mnist"])
def test_recipes(config, data):
    """The generator alone, then turns of one step each."""
    cfg = config("model=dfq", f"data={data}")
    plan = build(cfg.plan)
    bank = MemoryBank(1, (1, 2, 2))
    bank.add(torch.rand(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64))
    kinds = []
    for epoch in (0, plan.warmup_epochs):
        items = EpochPlan(plan, epoch, 3, bank)
        kinds += [
            "RS"[isinstance(item, DistillationBatch)]
            for item, _ in zip(items, range(6), strict=False)
        ]
    assert "".join(kinds) == "RRRRRR" + "RSRSRS"
    assert cfg.model.generator_steps == 1


def test_generator_moves_away_from_the_student_and_the_student_follows(dfq, tiny_data, fit):
    duel, plan = Duel(), {**PLAN, "warmup_epochs": 0}
    method = dfq(bn_weight=0.0, entropy_weight=0.0, balance_weight=0.0, learning_rate=0.01)
    fit(method, tiny_data(plan, bank=BankOptions(capacity=16)), callbacks=[duel])
    # Of six steps each, looked at on images of another z than theirs.
    assert sum(after > before for before, after in duel.made) >= 5
    assert sum(after < before for before, after in duel.learned) >= 5


@pytest.mark.parametrize("balance_weight", [1.0, 0.0])
def test_the_balance_term_alone_brings_the_generator_to_all_classes(
    dfq, tiny_classifier, tiny_data, fit, balance_weight
):
    """From one that makes a class too often; without the term it stays as far from even."""
    teacher = tiny_classifier()
    teacher.network.head.weight.data.mul_(20)
    method = dfq(
        teacher=teacher, balance_weight=balance_weight, bn_weight=0.0, entropy_weight=0.0,
        adv_weight=0.0, generator_lr=5e-3,
    )  # fmt: skip
    z = torch.randn(300, 6)

    def answers():
        with torch.no_grad():
            return method.teacher(copy.deepcopy(method.generator)(z))

    def gap():
        return math.log(3) - float(Categorical(answers().softmax(1).mean(0)).entropy())

    logits = answers()
    favourite = torch.tensor([0.0, 0.0, 1.5 * float(logits.std())])
    method.teacher.network.head.bias.data.add_(favourite - logits.mean(0))
    before, turns = gap(), {"warmup_epochs": 0, "epochs": 1, "rounds_per_epoch": 40, "kd_steps": 40}
    plan = {**PLAN, **turns, "round_size": 32}
    fit(method, tiny_data(plan, bank=BankOptions(capacity=32)))
    assert (gap() < 0.3 * before) == (balance_weight > 0)
