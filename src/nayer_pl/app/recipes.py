"""Recipes: the numbers of one method on one data set, a section of conf/recipe/METHOD.yaml each."""

import logging
from pathlib import Path

from hydra.core.config_store import ConfigStore
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from nayer_pl.errors import InputError

log = logging.getLogger(__name__)

GROUP = "recipe"
SAME = {"scratch": "kd"}  # methods that take the recipes of another


def register_recipes(conf: Path) -> None:
    """Make every section of every recipe an entry METHOD_DATA of the config group `recipe`.

    Hydra must know them before it composes a configuration. One that stands alone, as
    recipe/METHOD_DATA.yaml in a directory of `--config-dir`, needs the line `recipe_name: NAME`.

    Args:
        conf: The directory of the configuration.
    """
    store = ConfigStore.instance()
    recipes = {file.stem: OmegaConf.load(file) for file in (conf / GROUP).glob("*.yaml")}
    for method, source in {**{name: name for name in recipes}, **SAME}.items():
        for data, recipe in recipes[source].items():
            node = {"recipe_name": f"{source}_{data}", **recipe}
            store.store(f"{method}_{data}", node, group=GROUP, package="_global_")


@rank_zero_only
def log_recipe(cfg: DictConfig) -> None:
    """Say which recipe a configuration has; or that it has none, and what stands in for it.

    Raises:
        InputError: A whole file was chosen, not one of its sections.
    """
    if GROUP in cfg:
        known = ", ".join(cfg[GROUP])
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
