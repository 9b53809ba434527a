"""BatchNorm folded into the convolution before it: the same logits, with fewer memory accesses.

A frozen network multiplies every channel twice, by the convolution's weight and by BatchNorm's;
one multiplication by their product does the same (Jacob et al., 2018, arXiv 1712.05877,
section 3.2). On a CPU, oneDNN then computes ReLUs and sums together with the convolutions.
"""

import copy
import logging
import operator
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.hooks import preserve_mode

log = logging.getLogger(__name__)


@torch.no_grad()
def folded(
    classifier: Classifier, image_shape: Sequence[int], dtype: torch.dtype | None = None
) -> Classifier:
    """A frozen copy that computes the same function of images [B, *image_shape] in evaluation mode.

    Every BatchNorm2d that is the only user of a convolution's result becomes part of it. On a CPU,
    `dtype` (float32 or bfloat16) fuses more layers and is what these compute in. A classifier whose
    forward pass torch.fx cannot trace, or whose copy would return other logits, is returned itself.
    """
    rng = torch.Generator().manual_seed(0)  # its own, so that no other random numbers change
    probe = torch.rand(2, *image_shape, generator=rng).to(next(classifier.parameters()).device)
    best = classifier
    try:
        with preserve_mode(classifier):
            expected: Tensor = classifier.eval()(probe)
            network: Any = fuse(classifier.network)
        best = _checked(network, classifier, probe, expected)
        if dtype and probe.device.type == "cpu" and torch.backends.mkldnn.is_available():
            # Checked in float32, where a rounding cannot hide a mistake.
            _checked(fused(network, torch.float32), classifier, probe, expected)
            best.network = fused(network, dtype)
    except Exception as error:  # a forward pass of others can break the tracer in any way
        name = type(classifier.network).__name__
        log.debug("%s is folded no further: %s", name, error)
    return best


def _checked(
    network: nn.Module, classifier: Classifier, probe: Tensor, expected: Tensor
) -> Classifier:
    """A classifier with `network` in place of its own, if that returns the same logits."""
    other = Classifier(network)
    other.copy_normalization(classifier)
    other.freeze().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # Some devices multiply with few digits. Only differences between classes matter.
    tolerance = 1e-2 * float((expected - expected.mean(1, keepdim=True)).abs().max())
    torch.testing.assert_close(other(probe), expected, rtol=0, atol=tolerance)
    return other


RELUS = {F.relu, torch.relu, nn.ReLU}
SUMS = {operator.add, operator.iadd, torch.add}


class FusedConv(nn.Module):
    """A frozen convolution or BatchNorm, then perhaps a sum, then perhaps a ReLU, in one pass.

    The BatchNorm is in evaluation mode: a 1x1 convolution of each channel. With gradients enabled
    the ordinary layers compute the same, one after the other.
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
        """[B, C, H, W], and perhaps a summand of the result's shape -> the result."""
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
    """The weight [C, 1, 1, 1] and bias [C] of a BatchNorm in evaluation mode."""
    scale = (norm.running_var + norm.eps).rsqrt()
    shift = torch.zeros_like(scale)
    if norm.affine:
        scale, shift = scale * norm.weight.detach(), norm.bias.detach()
    return scale.view(-1, 1, 1, 1), shift - norm.running_mean * scale


def fused(network: fx.GraphModule, dtype: torch.dtype) -> fx.GraphModule:
    """A copy in which convolutions and BatchNorms include the sums and ReLUs that follow them.

    These would otherwise read again what a convolution just wrote to memory. The network is traced,
    frozen, in evaluation mode and on a CPU.
    """
    network = copy.deepcopy(network)
    calls = Counter(node.target for node in network.graph.nodes)
    for node in list(network.graph.nodes):
        layer = _layer(network, node)
        if layer is not None and calls[node.target] == 1 and _fusable(layer):
            _fuse(network, node, layer, dtype)
    network.graph.lint()
    network.recompile()
    return network


def _fusable(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.BatchNorm2d) and layer.track_running_stats


def _fuse(network: fx.GraphModule, node: fx.Node, layer: nn.Module, dtype: torch.dtype) -> None:
    """Replace a layer, the sum that takes its result, and the ReLU after them by one call."""
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
    """The only user of a result, if it is one of the wanted functions or modules."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    layer = _layer(network, user)
    what = user.target if layer is None else type(layer)
    return user if what in wanted else None


def _layer(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None
