"""Train a student without data, or a teacher with it: python train.py --help."""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Run one job; a sweeper gets the value of `objective`."""
    # Imported late, so that a mistyped option is answered at once.
    from nayer_pl.errors import NayerError
    from nayer_pl.run import train

    if HydraConfig.get().mode == RunMode.MULTIRUN:
        cfg.run_dir = HydraConfig.get().runtime.output_dir
    try:
        summary, _ = train(cfg)
    except NayerError as error:
        sys.exit(f"\nerror: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted")
    return summary.get(cfg.objective)


if __name__ == "__main__":
    main()
