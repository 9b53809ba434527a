"""Build what a configuration describes; what a user can mend comes out as one sentence.

Hydra passes on whatever was typed. Here it is first compared with what the parameters of a class or
function are annotated with, so that `plan.epochs=two` is not answered by an error of arithmetic.
"""

import inspect
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nayer_pl.errors import InputError, NayerError

WORDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path",
    NoneType: "null",
}  # fmt: skip


def build(node: DictConfig, **overrides: Any) -> Any:
    """Instantiate a node of a configuration, `_target_` and arguments, and those in it.

    Raises:
        InputError: a `_target_` is not there, or has no such option, or not with such a value; or
            it raised an error.
        NayerError: a `_target_` raised it.
    """
    try:
        check(node)
        return instantiate(node, **overrides)
    except (InstantiationException, OmegaConfBaseException) as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, NayerError):
            cause = cause.__cause__
        if isinstance(cause, NayerError):
            raise cause from error
        name = getattr(error, "full_key", None) or node._get_full_key(None)
        reason = " ".join(str(cause).partition("\n    full_key")[0].split()).rstrip(".")
        raise InputError(
            f"'{name}' cannot be built ({reason or type(cause).__name__}); correct its options: "
            "python train.py --cfg job prints them, with what was typed."
        ) from error


def check(node: DictConfig) -> None:
    """Compare the options of a node, and of those in it, with what their targets take.

    Raises:
        InputError: an option is missing or unknown, or has a value of another kind.
    """
    if not isinstance(node, DictConfig):  # a value that was put in its place
        return
    known, closed = options(node.get("_target_"))
    typed: Any = OmegaConf.to_container(node, resolve=False)
    for key in [key for key in typed if not key.startswith("_")]:
        name = _name(node, key, typed[key])
        if closed and key not in known:
            raise InputError(f"There is no option {name}; choose from {', '.join(known)}.")
        if OmegaConf.is_missing(node, key):
            raise InputError(f"{name} is missing; give it as {name}=VALUE.")
        value = node[key]
        if isinstance(value, DictConfig):
            if "_target_" in value and node.get("_recursive_", True):
                check(value)
            continue
        if isinstance(value, ListConfig):
            nodes = [each for each in value if isinstance(each, DictConfig) and "_target_" in each]
            for each in nodes:
                check(each)
            if nodes:
                continue
            value = OmegaConf.to_container(value)
        if not fits(value, known.get(key, Any)):
            given = json.dumps(value, default=str)
            raise InputError(f"{name} must be {in_words(known[key])}, not {given}.")


def options(target: Any) -> tuple[dict[str, Any], bool]:
    """The parameters of a class or function, by name with their types, and whether these are all.

    Where there are `**kwargs`, they are not; those of a base class are most likely among them.
    """
    known: dict[str, Any] = {}
    try:
        built = get_object(target)
        classes = built.__mro__ if inspect.isclass(built) else ()
        steps = [vars(c)["__init__"] for c in classes if "__init__" in vars(c)] or [built]
        for i, step in enumerate(steps):
            parameters, types = inspect.signature(step).parameters.values(), get_type_hints(step)
            for p in parameters:
                if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self":
                    known.setdefault(p.name, types.get(p.name, Any))
            if all(p.kind != p.VAR_KEYWORD for p in parameters):
                return known, i == 0
    except Exception:  # there is no such thing, or it does not say: whoever builds it finds out
        return known, False
    return known, False


def fits(value: Any, kind: Any) -> bool:
    """Whether a plain value is of a type; types that no plain value has are not looked at.

    >>> fits(1, float), fits(True, int), fits("a", Literal["b"]), fits([1, 2], Sequence[int])
    (True, False, False, True)
    """
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind is Path:
        return isinstance(value, str)
    if kind in (list, tuple):
        return isinstance(value, list)
    if kind in WORDS:
        return type(value) is kind
    if origin is tuple and parts and ... not in parts:
        right = isinstance(value, list) and len(value) == len(parts)
        return right and all(map(fits, value, parts))
    if origin in (Sequence, list, tuple):
        of = parts[0] if parts else Any
        return isinstance(value, list) and all(fits(each, of) for each in value)
    if isinstance(kind, type) and not getattr(kind, "_is_protocol", False):
        return isinstance(value, kind)
    return True


def in_words(kind: Any) -> str:
    """What `fits` wants.

    >>> in_words(Sequence[float] | None)
    'a list of numbers or null'
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(" or ".join(map(in_words, parts)).split(" or ")))
    if origin is Literal:
        return " or ".join(map(str, parts))
    if origin is tuple and parts and ... not in parts:
        return f"a list of {len(parts)} {in_words(parts[0]).removeprefix('a ')}s"
    if origin in (Sequence, list, tuple):
        of = "" if not parts or parts[0] is Any else f" of {in_words(parts[0]).removeprefix('a ')}s"
        return f"a list{of}"
    return WORDS.get(kind) or f"a {getattr(kind, '__name__', kind)}"


def _name(node: DictConfig, key: str, typed: Any) -> str:
    """What a user calls an option: that from which it takes its value, if it is one."""
    if isinstance(typed, str) and typed.startswith("${") and typed.endswith("}"):
        inner = typed[2:-1]
        if not set(inner) & set("${}:"):
            return inner
    return str(node._get_full_key(key))
