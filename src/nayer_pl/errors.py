"""The errors that a user can do something about, and other libraries' errors in our words."""

import importlib
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


class NayerError(Exception):
    """Base of the errors below; the command line prints them as one sentence and exits with 1."""


class InputError(NayerError, ValueError):
    """Something that the user gave cannot work; the message says what, and what to do."""


class DivergenceError(NayerError, ArithmeticError):
    """A loss is NaN or infinite; the message names the term and where it happened."""


def import_optional(module: str) -> ModuleType:
    """Import an optional dependency; an InputError says what to install if that is impossible."""
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # a build for another PyTorch: RuntimeError
        package = module.partition(".")[0]
        raise InputError(
            f"'{package}' cannot be imported ({first_line(error)}); run: pip install {package}"
        ) from error


@contextmanager
def friendly_errors(what: str, advice: str) -> Iterator[None]:
    """Turn any error of a package or a download into an InputError: what failed, what to do."""
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
def weights_only_load() -> Iterator[None]:
    """Let `torch.load` read only tensors, also where a package asks for more.

    timm and torch.hub would unpickle any object in a weight file, which can run code.
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
    """The first line of an error's message, without a full stop; or else the name of its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
