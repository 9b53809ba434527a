import sys
import types
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import pytest
from annotated_types import Ge
from omegaconf import OmegaConf

from nayer_pl import DivergenceError, InputError
from nayer_pl.app.instantiate import build, check
from nayer_pl.runtime.options import checked


class Part:
    @checked
    def __init__(self, size: Annotated[int, Ge(1)], rate: float = 0.1, total_size: int = 9) -> None:
        if size == 13:
            raise DivergenceError("of an unlucky size")
        if size > total_size:
            raise InputError(f"A part exceeds the total: set total_size to {size}, or size={size}.")
        self.size, self.rate = size, rate


class Whole:
    def __init__(
        self,
        name: str,
        parts: Sequence[Part] = (),
        make: Callable[..., Part] = Part,
        weights: dict[str, float] | None = None,
        **rest: Any,
    ) -> None:
        self.name, self.parts, self.rest = name, parts, rest
        self.weights, self.made = weights, make(size=2)


def fails(path: str) -> None:
    raise OSError(28, "No space left on device", path)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """Under the name that the configurations below use."""
    module = types.ModuleType("theirs")
    module.Part, module.Whole, module.fails = Part, Whole, fails
    monkeypatch.setitem(sys.modules, "theirs", module)


def node(text: str):
    return OmegaConf.create(text).model


def test_build():
    cfg = OmegaConf.create(
        """
        rate: 1
        part: {_target_: theirs.Part, size: 3, rate: "${rate}"}
        model:
          _target_: theirs.Whole
          name: n
          parts: ["${part}", {_target_: theirs.Part, size: 4}]
          make: {_target_: theirs.Part, _partial_: true, rate: 0.5}
          weights: {kl: 1, ce: 0.5}
          other: 5
        """
    )
    made = build(cfg.model)
    assert [(part.size, part.rate) for part in made.parts] == [(3, 1), (4, 0.1)]
    assert (made.made.size, made.made.rate) == (2, 0.5)
    assert (made.name, made.weights, made.rest) == ("n", {"kl": 1, "ce": 0.5}, {"other": 5})
    assert build(cfg.part, size=7).size == 7
    assert build(cfg.model.weights) == cfg.model.weights
    assert build(cfg.model.make)(size=3).rate == 0.5


PART, WHOLE = "model: {_target_: theirs.Part, ", "model: {_target_: theirs.Whole, name: n, "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PART + "size: null}", r"^model\.size must be a whole number, not null"),
        (PART + "size: '${steps}'}\nsteps: 0.5", r"^steps must be a whole number, not 0.5"),
        (PART + "size: 1, depth: 2}", r"no option model\.depth; choose from size, rate"),
        (PART + "size: '${nowhere}'}", "'nowhere' not found"),
        ("model: {_target_: theirs.Part}", "missing a required argument: 'size'"),
        (WHOLE + "weights: {kl: x}}", r"^model\.weights\.kl must be a number"),
        (WHOLE + "parts: [{_target_: theirs.Part, size: a}]}", r"^model\.parts\[0\]\.size must be"),
        (WHOLE + "make: {_target_: theirs.Part, _partial_: true, sizes: 1}}",
         r"no option model\.make\.sizes; did you mean 'size'"),
        (WHOLE + "parts: ['${part}']}\npart: {_target_: theirs.Part, rate: x}",
         r"^part\.rate must be a number"),
        ("model: {_target_: theirs.Nothing}", r"'model' cannot be built \(.*theirs.Nothing"),
        ("model: {_target_: no.such.thing}", r"'model' cannot be built \(No module named 'no'\)"),
        ("model: {_target_: theirs.fails, path: disk}",
         r"'model' cannot be built \(.Errno 28. No space left on device: 'disk'\)"),
    ],
)  # fmt: skip
def test_build__mistake(text, message):
    with pytest.raises(InputError, match=message) as caught:
        build(node(text))
    assert "\n" not in str(caught.value)


def test_build__names_that_were_typed():
    """A constructor names its parameters, since it knows nothing of a command line."""
    cfg = OmegaConf.create(
        """
        total: 4
        part: {_target_: theirs.Part, size: 5, total_size: "${total}"}
        model: {_target_: builtins.dict, a: "${part}"}
        """
    )
    with pytest.raises(InputError, match=r"set total to 5, or part\.size=5"):
        build(cfg.model)
    with pytest.raises(InputError, match=r"^part\.size must be at least 1, not 0"):
        build(cfg.part, size=0)


def test_build__error_of_the_run():
    with pytest.raises(DivergenceError, match="of an unlucky size"):
        build(node("model: {_target_: builtins.dict, a: {_target_: theirs.Part, size: 13}}"))


def test_build__not_recursive():
    text = (
        "model: {_target_: builtins.dict, _recursive_: false, a: {_target_: theirs.Part, size: x}}"
    )
    assert build(node(text)) == {"a": {"_target_": "theirs.Part", "size": "x"}}


def test_check__conf(config):
    cfg = config("data=digits", "text_encoder=minilm", "strategy=ddp_gloo")
    for part in (cfg.model, cfg.datamodule, cfg.trainer, cfg.data.source, *cfg.callbacks.values()):
        check(part)
