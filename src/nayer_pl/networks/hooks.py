"""Watching the layers of a network for one call, and changing its mode for a while."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def preserve_mode(module: nn.Module) -> Iterator[None]:
    """On leaving, put every submodule back into the mode (training or evaluation) it was in.

    Args:
        module: whose mode may change meanwhile.
    """
    modes = [(each, each.training) for each in module.modules()]
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and gradients through the module but not for its parameters.

    Args:
        module: restored on leaving.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> with frozen(layer):
        ...     layer.training, layer.weight.requires_grad
        (False, False)
        >>> layer.training, layer.weight.requires_grad
        (True, True)
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with preserve_mode(module):
        module.eval().requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)


def layer_inputs(
    module: nn.Module, images: Tensor, layers: Iterable[str]
) -> tuple[Tensor, dict[str, Any]]:
    """Call a network, and return its logits and the inputs of some of its layers.

    Args:
        module: a network, or a `Classifier` around one.
        images: [B, C, H, W].
        layers: names of layers within the network.

    Returns:
        The logits, and each layer's input by name, in the order in which the layers were last
        called.
    """
    return _watched(module, images, layers, "register_forward_pre_hook", lambda given: given[0])


def layer_outputs(
    module: nn.Module, images: Tensor, layers: Iterable[str]
) -> tuple[Tensor, dict[str, Any]]:
    """Call a network, and return its logits and the outputs of some of its layers.

    Args:
        module: a network, or a `Classifier` around one.
        images: [B, C, H, W].
        layers: names of layers within the network.

    Returns:
        The logits, and each layer's output by name, in the order in which the layers last finished.
    """
    return _watched(module, images, layers, "register_forward_hook", lambda _given, out: out)


def _watched(
    module: nn.Module, images: Tensor, layers: Iterable[str], register: str, pick: Any
) -> tuple[Tensor, dict[str, Any]]:
    seen: dict[str, Any] = {}

    def keep(name: str, *call: Any) -> None:
        seen.pop(name, None)  # the last call of a layer counts
        seen[name] = pick(*call)

    network = getattr(module, "network", module)
    handles = [
        getattr(network.get_submodule(name), register)(
            lambda _module, *call, name=name: keep(name, *call)
        )
        for name in layers
    ]
    try:
        return module(images), seen
    finally:
        for handle in handles:
            handle.remove()
