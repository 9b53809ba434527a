"""Other libraries: imports that may fail, errors in a page of text, files that could run code."""

import importlib
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from nayer_pl.errors import InputError


def import_optional(module: str) -> ModuleType:
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


@contextmanager
def friendly_errors(what: str, advice: str) -> Iterator[None]:
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
def weights_only_load() -> Iterator[None]:
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
