"""The command line: Hydra composes the configuration, and every end of a run has its exit code."""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from nayer_pl.app.networks_config import register_networks
from nayer_pl.app.overrides import check_additions, hydra_errors_explained
from nayer_pl.app.recipes import register_recipes
from nayer_pl.app.signatures import register_signatures


def main(script: str) -> None:
    """Run the job, or the sweep, that the command line describes.

    Args:
        script: The file that was started. `conf/` is beside it, and Lightning starts it again for
            every other device.
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
    """Tell Hydra of the options that code adds to the files of the configuration.

    Args:
        conf: The directory of these files.
    """
    register_networks()
    register_signatures()
    register_recipes(conf)


def run_job(cfg: DictConfig, script: str) -> float | None:
    """Run one job; a sweeper gets the value of `objective`."""
    # Imported late, so that a mistyped option is answered at once.
    from nayer_pl.app.multirun import check_start, isolated_job, objective
    from nayer_pl.app.resume import run_dir_of
    from nayer_pl.app.train import train
    from nayer_pl.callbacks.checkpoint import Terminated
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
        if end.at_once:  # W&B would go on uploading
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.STATUS)
        raise
    except SystemExit as exit:  # how Lightning answers Ctrl-C; it ends a sweep as well
        raise KeyboardInterrupt from exit
