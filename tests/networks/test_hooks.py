import pytest
import torch
from torch import nn

from nayer_pl import Classifier
from nayer_pl.networks.hooks import frozen, layer_inputs, layer_outputs, preserve_mode


class Twice(nn.Module):
    """The second layer runs before the first, and again after it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        self.between = self.second(x.flatten(1))
        self.last = self.first(self.between)
        return self.second(self.last)


@pytest.mark.parametrize("watch", [layer_inputs, layer_outputs])
@pytest.mark.parametrize("wrap", [lambda net: Classifier(net, [0.0], [1.0]), lambda net: net])
def test_watch__last_calls_in_order(watch, wrap):
    network = Twice()
    logits, seen = watch(wrap(network), torch.rand(3, 1, 2, 2), ["first", "second"])
    calls = {"first": (network.between, network.last), "second": (network.last, logits)}
    assert list(seen) == list(calls)
    for name, (given, put_out) in calls.items():
        torch.testing.assert_close(seen[name], given if watch is layer_inputs else put_out)


@pytest.mark.parametrize("watch", [layer_inputs, layer_outputs])
def test_watch__ends(watch):
    net = Classifier(Twice(), [0.0], [1.0])
    with pytest.raises(RuntimeError):
        watch(net, torch.rand(3, 1, 3, 3), ["first"])
    _, seen = watch(net, torch.rand(3, 1, 2, 2), ["first"])
    before = dict(seen)
    net(torch.rand(3, 1, 2, 2))
    assert seen == before
    hooks = (net.network.first._forward_hooks, net.network.first._forward_pre_hooks)
    assert not any(hooks)


def test_frozen(tiny_classifier):
    net = tiny_classifier().train()
    net.network.head.requires_grad_(False)
    with frozen(net):
        assert not any(module.training for module in net.modules())
        assert not any(p.requires_grad for p in net.parameters())
    assert net.training
    assert net.network.conv1.weight.requires_grad
    assert not net.network.head.weight.requires_grad


def raise_in(net):
    assert not net.training
    raise RuntimeError("half way")


@pytest.mark.parametrize("context", [frozen, preserve_mode])
def test_modes_after_an_error(tiny_classifier, context):
    net = tiny_classifier().train()
    net.network.head.eval()
    with pytest.raises(RuntimeError, match="half way"), context(net):
        raise_in(net.eval())
    assert {name for name, module in net.named_modules() if not module.training} == {"network.head"}
