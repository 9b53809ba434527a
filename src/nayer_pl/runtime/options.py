"""Options are checked against the annotations of the signature that takes them.

pydantic does the checking, limits included: `rounds: Annotated[int, Ge(1)]`, or pydantic's own
`PositiveInt`, `NonNegativeFloat` and so on. Objects (networks, tensors, functions) are compared
with their class alone.
"""

import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, InstanceOf, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import ErrorDetails, SchemaError

from nayer_pl.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")

CONFIG = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
PLAIN = (str, int, float, bool, list, tuple, dict, NoneType)
LONGEST = 200  # characters of a value that a message shows

# pydantic's words after "Input should be", and those of a reader who knows no pydantic.
WORDS = {
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a finite number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "a text",
    "a valid array": "a list",
    "a valid tuple": "a list",
    "a valid list": "a list",
    "an instance of": "a",
    "an object": "a mapping",
    "callable": "a class or function",
}


class OptionError(InputError):
    """An option has a value that its signature does not allow; "name must be wanted, not value"."""

    def __init__(self, name: str, wanted: str, value: object) -> None:
        shown = json.dumps(value, default=str) if isinstance(value, PLAIN) else str(value)
        shown = shown if len(shown) <= LONGEST else f"{shown[:LONGEST]} ..."
        super().__init__(f"{name} must be {wanted}, not {shown}.")
        self.name, self.wanted, self.value = name, wanted, value


def check_option(name: str, value: Any, annotation: Any) -> None:
    """Raise an OptionError unless `value` is what `annotation` allows.

    Plain values are read as JSON is: a list is a sequence or a tuple and a text is a path, but
    `true` is no number, "5" is none either, and NaN and infinity are refused.

    >>> check_option("rounds", 3, int)
    >>> check_option("rounds", True, int)
    Traceback (most recent call last):
    nayer_pl.runtime.options.OptionError: rounds must be a whole number, not true.
    """
    union = get_origin(annotation) in (Union, UnionType)
    allowed = get_args(annotation) if union else (annotation,)  # pydantic is silent about null
    errors = [(_error(value, each), each) for each in allowed]
    if any(error is None for error, _ in errors):
        return
    wrong = [(error, each) for error, each in errors if error is not None]
    inside = [each for each in wrong if each[0]["loc"] and each[0]["type"] != "missing"]
    if len(inside) == 1:  # a single element of a list or mapping
        wrong, found = inside, inside[0][0]
        name += "".join(f"[{i}]" if isinstance(i, int) else f".{i}" for i in found["loc"])
        value = found["input"]
    raise OptionError(name, " or ".join(dict.fromkeys(_wanted(*each) for each in wrong)), value)


class CheckedFields:
    """Base of a dataclass, each of whose fields must be what its annotation allows."""

    def __post_init__(self) -> None:
        types = get_type_hints(type(self), include_extras=True)
        for field in fields(self):  # type: ignore[arg-type]
            check_option(field.name, getattr(self, field.name), types[field.name])


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a constructor or function so that its arguments are checked before it runs.

    >>> from pydantic import PositiveInt
    >>> @checked
    ... def synthesize(steps: PositiveInt) -> int:
    ...     return steps
    >>> synthesize(0)
    Traceback (most recent call last):
    nayer_pl.runtime.options.OptionError: steps must be at least 1, not 0.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        types = _types(function)
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in types:
                check_option(name, value, types[name])
        return function(*args, **kwargs)

    return wrapper


@functools.cache
def _types(function: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(function, include_extras=True)


def _error(value: Any, annotation: Any) -> ErrorDetails | None:
    """What is wrong with a value; None where pydantic finds nothing, or cannot check at all."""
    value = str(value) if isinstance(value, Path) else value
    try:
        adapter = _adapter(annotation)
        if not _is_json(value) or is_dataclass(annotation):
            adapter.validate_python(value)
            return None
        try:
            adapter.validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            if all(each["type"] != "needs_python_object" for each in error.errors()):
                raise
            adapter.validate_python(value, strict=True)
    except ValidationError as error:
        return error.errors()[0]
    except (PydanticUserError, SchemaError, TypeError):
        pass
    return None


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    if is_dataclass(annotation):
        annotation = InstanceOf[annotation]  # type: ignore[misc]  # a mapping of its fields would do otherwise
    try:
        return TypeAdapter(annotation, config=CONFIG)
    except PydanticUserError:  # a type with a configuration of its own
        return TypeAdapter(annotation)


def _is_json(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(each) for key, each in value.items())
    return isinstance(value, PLAIN)


def _wanted(error: ErrorDetails, annotation: Any) -> str:
    """What a value should be, as it follows "must be"."""
    context = error.get("ctx", {})
    match error["type"]:
        case "none_required":
            return "null"
        case "missing" | "too_long" if get_origin(annotation) is tuple:
            return f"a list of {len(get_args(annotation))}"
        case "too_long" | "string_too_long":
            return f"of length {context['max_length']} at most"
        case "too_short" | "string_too_short":
            return f"of length {context['min_length']} at least"
        case "greater_than" if isinstance(context["gt"], int):
            return f"at least {context['gt'] + 1}"
    text = error["msg"].removeprefix("Input should be ")
    for theirs, ours in WORDS.items():
        text = text.replace(theirs, ours)
    return text
