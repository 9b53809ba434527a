"""Watching the layers of a network for one call, and changing its mode for a while."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn


@contextmanager
def preserve_mode(module: nn.Module) -> Iterator[None]:
    """On leaving, put every submodule back into the mode (training or evaluation) it was in."""
    modes = [(each, each.training) for each in module.modules()]
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and gradients through the module but not for its parameters, for a while."""
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
    """Logits of images [B, C, H, W], and the last input of each of these layers.

    The layers are named within the network, also where `module` is a `Classifier` around it; they
    are returned in the order in which they were last called.
    """
    return _watched(module, images, layers, nn.Module.register_forward_pre_hook)


def layer_outputs(
    module: nn.Module, images: Tensor, layers: Iterable[str]
) -> tuple[Tensor, dict[str, Any]]:
    """As `layer_inputs`, but the outputs, in the order in which the layers last finished."""
    return _watched(module, images, layers, nn.Module.register_forward_hook)


def _watched(
    module: nn.Module, images: Tensor, layers: Iterable[str], register: Callable[..., Any]
) -> tuple[Tensor, dict[str, Any]]:
    seen: dict[str, Any] = {}

    def keep(name: str, _: nn.Module, inputs: tuple[Any, ...], *output: Any) -> None:
        seen.pop(name, None)  # the last call of a layer counts
        seen[name] = output[0] if output else inputs[0]

    network = getattr(module, "network", module)
    with ExitStack() as hooks:
        for name in layers:
            hooks.enter_context(register(network.get_submodule(name), partial(keep, name)))
        return module(images), seen
