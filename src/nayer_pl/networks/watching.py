"""What goes into or comes out of the layers inside a network."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from nayer_pl.networks.classifier import Classifier


def layer_inputs(
    net: Classifier, images: Tensor, layers: Iterable[str]
) -> tuple[Tensor, dict[str, Any]]:
    """Logits, and what the named layers of the network are given, in the order of their calls."""
    return _watched(net, images, layers, "register_forward_pre_hook", lambda given: given[0])


def layer_outputs(
    net: Classifier, images: Tensor, layers: Iterable[str]
) -> tuple[Tensor, dict[str, Any]]:
    """Logits, and what the named layers of the network put out, in the order of their ends."""
    return _watched(net, images, layers, "register_forward_hook", lambda _given, out: out)


def _watched(
    net: Classifier, images: Tensor, layers: Iterable[str], register: str, pick: Any
) -> tuple[Tensor, dict[str, Any]]:
    seen: dict[str, Any] = {}

    def keep(name: str, *call: Any) -> None:
        seen.pop(name, None)  # the last call of a layer counts
        seen[name] = pick(*call)

    handles = [
        getattr(net.network.get_submodule(name), register)(
            lambda _module, *call, name=name: keep(name, *call)
        )
        for name in layers
    ]
    try:
        return net(images), seen
    finally:
        for handle in handles:
            handle.remove()
