"""Train a student without data, or a teacher with it: python train.py --help."""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Run one job; a sweeper gets the value of `objective`."""
    # Imported late, so that a mistyped option is answered soon.
    from nayer_pl.app.multirun import check_start, isolated_job, objective
    from nayer_pl.app.overrides import check_additions
    from nayer_pl.app.resume import run_of
    from nayer_pl.app.train import train
    from nayer_pl.errors import NayerError, Terminated

    job = HydraConfig.get()
    sweeping = job.mode == RunMode.MULTIRUN
    if sweeping:
        cfg.run_dir = job.runtime.output_dir
        cfg.sweep = Path(job.sweep.dir).name
    if cfg.ckpt_path is not None:
        cfg.run_dir = run_of(cfg.ckpt_path)
    try:
        check_start()
        check_additions(cfg)
        with isolated_job(__file__, cfg.run_dir):
            summary, _ = train(cfg)
        return objective(summary, cfg.objective)
    except NayerError as error:
        if sweeping:  # the other jobs go on; Hydra repeats the first of such sentences at the end
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


if __name__ == "__main__":
    from nayer_pl.app.overrides import hydra_errors_explained
    from nayer_pl.app.signatures import register_signatures

    register_signatures()
    try:
        with hydra_errors_explained(Path(__file__).with_name("conf")):
            main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted")
