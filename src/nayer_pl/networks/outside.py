"""What the builders of other packages' networks (`from_*`) have in common."""

import importlib
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn

from nayer_pl.errors import InputError


def optional(module: str) -> ModuleType:
    """Import what not everybody has installed.

    Raises:
        InputError: it is missing, or does not work with this PyTorch; says what to install.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # a build for another PyTorch: RuntimeError
        package = module.partition(".")[0]
        raise InputError(
            f"'{package}' cannot be imported ({first_line(error)}); run: pip install {package}"
        ) from error


def needs_name(name: str | None, source: str, example: str) -> str:
    """`name`, or an error that says how to give one."""
    if not name:
        raise InputError(
            f"Which network of {source}? Give teacher.name= or student.name=, such as {example}."
        )
    return name


def refuse_misfit(name: str, found: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Refuse published weights whose (classes, channels) are not the wanted ones.

    The packages would replace the last layer by an untrained one, and say nothing.
    """
    if found != wanted:
        raise InputError(
            f"The published weights of '{name}' have {found[0]} outputs for images of {found[1]} "
            f"channels, {wanted[0]} outputs for {wanted[1]} channels are wanted; give weights that "
            "were trained for these as teacher.weights=PATH, or choose the data set of these."
        )


def carry_normalisation(network: nn.Module, mean: Any, std: Any) -> None:
    """Leave with `network` what its weights were trained with, for `build_classifier`."""
    network.normalisation = {"mean": list(mean), "std": list(std)}  # type: ignore[assignment]


@contextmanager
def explained(what: str, advice: str) -> Iterator[None]:
    """Turn whatever a package or a download raises into one sentence with what to do."""
    try:
        yield
    except InputError:
        raise
    except pickle.UnpicklingError as error:  # PyTorch's own text tells how to run the code
        reason = "a weight file is damaged, or holds more than tensors, and that could run code"
        raise InputError(f"{what} ({reason}); {advice}.") from error
    except Exception as error:
        raise InputError(f"{what} ({first_line(error)}); {advice}.") from error


@contextmanager
def tensors_only() -> Iterator[None]:
    """Let `torch.load` read nothing but tensors, also where a package asks for more.

    timm and torch.hub would unpickle, and thereby run, whatever a weight file holds.
    """
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def first_line(error: Exception) -> str:
    """The sentence of an error, without the page after it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
