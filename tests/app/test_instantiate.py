import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, List, Literal, Optional, Protocol  # noqa: UP035

import pytest
from omegaconf import OmegaConf

from nayer_pl import DivergenceError, InputError, Plan
from nayer_pl.app.instantiate import build, check, fits, in_words, options

MODELS = sorted((Path(__file__).resolve().parents[2] / "conf" / "model").glob("[!_]*.yaml"))


class Shape(Protocol):
    sides: int


class Base:
    def __init__(self, size: int, rate: float = 0.1) -> None:
        if size == 0:
            raise DivergenceError("of no size")
        self.size, self.rate = size, rate


class Derived(Base):
    def __init__(self, name: str, parts: Sequence[int] = (), **rest: Any) -> None:
        super().__init__(**rest)
        self.name, self.parts = name, parts


def fails(path: str) -> None:
    raise OSError(28, "No space left on device", path)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """Under the name that the configurations below use."""
    module = types.ModuleType("theirs")
    module.Base, module.Derived, module.fails = Base, Derived, fails
    monkeypatch.setitem(sys.modules, "theirs", module)


def node(text: str, key: str = "model"):
    return OmegaConf.create(text)[key]


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (int, [0, -3], [1.0, True, "1", None, [1]]),
        (float, [0.5, 2, 4e-3], [True, "0.5", None, float("nan"), float("inf")]),
        (bool, [True, False], [0, 1, "true", None]),
        (str, ["", "3"], [3, None, True, ["a"]]),
        (str | None, ["a", None], [3]),
        (Optional[int], [3, None], ["a"]),  # noqa: UP045
        (str | Path, ["a/b"], [3]),
        (Literal["a", 2], ["a", 2], ["b", None]),
        (Sequence[float], [[], [1, 0.5]], [0.5, "ab", [1, "a"]]),
        (Sequence[str] | None, [["a"], None], ["a", [1]]),
        (tuple[float, float], [[0.5, 0.9]], [[0.5], [1, 2, 3]]),
        (tuple[int, ...], [[], [1, 2, 3]], [[0.5]]),
        (List, [[], [1, "a"]], ["a", 3]),  # noqa: UP006
        (tuple, [[], [1, "a"]], ["a", 3]),
        (list[int] | str, [[0, 1], "0,1"], [0.5]),
        (Plan | None, [None], ["a", 3]),
        (Mapping[str, Any], [{"a": 1}], []),
        (Any, [1, "a", None], []),
        (Callable[[int], int], ["what it is, only the target knows"], []),
        (Shape, ["nor here"], []),
    ],
)
def test_values_are_of_the_types_that_are_asked_for(kind, right, wrong):
    assert [value for value in right if not fits(value, kind)] == []
    assert [value for value in wrong if fits(value, kind)] == []


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int | None, "a whole number or null"),
        (float, "a number"),
        (Literal["lte", "noise"], "lte or noise"),
        (Literal["a", "b"] | Literal["b"] | bool, "a or b or true or false"),
        (Sequence[float], "a list of numbers"),
        (tuple[int, int], "a list of 2 whole numbers"),
        (Plan, "a Plan"),
    ],
)
def test_types_are_named_as_a_reader_would(kind, words):
    assert in_words(kind) == words


def test_options_of_a_base_class_are_known_but_not_all_there_are():
    assert options("theirs.Base") == ({"size": int, "rate": float}, True)
    known, every = options("theirs.Derived")
    assert list(known) == ["name", "parts", "size", "rate"]
    assert not every
    assert options("theirs.nothing") == options(None) == ({}, False)


def test_what_is_right_is_built():
    cfg = OmegaConf.create(
        """
        rate: 1
        part: {_target_: theirs.Base, size: 3, rate: "${rate}"}
        model: {_target_: theirs.Derived, name: n, parts: [1, 2], size: 4, rate: 0.5}
        both: {_target_: builtins.dict, a: "${part}", b: "${model}"}
        """
    )
    made = build(cfg.both)
    assert (made["a"].size, made["a"].rate) == (3, 1)
    assert (made["b"].name, made["b"].parts, made["b"].size) == ("n", [1, 2], 4)
    assert build(cfg.part, size=7).size == 7


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (
            "model: {_target_: theirs.Base, size: two}",
            'model.size must be a whole number, not "two"',
        ),
        (
            "model: {_target_: theirs.Base, size: null}",
            "model.size must be a whole number, not null",
        ),
        (
            "steps: 0.5\nmodel: {_target_: theirs.Base, size: '${steps}'}",
            "^steps must be a whole number, not 0.5",
        ),
        (
            "model: {_target_: builtins.dict, a: {_target_: theirs.Base, size: a}}",
            r"model\.a\.size must be",
        ),
        (
            "part: {_target_: theirs.Base, size: a}\n"
            "model: {_target_: builtins.dict, a: '${part}'}",
            r"^part\.size must be",
        ),
        (
            "model: {_target_: theirs.Base, size: 1, depth: 2}",
            r"no option model\.depth; choose from size, rate",
        ),
        ("model: {_target_: theirs.Base, size: '???'}", r"model\.size is missing; give it as"),
        ("model: {_target_: theirs.Derived, name: 3}", "model.name must be a text"),
        ("model: {_target_: theirs.Derived, name: a, size: a}", "model.size must be"),
        (
            "model: {_target_: theirs.Derived, name: a, size: 1, depth: 2}",
            r"'model' cannot be built \(.*unexpected keyword argument 'depth'\)",
        ),
        ("model: {_target_: theirs.Nothing}", r"'model.*' cannot be built \(.*theirs.Nothing"),
        ("model: {_target_: no.such.thing}", r"'model.*' cannot be built \(No module named 'no'\)"),
        ("model: {_target_: theirs.Base}", "missing 1 required positional argument: 'size'"),
        ("model: {_target_: theirs.Base, size: '${nowhere}'}", "'nowhere' not found"),
        (
            "model: {_target_: theirs.fails, path: disk}",
            r"'model' cannot be built \(.Errno 28. No space left on device: 'disk'\)",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(text, answer):
    with pytest.raises(InputError, match=answer) as caught:
        build(node(text))
    assert "\n" not in str(caught.value)


def test_errors_that_are_sentences_already_come_as_they_are():
    with pytest.raises(DivergenceError, match=r"^of no size$"):
        build(node("model: {_target_: builtins.dict, a: {_target_: theirs.Base, size: 0}}"))


def test_a_description_that_is_not_built_is_not_looked_into():
    text = (
        "model: {_target_: builtins.dict, _recursive_: false, a: {_target_: theirs.Base, size: x}}"
    )
    assert build(node(text)) == {"a": {"_target_": "theirs.Base", "size": "x"}}


def test_a_value_in_the_place_of_a_node_stays(config):
    cfg = OmegaConf.create({"names": ["a", "b"]})
    assert list(build(cfg.names)) == ["a", "b"]


@pytest.mark.parametrize("model", [path.stem for path in MODELS])
def test_what_lies_in_conf_is_right(config, model):
    cfg = config(f"model={model}", "data=digits", "text_encoder=minilm", "strategy=ddp_gloo")
    for part in (cfg.model, cfg.datamodule, cfg.trainer, *cfg.callbacks.values()):
        check(part)
