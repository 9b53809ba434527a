"""The networks by name, and how each was built, so that a weight file can say how to rebuild it."""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from nayer_pl.errors import InputError

Network = TypeVar("Network", bound=nn.Module)

# What a weight file may name: nothing but these is ever built because a file says so.
BUILDERS: dict[str, Callable[..., nn.Module]] = {}


def architecture(build: Callable[..., Network]) -> Callable[..., Network]:
    """Decorate a builder so that its networks carry `.architecture`.

    The description is plain data: the builder's import path under `_target_` (Hydra's word), and
    every argument by name.

    Args:
        build: a function that returns a network.

    Example:
        >>> from nayer_pl.networks import wrn16_1
        >>> wrn16_1(num_classes=7).architecture
        {'_target_': 'nayer_pl.networks.wrn16_1', 'num_classes': 7, 'channels': 3}
    """
    signature = inspect.signature(build)
    # Our own networks are named by the package, whichever of its files they are in.
    package = __package__ if build.__module__.startswith(f"{__package__}.") else build.__module__
    target = f"{package}.{build.__name__}"
    rest = [p.name for p in signature.parameters.values() if p.kind == p.VAR_KEYWORD]

    @functools.wraps(build)
    def wrapper(*args: Any, **kwargs: Any) -> Network:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        network, named = build(*args, **kwargs), bound.arguments
        for name in rest:
            named |= named.pop(name)
        network.architecture = {"_target_": target, **named}  # type: ignore[assignment]
        return network

    BUILDERS[target] = wrapper
    return wrapper


def list_models() -> list[str]:
    """The names that `create_model` takes, sorted.

    Example:
        >>> from nayer_pl.networks import list_models
        >>> [name for name in list_models() if name.startswith("wrn")]
        ['wrn16_1', 'wrn16_2', 'wrn40_1', 'wrn40_2']
    """
    prefix = f"{__package__}."
    ours = (target.removeprefix(prefix) for target in BUILDERS if target.startswith(prefix))
    # `from_timm` and the like build networks of other packages.
    return sorted(name for name in ours if not name.startswith("from_"))


def create_model(name: str, num_classes: int, channels: int = 3) -> nn.Module:
    """Build a network of this package with fresh weights.

    Args:
        name: one of `list_models()`.
        num_classes: number of logits.
        channels: of the images.

    Raises:
        InputError: there is no network of this name.

    Example:
        >>> from nayer_pl.networks import create_model
        >>> create_model("resnet18", num_classes=10).linear.out_features
        10
    """
    if name not in list_models():
        names = ", ".join(list_models())
        raise InputError(f"There is no network '{name}'; choose from {names}.")
    return BUILDERS[f"{__package__}.{name}"](num_classes, channels)


def build_network(description: Mapping[str, Any]) -> nn.Module:
    """Build the network that `description` (`_target_` and keyword arguments) names.

    Args:
        description: `_target_`, the import path of a class or function, and its arguments.

    Raises:
        InputError: there is no such builder, or it does not take these arguments.

    Example:
        >>> from nayer_pl.networks import build_network
        >>> build_network({"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2})
        Linear(in_features=3, out_features=2, bias=True)
    """
    arguments = dict(description)
    target = str(arguments.pop("_target_", None) or "")
    module, _, name = target.rpartition(".")
    try:
        build = getattr(importlib.import_module(module), name)
    except Exception as error:  # code of others can raise anything when it is imported
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


def described(module: nn.Module) -> str:
    """The architecture of a network, or of a `Classifier`'s network, in one line.

    Example:
        >>> from nayer_pl.networks import wrn16_1
        >>> described(wrn16_1(10))
        'wrn16_1(num_classes=10, channels=3) with 175,066 parameters'
    """
    network = getattr(module, "network", module)
    name, known = type(network).__name__, getattr(network, "architecture", None)
    if isinstance(known, Mapping):
        rest = (f"{key}={value}" for key, value in known.items() if key != "_target_")
        name = f"{str(known['_target_']).rpartition('.')[2]}({', '.join(rest)})"
    return f"{name} with {sum(p.numel() for p in network.parameters()):,} parameters"
