from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, List, Literal, Optional, Protocol  # noqa: UP035

import pytest
import torch
from annotated_types import Ge, Len, Lt
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from nayer_pl import InputError
from nayer_pl.runtime.options import CheckedFields, OptionError, check_option, checked


class Shape(Protocol):
    sides: int


@dataclass(frozen=True)
class Sizes(CheckedFields):
    width: PositiveInt = 64
    names: Sequence[str] = ()


Momentum = Annotated[float, Ge(0), Lt(1)]


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        (int, [0, -3], [1.0, True, "1", None, [1]]),
        (float, [0.5, 2, 4e-3], [True, "0.5", None, float("nan"), float("inf")]),
        (bool, [True, False], [0, 1, "true", None]),
        (str, ["", "3"], [3, None, True, ["a"]]),
        (str | None, ["a", None], [3]),
        (Optional[int], [3, None], ["a"]),  # noqa: UP045
        (str | Path, ["a/b", Path("a")], [3]),
        (Literal["a", 2], ["a", 2], ["b", None]),
        (Sequence[float], [[], [1, 0.5], (1, 2)], [0.5, "ab", [1, "a"]]),
        (Sequence[str] | None, [["a"], None], ["a", [1]]),
        (tuple[float, float], [[0.5, 0.9], (1, 2)], [[0.5], [1, 2, 3]]),
        (tuple[int, ...], [[], [1, 2, 3]], [[0.5]]),
        (List, [[], [1, "a"]], ["a", 3]),  # noqa: UP006
        (list[int] | str, [[0, 1], "0,1"], [0.5]),
        (Mapping[str, Any], [{"a": 1}], [[]]),
        (Any, [1, "a", None], []),
        (Momentum, [0, 0.9], [-0.1, 1, "a"]),
        (PositiveInt | None, [1, None], [0, 0.5]),
        (PositiveFloat, [1e-9, 1], [0, -1]),
        (Annotated[Sequence[float], Len(1, 2)], [[1], [1, 2]], [[], [1, 2, 3]]),
        (Sizes | None, [None, Sizes()], ["a", 3, {"width": 3}]),
        (torch.Tensor | None, [torch.zeros(1), None], [3, [0.5]]),
        (torch.nn.Module, [torch.nn.ReLU()], ["relu"]),
        (Callable[[int], int], [abs, torch.nn.ReLU], ["abs"]),
        (Shape, ["not checked, since a protocol has no class"], []),
    ],
)
def test_check_option__types_and_limits(annotation, right, wrong):
    for value in right:
        check_option("x", value, annotation)
    for value in wrong:
        with pytest.raises(InputError, match=r"^x\S* must be "):
            check_option("x", value, annotation)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (int | None, "two", 'x must be a whole number or null, not "two".'),
        (PositiveInt, 0, "x must be at least 1, not 0."),
        (NonNegativeFloat, -1, "x must be at least 0, not -1."),
        (PositiveFloat, 0, "x must be above 0, not 0."),
        (Momentum, 1, "x must be below 1, not 1."),
        (float, float("nan"), "x must be a number, not NaN."),
        (Literal["lte", "noise"], "lt", "x must be 'lte' or 'noise', not \"lt\"."),
        (bool | Literal["warn"], 3, "x must be true or false or 'warn', not 3."),
        (Sequence[float] | None, [1, "a"], 'x[1] must be a number, not "a".'),
        (Mapping[str, int], {"a": None}, "x.a must be a whole number, not null."),
        (tuple[int, int], [1], "x must be a list of 2, not [1]."),
        (Sizes | None, 3, "x must be a Sizes or null, not 3."),
    ],
)
def test_check_option__message(annotation, value, message):
    with pytest.raises(OptionError) as caught:
        check_option("x", value, annotation)
    assert str(caught.value) == message


def test_check_option__long_value():
    with pytest.raises(OptionError) as caught:
        check_option("names", ["a"] * 1000, int)
    assert len(str(caught.value)) < 300


def test_checked_fields():
    assert Sizes(3, ["a"]).width == 3
    with pytest.raises(OptionError, match=r"^width must be at least 1, not 0"):
        Sizes(0)
    with pytest.raises(OptionError, match=r"^names\[0\] must be a text"):
        Sizes(names=[1])


def test_checked():
    @checked
    def synthesize(steps: PositiveInt, rate: float = 0.1, *sizes: int, **options: Any) -> tuple:
        return steps, rate, sizes, options

    assert synthesize(2, rate=1, other="a") == (2, 1, (), {"other": "a"})
    with pytest.raises(OptionError, match=r"^rate must be a number") as caught:
        synthesize(2, "fast")
    assert (caught.value.name, caught.value.value) == ("rate", "fast")
    with pytest.raises(TypeError, match="steps"):
        synthesize()
