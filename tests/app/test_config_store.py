import functools
import inspect
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from torch.optim import SGD, Adam

from nayer_pl import Generator, Plan
from nayer_pl.app.config_store import public_targets, signature_config

CONF = Path(__file__).resolve().parents[2] / "conf"
MODELS = sorted(path.stem for path in (CONF / "model").glob("[!_]*.yaml"))
DATA = sorted(path.stem for path in (CONF / "data").glob("[!_]*.yaml"))


def method(
    teacher: Any,
    plan: Plan,
    weight: float = 0.5,
    betas: tuple[float, float] = (0.5, 0.999),
    path: Path | None = None,
    folder: Path = Path("runs") / "a",
    generator: Any = Generator,
    optimizer: Any = functools.partial(SGD, lr=0.2, momentum=0.9),
    thing: Any = object(),  # noqa: B008
    **options: Any,
) -> dict[str, Any]:
    return {"optimizer": optimizer, "generator": generator, **options}


def test_signature_config(monkeypatch):
    monkeypatch.setitem(sys.modules, "theirs", types.SimpleNamespace(method=method))
    node = signature_config("theirs.method")
    optimizer = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.2, "momentum": 0.9}
    assert node == {
        "_target_": "theirs.method",
        "weight": 0.5,
        "betas": [0.5, 0.999],
        "path": None,
        "folder": "runs/a",
        "generator": {"_target_": "nayer_pl.Generator", "_partial_": True},
        "optimizer": optimizer,
    }
    made = instantiate(OmegaConf.create(node), teacher=None, plan=None)
    assert made["optimizer"]([next(Generator(3, (1, 4, 4)).parameters())]).defaults["lr"] == 0.2


def test_register_signatures__choice(config):
    """A default that is a choice can be changed, or replaced as a whole."""
    changed = config("model=nayer", "data=cifar10", "model.optimizer.lr=1").model.optimizer
    assert changed._target_ == "torch.optim.SGD"
    assert (changed.lr, changed.momentum) == (1, 0.9)
    replaced = config("model=nayer", "data=cifar10", "optimizer=adam").model.optimizer
    assert "momentum" not in replaced
    assert instantiate(replaced).func is Adam


def nodes(node: Any, key: str = "") -> dict[str, DictConfig]:
    """Every node of a configuration that has a `_target_` of ours, by its full key."""
    if not isinstance(node, DictConfig):
        return {}
    ours = str(node.get("_target_", "")).startswith("nayer_pl.")
    found = {key: node} if ours else {}
    for name in node:
        inner = node._get_node(name)
        if isinstance(inner, DictConfig) and not (inner._is_none() or inner._is_interpolation()):
            found.update(nodes(inner, f"{key}.{name}".strip(".")))
    return found


@pytest.mark.parametrize("choices", [*(("model", m) for m in MODELS), *(("data", d) for d in DATA)])
def test_conf__every_option_is_printed(config, choices):
    group, name = choices
    cfg = config(f"{group}={name}", *(["data=digits"] if group == "model" else []))
    found = nodes(cfg)
    assert {"class_names", "callbacks.checkpoint", "data.source", "logger.csv"} <= set(found)
    for key, node in found.items():
        if node.get("_recursive_", True) and not node.get("_partial_"):  # not a description
            assert set(signature_config(node._target_)) <= set(node), key


def test_conf__typed_and_own_values_win(config):
    cfg = config("plan.kd_steps=7", "data=digits", "plan.epochs=null", "datamodule.holdout=a")
    assert (cfg.plan.kd_steps, cfg.plan.epochs, cfg.datamodule.holdout) == (7, None, "a")
    assert (cfg.data.augmentation.padding, cfg.data.augmentation.flip) == (2, False)
    switched = config("data=imagenet", "signature@data.source=FolderImages").data.source
    assert switched._target_ == "nayer_pl.FolderImages"
    assert "label_column" not in switched


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda path: path.stem)
def test_conf__no_default_is_repeated(file):
    raw = yaml.safe_load(file.read_text()) or {}
    public = public_targets()
    signatures = {
        key.partition("@")[2]: public[name]
        for entry in raw.get("defaults", [])
        if isinstance(entry, dict)
        for key, name in entry.items()
        if "/signature@" in key
    }
    repeated = []

    def look(node: Any, key: str) -> None:
        if not isinstance(node, dict):
            return
        target = node.get("_target_") or signatures.get(key or "_here_")
        if target and target.startswith("nayer_pl."):
            defaults = inspect.signature(get_object(target)).parameters
            written = signature_config(target)
            repeated.extend(
                f"{key}.{name}"
                for name, value in node.items()
                if name in defaults and name in written and value == written[name]
            )
        for name, inner in node.items():
            look(inner, f"{key}.{name}".strip("."))

    look(raw, "")
    assert repeated == []
