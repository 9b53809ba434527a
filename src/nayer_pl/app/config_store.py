"""What Python code adds to the configuration: networks, defaults of signatures, and recipes."""

import dataclasses
import functools
import importlib
import inspect
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from nayer_pl.errors import InputError
from nayer_pl.networks import Classifier, build_classifier, list_models, load_teacher

log = logging.getLogger(__name__)


def register_networks() -> None:
    """Make every network of `list_models()` an entry of the config groups `teacher` and `student`.

    conf/teacher and conf/student hold the other entries.
    """
    store = ConfigStore.instance()
    for name in list_models():
        architecture = {
            "_target_": f"nayer_pl.networks.{name}",
            "num_classes": "${data.num_classes}",
            "channels": "${data.image_shape[0]}",
        }
        student = {"defaults": ["_base"], "architecture": architecture}
        teacher = {
            **student,
            "weights": f"${{paths.teachers}}/${{data.name}}_{name}.safetensors",
            "trained_by": f"model=supervised data=${{data.name}} teacher={name}",
        }
        store.store(name, student, group="student")
        store.store(name, teacher, group="teacher")


def load_external_teacher(
    architecture: Mapping[str, Any],
    name: str | None,
    weights: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    trained_by: str | None = None,
    prefix: str | None = None,
    trust_code: bool = False,
    pretrained: bool | str = True,
    repo: str | None = None,
    source: Literal["github", "local"] = "github",
) -> Classifier:
    """`load_teacher`; `architecture` already has `name`, `pretrained`, `repo` and `source`.

    They are options of the teacher too, because these are short to type.
    """
    return load_teacher(architecture, weights, mean, std, trained_by, prefix, trust_code)


def build_external_student(
    architecture: Mapping[str, Any],
    name: str | None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: str | None = None,
    prefix: str | None = None,
    trust_code: bool = False,
) -> Classifier:
    """`build_classifier`; `architecture` already has `name`."""
    return build_classifier(architecture, mean, std, weights, prefix, trust_code)


# Where the public names are; and what is public for configurations alone.
MODULES = ("nayer_pl", "nayer_pl.callbacks")
LOGGERS = ("nayer_pl.callbacks.loggers.wandb_logger", "nayer_pl.callbacks.loggers.MetricsFile")
SIGNATURES = "signature"

# What is chosen as a whole, by a group of its own, and so must not be merged with a default.
CHOICES = ("student_loss", "optimizer", "scheduler")


def signature_config(target: str) -> dict[str, Any]:
    """The node that builds `target` with its defaults.

    A default that is a class, a function or a `functools.partial` becomes a node with `_partial_`.
    Parameters without a default, or with one that no yaml can hold, are left out.

    >>> signature_config("nayer_pl.RandomCropFlip")
    {'_target_': 'nayer_pl.RandomCropFlip', 'padding': 4, 'flip': True}
    """
    node: dict[str, Any] = {"_target_": target}
    for name, parameter in inspect.signature(get_object(target)).parameters.items():
        if parameter.default is not parameter.empty:
            with suppress(TypeError):
                node[name] = _plain(parameter.default)
    return node


def public_targets() -> dict[str, str]:
    """Import paths of the public classes and functions, by name."""
    modules = [importlib.import_module(path) for path in MODULES]
    paths = [*LOGGERS, *(f"{each.__name__}.{name}" for each in modules for name in each.__all__)]
    return {path.rpartition(".")[2]: path for path in paths if not path.endswith("Error")}


def register_signatures() -> None:
    """Let configurations name what is public: `/signature@NODE: NAME`.

    A default that is a choice is an option of its group instead: `/optimizer: NAME`.
    """
    store = ConfigStore.instance()
    for name, target in public_targets().items():
        node = signature_config(target)
        for choice in CHOICES:
            if isinstance(node.get(choice), dict):
                store.store(name, node.pop(choice), group=choice, package=f"model.{choice}")
        store.store(name, node, group=SIGNATURES)


def _plain(value: Any) -> Any:
    """A default as a yaml holds it; a TypeError if none can."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, functools.partial) and not value.args:
        keywords = {name: _plain(each) for name, each in value.keywords.items()}
        return {"_target_": _import_path(value.func), "_partial_": True, **keywords}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
        return {"_target_": _import_path(type(value)), **parts}
    if inspect.isclass(value) or inspect.isfunction(value):
        return {"_target_": _import_path(value), "_partial_": True}
    raise TypeError(value)


def _import_path(thing: Any) -> str:
    """The shortest path by which a class or function can be imported, which is the public one."""
    name, modules = thing.__qualname__, thing.__module__.split(".")
    for end in range(1, len(modules)):
        path = ".".join(modules[:end])
        if getattr(importlib.import_module(path), name, None) is thing:
            return f"{path}.{name}"
    return f"{thing.__module__}.{name}"


RECIPES = "recipe"
SAME = {"scratch": "kd"}  # methods that take the recipes of another


def register_recipes(conf: Path) -> None:
    """Make every section of every recipe an entry METHOD_DATA of the config group `recipe`.

    One that stands alone, as recipe/METHOD_DATA.yaml in a directory of `--config-dir`, needs the
    line `recipe_name: NAME`.
    """
    store = ConfigStore.instance()
    files = (conf / RECIPES).glob("*.yaml")
    recipes: dict[str, Any] = {file.stem: OmegaConf.load(file) for file in files}
    for method, source in {**{name: name for name in recipes}, **SAME}.items():
        for data, recipe in recipes[source].items():
            node = {"recipe_name": f"{source}_{data}", **recipe}
            store.store(f"{method}_{data}", node, group=RECIPES, package="_global_")


@rank_zero_only
def log_recipe(cfg: DictConfig) -> None:
    """Say which recipe a configuration has; or that it has none, and what stands in for it."""
    if RECIPES in cfg:
        known = ", ".join(cfg[RECIPES])
        raise InputError(
            f"A recipe is chosen as recipe=METHOD_DATA; this method's are for {known}."
        )
    if cfg.recipe_name:
        log.info("Recipe: %s.", cfg.recipe_name)
        return
    log.info(
        "There is no recipe for %s on %s: these are the defaults of the method, made for CIFAR-10 "
        "or its like. Set plan.* and model.* for your data, or take another's recipe with "
        "recipe=METHOD_DATA.",
        cfg.model_name, cfg.data.name,
    )  # fmt: skip
