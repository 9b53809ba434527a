"""The command line: what was typed, and an exit code for every end of a run."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    CompactHydraException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from nayer_pl.app.config_store import register_networks, register_recipes, register_signatures
from nayer_pl.app.instantiate import suggestion, unknown


def main(script: str) -> None:
    """Run the job, or the sweep, that the command line describes.

    `conf/` is beside `script`, the file that was started; Lightning starts it again for every other
    device.
    """

    def job(cfg: DictConfig) -> float | None:
        return run_job(cfg, script)

    conf = Path(script).resolve().parent / "conf"
    try:
        register_configs(conf)
        with hydra_errors_explained(conf):
            hydra.main(version_base="1.3", config_path=str(conf), config_name="train")(job)()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted")


def register_configs(conf: Path) -> None:
    """Tell Hydra of the options that code adds to the files in `conf`."""
    register_networks()
    register_signatures()
    register_recipes(conf)


def run_job(cfg: DictConfig, script: str) -> float | None:
    """Run one job; a sweeper gets the value of `objective`."""
    # Imported late, so that a mistyped option is answered at once.
    from nayer_pl.app.multirun import check_start, isolated_job, objective
    from nayer_pl.app.resume import run_dir_of
    from nayer_pl.app.signals import Terminated
    from nayer_pl.app.train import train
    from nayer_pl.errors import NayerError

    job = HydraConfig.get()
    sweeping = job.mode == RunMode.MULTIRUN
    if sweeping:
        cfg.run_dir = job.runtime.output_dir
        cfg.sweep = Path(job.sweep.dir).name
    if cfg.ckpt_path is not None:
        cfg.run_dir = run_dir_of(cfg.ckpt_path)
    try:
        check_start()
        check_additions(cfg)
        with isolated_job(script, cfg.run_dir):
            summary, _ = train(cfg)
        return objective(summary, cfg.objective)
    except NayerError as error:
        if sweeping:  # the other jobs still run; Hydra repeats the first such sentence at the end
            sentence = f"error: job {job.job.num} of the sweep: {error}"
            print(f"\n{sentence}", file=sys.stderr)
            raise CompactHydraException(sentence) from error
        sys.exit(f"\nerror: {error}")
    except Terminated as end:
        end.end_process()
    except SystemExit as exit:  # how Lightning answers Ctrl-C; it ends a sweep as well
        raise KeyboardInterrupt from exit


@contextmanager
def hydra_errors_explained(conf: Path) -> Iterator[None]:
    """Let the program end with one sentence where Hydra cannot compose a configuration.

    With HYDRA_FULL_ERROR=1 in the environment its errors come as they are.
    """
    asked = os.environ.get("HYDRA_FULL_ERROR")
    if asked == "1" and "LOCAL_RANK" not in os.environ:  # processes of Lightning inherit ours
        yield
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra would print them and exit
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"\nerror: {explain(error, conf).removeprefix('error: ')}")
    finally:
        if asked is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = asked


def explain(error: Exception, conf: Path) -> str:
    """One sentence for an error of Hydra or OmegaConf; the folders of `conf` are its groups."""
    cause = error.__cause__ or error
    groups = [str(path.relative_to(conf)) for path in sorted(conf.rglob("*")) if path.is_dir()]
    if isinstance(error, OverrideParseException):
        message = error.message.removeprefix(f"Error parsing override '{error.override}'")
        reason = message.strip().partition("\n")[0]
        return (
            f"'{error.override}' cannot be read ({reason}); write NAME=VALUE, in quotes where the "
            "value has spaces or brackets."
        )
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        options = [each for each in error.options if not each.startswith("_")]
        meant = f"{suggestion(name, options)} The choices are".partition(" choose from")[0]
        return f"There is no {group}={name}; {meant} {', '.join(options)}."
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.full_key:
        node, name = cause.parent_node, str(cause.full_key)
        known = [str(key) for key in node] if isinstance(node, DictConfig) else []
        if "." not in name:  # a group, or what stands in one
            inside = [key for key in known if name in _content(node, key)]
            known = [f"{key}.{name}" for key in inside] or [*known, *groups]
        return str(unknown(name, dict.fromkeys(known)))
    other = re.search(r"Could not override '([^']+)'|group '([^']+)' does not exist", str(error))
    if other:
        return str(unknown(other[1] or other[2], groups))
    return " ".join(str(error).partition("\nConfig search path")[0].split())


def check_additions(cfg: DictConfig) -> None:
    """Raise an InputError if `+name=value` adds what nothing reads: only a `_target_` may."""
    typed = HydraConfig.get().overrides.task
    for each in OverridesParser.create().parse_overrides(list(typed)):
        parent, _, last = each.key_or_group.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        added = each.is_add() and isinstance(node, DictConfig) and last in node
        if added and "_target_" not in node and not isinstance(node[last], DictConfig):
            raise unknown(each.key_or_group, [str(key) for key in node if key != last])


def _content(node: DictConfig, key: str) -> list[str]:
    inner = node._get_node(key)
    content = inner._content if isinstance(inner, DictConfig) else None
    return list(map(str, content)) if isinstance(content, dict) else []
