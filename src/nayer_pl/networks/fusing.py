"""What follows a convolution computed in the same pass over memory, on a CPU: oneDNN's own fusion.

ReLUs and additions would otherwise read again what a convolution just wrote.
"""

import copy
import operator
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

RELUS = {F.relu, torch.relu, nn.ReLU}
SUMS = {operator.add, operator.iadd, torch.add}


class FusedConv(nn.Module):
    """A convolution or a BatchNorm, then perhaps a sum, then perhaps a ReLU; frozen.

    Where gradients are wanted it is what it was made of, one thing after the other.

    Args:
        layer: Conv2d, or a BatchNorm2d in evaluation mode (a 1x1 convolution of each channel).
        relu: whether a ReLU comes last.
        dtype: that the fused form computes in.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Module, relu: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.relu = layer, relu
        if isinstance(layer, nn.Conv2d):
            weight, bias = layer.weight.detach(), layer.bias
            bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
            self.how = (layer.padding, layer.stride, layer.dilation, layer.groups)
        else:
            weight, bias = affine(layer)
            self.how = ((0, 0), (1, 1), (1, 1), len(bias))
        weight = weight.to(dtype, memory_format=torch.channels_last, copy=True)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias.to(dtype, copy=True), persistent=False)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """[B, C, H, W], and what is added, of the shape of the result."""
        if torch.is_grad_enabled():
            out = self.layer(x) if other is None else self.layer(x) + other
            return F.relu(out) if self.relu else out
        call, x = torch.ops.mkldnn._convolution_pointwise, x.to(self.weight.dtype)
        if other is None:
            how = "relu" if self.relu else "none"
            return call(x, self.weight, self.bias, *self.how, how, [], "")
        last = "relu" if self.relu else None
        other, w, b = other.to(x.dtype), self.weight, self.bias
        return call.binary(x, other, w, b, *self.how, "add", 1.0, last, [], None)


def affine(norm: Any) -> tuple[Tensor, Tensor]:
    """What a BatchNorm does in evaluation mode: weight [C, 1, 1, 1] and bias [C]."""
    scale = (norm.running_var + norm.eps).rsqrt()
    shift = torch.zeros_like(scale)
    if norm.affine:
        scale, shift = scale * norm.weight.detach(), norm.bias.detach()
    return scale.view(-1, 1, 1, 1), shift - norm.running_mean * scale


def fused(network: fx.GraphModule, dtype: torch.dtype) -> fx.GraphModule:
    """A copy in which convolutions and BatchNorms take along what follows them.

    Args:
        network: traced, frozen, in evaluation mode, on a CPU.
        dtype: that the fused layers compute in.
    """
    network = copy.deepcopy(network)
    for node in list(network.graph.nodes):
        layer = _layer(network, node)
        calls = sum(other.target == node.target for other in network.graph.nodes)
        if layer is not None and calls == 1 and _fusable(layer):
            _fuse(network, node, layer, dtype)
    network.graph.lint()
    network.recompile()
    return network


def _fusable(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.BatchNorm2d) and layer.track_running_stats


def _fuse(network: fx.GraphModule, node: fx.Node, layer: nn.Module, dtype: torch.dtype) -> None:
    """Put one call in the place of a layer, the sum that its result goes into, and the ReLU."""
    done, arguments = [node], [node.args[0]]
    total = _next(network, node, SUMS) if isinstance(layer, nn.Conv2d) else None
    if total is not None:
        others = [each for each in total.args if each is not node]
        if len(others) == 1 and isinstance(others[0], fx.Node) and not total.kwargs:
            done, arguments = [*done, total], [*arguments, others[0]]
    relu = _next(network, done[-1], RELUS)
    if relu is not None:
        done.append(relu)
    if len(done) == 1:
        return
    name = str(node.target)
    network.set_submodule(name, FusedConv(layer, relu is not None, dtype))
    with network.graph.inserting_before(done[-1]):
        call = network.graph.call_module(name, tuple(arguments))
    done[-1].replace_all_uses_with(call)
    for old in reversed(done):
        network.graph.erase_node(old)


def _next(network: fx.GraphModule, node: fx.Node, wanted: Collection[Any]) -> fx.Node | None:
    """What alone uses a result, if it is one of the functions or modules that are wanted."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    layer = _layer(network, user)
    what = user.target if layer is None else type(layer)
    return user if what in wanted else None


def _layer(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None
