"""The configuration has its constants from the signatures: a yaml holds only what it changes.

Each public class or function is an option of the config group `signature`, with a node that has its
`_target_` and its defaults. `/signature@model: NAYER` in the defaults list of a yaml puts it there,
and `python train.py --cfg job` prints it.
"""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.utils import get_object

# Where the public names are; and what is public for configurations alone.
MODULES = ("nayer_pl", "nayer_pl.callbacks")
LOGGERS = ("nayer_pl.callbacks.loggers.wandb_logger", "nayer_pl.callbacks.metrics_file.MetricsFile")
GROUP = "signature"

# What is chosen as a whole, by a group of its own, and so must not be merged with a default.
CHOICES = ("student_loss", "optimizer", "scheduler")


def signature_config(target: str, skip: Collection[str] = ()) -> dict[str, Any]:
    """The node that builds `target` with its defaults.

    A default that is a class, a function or a `functools.partial` becomes a node with `_partial_`.
    Parameters without a default, or with one that no yaml can hold, are left out.

    Args:
        target: import path of a class or function.
        skip: parameters to leave out.

    >>> signature_config("nayer_pl.RandomCropFlip")
    {'_target_': 'nayer_pl.RandomCropFlip', 'padding': 4, 'flip': True}
    """
    node: dict[str, Any] = {"_target_": target}
    for name, parameter in inspect.signature(get_object(target)).parameters.items():
        if parameter.default is not parameter.empty and name not in skip:
            try:
                node[name] = _plain(parameter.default)
            except TypeError:
                continue
    return node


def public_targets() -> dict[str, str]:
    """Import paths of the public classes and functions, by name."""
    names = [(path, name) for path in MODULES for name in importlib.import_module(path).__all__]
    paths = [*LOGGERS, *(f"{path}.{name}" for path, name in names)]
    found = {path: get_object(path) for path in paths}
    return {
        path.rpartition(".")[2]: path
        for path, thing in found.items()
        if not (inspect.isclass(thing) and issubclass(thing, BaseException))
    }


def register_signatures() -> None:
    """Let configurations name what is public: `/signature@NODE: NAME`.

    A default that is a choice is an option of its group instead: `/optimizer: NAME`.
    """
    store = ConfigStore.instance()
    for name, target in public_targets().items():
        node = signature_config(target)
        for choice in CHOICES:
            if isinstance(node.get(choice), dict):
                store.store(name, node.pop(choice), group=choice, package=f"model.{choice}")
        store.store(name, node, group=GROUP)


def _plain(value: Any) -> Any:
    """A default as a yaml holds it.

    Raises:
        TypeError: none can.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, functools.partial) and not value.args:
        keywords = {name: _plain(each) for name, each in value.keywords.items()}
        return {"_target_": _import_path(value.func), "_partial_": True, **keywords}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
        return {"_target_": _import_path(type(value)), **parts}
    if inspect.isclass(value) or inspect.isfunction(value):
        return {"_target_": _import_path(value), "_partial_": True}
    raise TypeError(value)


def _import_path(thing: Any) -> str:
    """The shortest path by which a class or function can be imported, which is the public one."""
    name, modules = thing.__qualname__, thing.__module__.split(".")
    for end in range(1, len(modules)):
        path = ".".join(modules[:end])
        if getattr(importlib.import_module(path), name, None) is thing:
            return f"{path}.{name}"
    return f"{thing.__module__}.{name}"
