"""Options are checked against the annotations of the signature that takes them.

pydantic does the checking, limits included: `rounds: Annotated[int, Ge(1)]`, or pydantic's own
`PositiveInt`, `NonNegativeFloat` and so on. Objects (networks, tensors, functions) are compared
with their class alone.
"""

import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import SchemaError

from nayer_pl.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")

CONFIG = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
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
    "an instance of": "a",
}
PLAIN = (str, int, float, bool, list, tuple, dict, type(None))


class OptionError(InputError):
    """An option has a value that its signature does not allow.

    Args:
        name: Name of the option.
        wanted: What it may be, as it follows "must be".
        value: What it is.
    """

    def __init__(self, name: str, wanted: str, value: object) -> None:
        shown = json.dumps(value, default=str) if isinstance(value, PLAIN) else value
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
    try:
        adapter = _adapter(annotation)
        if isinstance(value, Path):
            value = str(value)
        if isinstance(value, PLAIN) and _is_json(value):
            try:
                adapter.validate_json(json.dumps(value), strict=True)
            except ValidationError as error:
                if all(each["type"] != "needs_python_object" for each in error.errors()):
                    raise
                adapter.validate_python(value, strict=True)
        else:
            adapter.validate_python(value)
    except ValidationError as error:
        raise OptionError(name, _wanted(error), value) from None
    except (
        PydanticUserError,
        SchemaError,
        TypeError,
    ):  # an annotation that says nothing pydantic can check
        return


def check_fields(instance: Any) -> None:
    """Check every field of a dataclass; for its `__post_init__`."""
    types = get_type_hints(type(instance), include_extras=True)
    for field in fields(instance):
        check_option(field.name, getattr(instance, field.name), types[field.name])


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a constructor or function so that its arguments are checked before it runs.

    >>> from pydantic import PositiveInt
    >>> @checked
    ... def synthesize(steps: PositiveInt) -> int:
    ...     return steps
    >>> synthesize(0)
    Traceback (most recent call last):
    nayer_pl.runtime.options.OptionError: steps must be above 0, not 0.
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


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
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


def _wanted(error: ValidationError) -> str:
    """What pydantic says a value should be, without the "Input should be" of every line."""
    reasons = []
    for each in error.errors():
        length = each.get("ctx", {}).get("max_length", each.get("ctx", {}).get("min_length"))
        wrong_length = each["type"] in ("too_long", "too_short")
        reasons.append(f"a list of {length}" if wrong_length else each["msg"])
    text = " or ".join(dict.fromkeys(each.removeprefix("Input should be ") for each in reasons))
    for theirs, ours in WORDS.items():
        text = text.replace(theirs, ours)
    return text
