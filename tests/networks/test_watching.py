import pytest
import torch
from torch import nn

from nayer_pl import Classifier
from nayer_pl.networks.watching import layer_inputs, layer_outputs


class Twice(nn.Module):
    """The second layer runs before the first, and twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        self.before = x.flatten(1)
        self.between = self.second(self.before)
        self.last = self.second(self.between)
        return self.first(self.last)


@pytest.mark.parametrize("watch", [layer_inputs, layer_outputs])
def test_the_last_call_of_each_layer_in_the_order_of_the_calls(watch):
    net = Classifier(Twice(), [0.0], [1.0])
    logits, seen = watch(net, torch.rand(3, 1, 2, 2), ["first", "second"])
    network = net.network
    calls = {"second": (network.between, network.last), "first": (network.last, logits)}
    assert list(seen) == ["second", "first"]
    for name, (given, put_out) in calls.items():
        torch.testing.assert_close(seen[name], given if watch is layer_inputs else put_out)


@pytest.mark.parametrize("watch", [layer_inputs, layer_outputs])
def test_nobody_watches_afterwards(watch):
    net = Classifier(Twice(), [0.0], [1.0])
    with pytest.raises(RuntimeError):
        watch(net, torch.rand(3, 1, 3, 3), ["first"])
    _, seen = watch(net, torch.rand(3, 1, 2, 2), ["first"])
    before = dict(seen)
    net(torch.rand(3, 1, 2, 2))
    assert seen == before
    hooks = (net.network.first._forward_hooks, net.network.first._forward_pre_hooks)
    assert not any(hooks)
