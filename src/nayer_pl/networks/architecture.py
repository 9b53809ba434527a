"""How a network was built, kept beside it, so that a weight file can say how to rebuild it."""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from nayer_pl.errors import InputError

Network = TypeVar("Network", bound=nn.Module)

# What a weight file may name: nothing but these is ever built on a file's word.
BUILDERS: dict[str, Callable[..., nn.Module]] = {}


def architecture(build: Callable[..., Network]) -> Callable[..., Network]:
    """Decorate a builder so that its networks carry `.architecture`.

    The description is plain data: the builder's import path under `_target_` (Hydra's word), and
    every argument by name.

    >>> from nayer_pl.networks import wrn16_1
    >>> wrn16_1(num_classes=7).architecture
    {'_target_': 'nayer_pl.networks.wrn16_1', 'num_classes': 7, 'channels': 3}
    """
    signature = inspect.signature(build)
    # Of ours the public address: the package, not the file in which the builder happens to stand.
    package = __package__ if build.__module__.startswith(f"{__package__}.") else build.__module__
    target = f"{package}.{build.__name__}"
    rest = [p.name for p in signature.parameters.values() if p.kind == p.VAR_KEYWORD]

    @functools.wraps(build)
    def wrapper(*args: Any, **kwargs: Any) -> Network:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        network = build(*args, **kwargs)
        named = {k: v for k, v in bound.arguments.items() if k not in rest}
        for name in rest:
            named |= bound.arguments[name]
        network.architecture = {"_target_": target, **named}  # type: ignore[assignment]
        return network

    BUILDERS[target] = wrapper
    return wrapper


def build_network(description: Mapping[str, Any]) -> nn.Module:
    """Build the network that `description` (`_target_` and keyword arguments) names.

    Raises:
        InputError: there is no such builder, or it does not take these arguments.
    """
    arguments = dict(description)
    target = str(arguments.pop("_target_", None) or "")
    module, _, name = target.rpartition(".")
    try:
        build = getattr(importlib.import_module(module), name)
    except Exception as error:  # the module may be anybody's, and fail in any way
        raise InputError(
            f"There is no network '{target}' ({error}); an architecture's _target_ is the import "
            "path of a class or function, such as nayer_pl.networks.resnet18."
        ) from error
    try:
        network = build(**arguments)
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".rstrip(": .")
        raise InputError(f"'{target}' cannot be built from {arguments} ({reason}).") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"'{target}' does not build a torch.nn.Module but {type(network)}.")
    if not hasattr(network, "architecture"):
        network.architecture = {"_target_": target, **arguments}  # type: ignore[assignment]
    return network
