"""Checks of the configuration as a whole, before a teacher is trained or a round begins."""

from omegaconf import DictConfig

from nayer_pl.app.instantiate import build, check
from nayer_pl.errors import InputError, require


def check_options(cfg: DictConfig, epochs: int) -> None:
    """Check the options whose objects are built only later.

    Args:
        cfg: The whole configuration.
        epochs: Number of epochs of the run.

    Raises:
        InputError: One of them is unknown, or its value is not allowed.
    """
    require(0 <= cfg.seed < 2**32, "seed", "from 0 to 4294967295", cfg.seed)
    for node in (cfg.model, cfg.trainer, *cfg.logger.values()):
        check(node)
    trainer, every = cfg.trainer, cfg.trainer.log_every_n_steps
    require(every >= 1, "trainer.log_every_n_steps", "at least 1", every)
    allowed = trainer.precision not in ("16-true", "bf16-true")
    wanted = "mixed or full, as bf16-mixed or 32-true"
    require(allowed, "trainer.precision", wanted, trainer.precision)
    every = trainer.get("check_val_every_n_epoch") or 1
    wanted = f"a divisor of the run's {epochs} epochs, so that the last one is evaluated"
    divides = every >= 1 and epochs % every == 0
    require(divides, "trainer.check_val_every_n_epoch", wanted, every)


def resolve_class_names(cfg: DictConfig) -> None:
    """Put the class names into `cfg`, and their number where the data set leaves it open.

    Raises:
        InputError: The names cannot be read, or there is not one for each class of the data set.
    """
    names = build(cfg.class_names)
    if cfg.data.num_classes is None:
        cfg.data.num_classes = len(names)
    if len(names) != cfg.data.num_classes:
        raise InputError(
            f"There are {len(names)} class names, but the data set has {cfg.data.num_classes} "
            "classes; give one name per class, in the order of the labels, as data.class_names."
        )
    cfg.class_names = names
