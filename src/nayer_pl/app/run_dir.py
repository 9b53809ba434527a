"""What is checked before any work begins: the run's directory, and the options as a whole."""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lightning import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig

from nayer_pl.app.instantiate import build, check, with_typed_names
from nayer_pl.callbacks.export import Export
from nayer_pl.errors import InputError
from nayer_pl.runtime.files import cannot_write, check_folder, remove_unfinished

SPACE_NEEDED = 64 * 1024**2  # bytes: weights, pictures and logs of a small run
FOLDERS = ("checkpoints", "bank")


def require(condition: bool, name: str, wanted: str, value: object) -> None:
    """Raise an InputError unless `condition` holds, which is what `value` should be.

    Example:
        >>> require(1 > 0, "trainer.devices", "above 0", 1)
    """
    if not condition:
        raise InputError(f"{name} must be {wanted}, not {value}.")


@rank_zero_only
def prepare_run_dir(path: str, resume: bool = False) -> None:
    """Make the run's directory, and remove half-written files from it.

    Raises an InputError if it is read-only or full, or holds a run that is not to be resumed.
    """
    run_dir = Path(path).absolute()
    try:
        check_folder(run_dir)
        free = shutil.disk_usage(run_dir).free
    except OSError as error:
        raise InputError(
            f"The run's directory {cannot_write(error)}; choose another with run_dir=PATH."
        ) from error
    if free < SPACE_NEEDED:
        raise InputError(
            f"The disk of '{run_dir}' has {free / 1e6:.0f} MB left and a run needs at least "
            f"{SPACE_NEEDED / 1e6:.0f} MB; make room, or choose another with run_dir=PATH."
        )
    if not resume and any((run_dir / name).exists() for name in ("config.yaml", *FOLDERS)):
        raise InputError(
            f"'{run_dir}' already holds a run; resume it with resume=auto, choose another "
            "directory with run_dir=PATH, or delete that one."
        )
    for folder in (run_dir, *(run_dir / name for name in FOLDERS)):
        remove_unfinished(folder)


@rank_zero_only
def remove_if_empty(path: str) -> None:
    """Remove the directory of a run that was refused before it began."""
    with suppress(OSError):
        Path(path).rmdir()


def check_options(cfg: DictConfig, epochs: int) -> None:
    """Raise an InputError if an option cannot work whose object is built only later."""
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


@rank_zero_only
def check_export(cfg: DictConfig, callbacks: Mapping[str, Callback]) -> None:
    """Raise an InputError if what a run trains could not be written at its end."""
    for name, callback in callbacks.items():
        obstacle = callback.obstacle() if isinstance(callback, Export) else None
        if obstacle is not None:
            raise with_typed_names(InputError(obstacle), cfg, f"callbacks.{name}")


def resolve_class_names(cfg: DictConfig) -> None:
    """Put the class names into `cfg`, and their number where the data set leaves it open."""
    names = build(cfg.class_names)
    if cfg.data.num_classes is None:
        cfg.data.num_classes = len(names)
    if len(names) != cfg.data.num_classes:
        raise InputError(
            f"There are {len(names)} class names, but the data set has {cfg.data.num_classes} "
            "classes; give one name per class, in the order of the labels, as data.class_names."
        )
    cfg.class_names = names
