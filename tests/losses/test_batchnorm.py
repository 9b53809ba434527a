import copy
from weakref import ref

import numpy as np
import pytest
import torch
from torch import nn

from nayer_pl.losses.batchnorm import ChannelMoments
from nayer_pl.synthesis import BatchNormMatching


class Net(nn.Module):
    """Two BatchNorms that run in the opposite order of their registration."""

    def __init__(self):
        super().__init__()
        self.last_norm = nn.BatchNorm2d(3)
        self.first_norm = nn.BatchNorm2d(4)
        self.first = nn.Conv2d(2, 4, 1)
        self.last = nn.Conv2d(4, 3, 1)
        self.head = nn.Linear(3, 5)

    def forward(self, x):
        x = self.first_norm(self.first(x)).relu()
        return self.head(self.last_norm(self.last(x)).mean((2, 3)))


def images(seed, batch=6):
    return torch.rand(batch, 2, 5, 4, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    net = Net().eval().requires_grad_(False)
    for norm in (net.first_norm, net.last_norm):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.normal_()
        norm.bias.normal_()
    return net


def convolve(x, conv):
    weight = conv.weight.detach().numpy().astype(np.float64)[:, :, 0, 0]
    bias = conv.bias.detach().numpy()[:, None, None]
    return np.einsum("oc,bchw->bohw", weight, x) + bias


def normalize(x, norm):
    def column(tensor):
        return tensor.detach().numpy().astype(np.float64)[:, None, None]

    spread = np.sqrt(column(norm.running_var) + norm.eps)
    return (x - column(norm.running_mean)) / spread * column(norm.weight) + column(norm.bias)


def mean_and_variance(values):
    mean = values.mean((0, 2, 3), keepdims=True)
    return mean.flatten(), ((values - mean) ** 2).mean((0, 2, 3))


def by_hand(net, x):
    """Mean and biased variance of the input of first_norm and of last_norm."""
    first = convolve(x.numpy().astype(np.float64), net.first)
    last = convolve(np.maximum(normalize(first, net.first_norm), 0), net.last)
    return [mean_and_variance(first), mean_and_variance(last)]


def mixed(new, old, momentum=0.9):
    return [
        tuple(momentum * o + (1 - momentum) * n for n, o in zip(*pair, strict=True))
        for pair in zip(new, old, strict=True)
    ]


def expected_loss(net, moments):
    total = 0.0
    for norm, (mean, variance) in zip((net.first_norm, net.last_norm), moments, strict=True):
        total += np.linalg.norm(norm.running_mean.numpy() - mean)
        total += np.linalg.norm(norm.running_var.numpy() - variance)
    return total


def watch(matching, x):
    matching(x)
    return float(matching.loss())


def test_first_round_counts_its_own_batch_alone(teacher):
    matching = BatchNormMatching(teacher)
    for seed in (1, 2):
        expected = expected_loss(teacher, by_hand(teacher, images(seed)))
        assert watch(matching, images(seed)) == pytest.approx(expected, rel=1e-5)


def test_later_rounds_average_with_the_last_step_of_each_earlier_one(teacher):
    matching = BatchNormMatching(teacher)
    average = None
    for last_seeds in ((1, 2), (3,), (4, 5, 6), (7,)):
        for seed in last_seeds:
            moments = by_hand(teacher, images(seed))
            moments = moments if average is None else mixed(moments, average)
            assert watch(matching, images(seed)) == pytest.approx(
                expected_loss(teacher, moments), rel=1e-5
            )
        matching.finish_round()
        average = moments


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_momentum_is_the_weight_of_the_past(teacher, momentum):
    matching = BatchNormMatching(teacher, momentum)
    watch(matching, images(1))
    matching.finish_round()
    moments = mixed(by_hand(teacher, images(2)), by_hand(teacher, images(1)), momentum)
    assert watch(matching, images(2)) == pytest.approx(expected_loss(teacher, moments), rel=1e-5)


def test_rounds_may_differ_in_size(teacher):
    matching = BatchNormMatching(teacher)
    watch(matching, images(1, batch=3))
    matching.finish_round()
    small, large = images(1, batch=3), images(2, batch=9)
    moments = mixed(by_hand(teacher, large), by_hand(teacher, small))
    assert watch(matching, large) == pytest.approx(expected_loss(teacher, moments), rel=1e-5)


def test_loss_vanishes_where_the_teacher_expects_exactly_this_batch(teacher):
    x = images(1)
    first, _ = by_hand(teacher, x)
    teacher.first_norm.running_mean.copy_(torch.from_numpy(first[0]))
    teacher.first_norm.running_var.copy_(torch.from_numpy(first[1]))
    _, last = by_hand(teacher, x)
    teacher.last_norm.running_mean.copy_(torch.from_numpy(last[0]))
    teacher.last_norm.running_var.copy_(torch.from_numpy(last[1]))
    assert watch(BatchNormMatching(teacher), x) == pytest.approx(0, abs=1e-5)


def test_gradient_reaches_the_images_through_the_share_of_this_batch(teacher):
    def gradient(matching):
        x = images(2).requires_grad_()
        matching(x)
        matching.loss().backward()
        return x.grad

    def slope(x, direction, step=1e-4):
        old = by_hand(teacher, images(1))
        up, down = (by_hand(teacher, x + change * direction) for change in (step, -step))
        rise = expected_loss(teacher, mixed(up, old)) - expected_loss(teacher, mixed(down, old))
        return rise / (2 * step)

    matching = BatchNormMatching(teacher)
    watch(matching, images(1))
    matching.finish_round()
    direction = torch.randn(images(2).shape, generator=torch.Generator().manual_seed(9)).double()
    along = float((gradient(matching) * direction).sum())
    assert along == pytest.approx(slope(images(2).double(), direction), rel=1e-3)


def test_teacher_is_neither_trained_nor_changed(teacher):
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    matching = BatchNormMatching(teacher)
    x = images(1).requires_grad_()
    for _ in range(2):
        matching.train()  # as whatever contains it may be
        matching(x)
        matching.loss().backward()
        matching.finish_round()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key])


def test_average_carries_no_graph(teacher):
    matching = BatchNormMatching(teacher)
    first = images(1).requires_grad_()
    matching(first)
    matching.finish_round()
    matching(images(2).requires_grad_())
    matching.loss().backward()
    assert first.grad is None


def test_the_teacher_itself_is_not_watched(teacher):
    matching = BatchNormMatching(teacher)
    loss = watch(matching, images(1))
    teacher(images(2))
    assert float(matching.loss()) == loss
    assert not any(module._forward_pre_hooks for module in teacher.modules())


def test_the_watched_teacher_is_the_teacher(teacher):
    matching = BatchNormMatching(teacher)
    assert torch.equal(matching(images(1)), teacher(images(1)))
    teacher.load_state_dict({key: value * 0.5 for key, value in teacher.state_dict().items()})
    assert torch.equal(matching(images(1)), teacher(images(1)))
    shared = {id(parameter) for parameter in teacher.parameters()}
    assert {id(parameter) for parameter in matching.parameters()} == shared


def test_a_norm_that_sees_nothing_is_at_home(teacher):
    teacher.unused = nn.BatchNorm2d(7)
    assert watch(BatchNormMatching(teacher), images(1)) == pytest.approx(
        expected_loss(teacher, by_hand(teacher, images(1))), rel=1e-5
    )


def test_only_two_dimensional_norms_with_running_statistics_count():
    norms = nn.BatchNorm2d(2), nn.BatchNorm2d(2, track_running_stats=False), nn.BatchNorm1d(2)
    matching = BatchNormMatching(nn.Sequential(*norms))
    assert [norm.weight for norm in matching.norms] == [norms[0].weight]


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (4, 3, 5, 2), (2, 6, 1, 1)])
def test_channel_moments_are_those_of_var_mean(shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    result = ChannelMoments.apply(x)
    torch.testing.assert_close(result[0], mean)
    torch.testing.assert_close(result[1], variance)


def test_channel_moments_survive_a_large_mean():
    x = torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(0)) + 1e3
    expected = x.numpy().astype(np.float64).var((0, 2, 3))
    np.testing.assert_allclose(ChannelMoments.apply(x)[1].numpy(), expected, rtol=1e-3)


def test_channel_moments_differentiate():
    x = torch.randn(3, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ChannelMoments.apply, x)


@pytest.mark.parametrize("used", [0, 1])
def test_each_moment_differentiates_alone(used):
    x = torch.randn(3, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: ChannelMoments.apply(y)[used], x)


def test_channel_moments_of_channels_last_images_are_the_same():
    x = torch.randn(4, 3, 5, 5)
    other = x.clone(memory_format=torch.channels_last)
    x.requires_grad_()
    other.requires_grad_()
    for moments in zip(ChannelMoments.apply(x), ChannelMoments.apply(other), strict=True):
        torch.testing.assert_close(*moments)
    for y in (x, other):
        mean, variance = ChannelMoments.apply(y)
        (mean.square().sum() + variance.square().sum()).backward()
    torch.testing.assert_close(x.grad, other.grad)


def test_channel_moments_of_bfloat16_are_summed_in_float32():
    x = (torch.randn(32, 3, 32, 32) + 2).bfloat16().to(memory_format=torch.channels_last)
    exact = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    for result, expected in zip(ChannelMoments.apply(x), reversed(exact), strict=True):
        torch.testing.assert_close(result, expected.float(), rtol=1e-3, atol=0)


def test_channel_moments_of_bfloat16_differentiate_to_its_digits():
    x = (torch.randn(32, 3, 8, 8) + 2).bfloat16()
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        y = x.detach().to(dtype, copy=True).requires_grad_()
        mean, variance = ChannelMoments.apply(y)
        (mean.square().sum() + variance.square().sum()).backward()
        results.append(y.grad.double())
    error = (results[0] - results[1]).norm() / results[1].norm()
    assert error < 1e-2


def test_a_teacher_with_normalised_weights_can_be_watched():
    """It keeps a tensor that was computed, as an attribute; such cannot be copied."""
    net = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)).eval()
    x = torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(BatchNormMatching(net)(x), net(x))


@pytest.mark.parametrize("weighed", [True, False])
def test_after_a_round_nothing_of_its_last_step_is_kept(teacher, weighed):
    matching = BatchNormMatching(teacher)
    x = images(1).requires_grad_()
    inputs = []
    matching.norms[0].register_forward_pre_hook(lambda _, given: inputs.append(ref(given[0])))
    logits = matching(x)
    (matching.loss() if weighed else logits.sum()).backward()
    matching.finish_round()
    del logits
    assert inputs[0]() is None
    copy.deepcopy(matching)
