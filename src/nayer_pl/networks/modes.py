"""Networks in evaluation mode for a while, and afterwards as they were, module by module."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def preserve_mode(module: nn.Module) -> Iterator[None]:
    """Afterwards every module within is in the mode that it was in, some frozen or not."""
    modes = [(each, each.training) for each in module.modules()]
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and gradients through the module but not for its parameters."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with preserve_mode(module):
        module.eval().requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)
