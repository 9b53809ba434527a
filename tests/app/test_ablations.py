"""Each file of conf/ablation is a sweep whose jobs differ in the one thing that it is about."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

CONF = Path(__file__).resolve().parents[2] / "conf"
JOBS = {
    "conditioning": 3, "noisy_layer": 2, "labels_per_layer": 2, "text_encoder": 2, "prompt": 3,
    "generator_life": 3, "bank_size": 3,
}  # fmt: skip


def test_all_ablations_are_known():
    assert {path.stem for path in (CONF / "ablation").glob("*.yaml")} == set(JOBS)


@pytest.mark.parametrize("name", JOBS)
def test_jobs(name):
    chosen = ["experiment=digits", f"ablation={name}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        sweep = compose("train", chosen, return_hydra_config=True).hydra.sweeper.params
        typed = [f"{key}={values}" for key, values in sweep.items()]
        parsed = OverridesParser.create().parse_overrides(typed)
        (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        found = {
            OmegaConf.to_yaml(compose("train", [*chosen, *job]), resolve=False) for job in jobs
        }
    assert len(found) == len(jobs) == 3 * JOBS[name]
