"""SIGKILL at random moments, in real processes: see kills.py."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from nayer_pl.run import train

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="every run is a forked process")
def test_a_killed_run_ends_bit_for_bit_like_one_that_nobody_killed(tmp_path):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        train(
            compose("train", overrides=[
                "model=supervised", "data=digits", "teacher=wrn16_1", "plan.epochs=1", "logger=csv",
                f"teacher.weights={tmp_path}/teacher.safetensors", f"run_dir={tmp_path}/teacher",
                "callbacks.progress=null", "trainer.accelerator=cpu",
            ])
        )  # fmt: skip
    kills, seed = os.environ.get("KILLS", "20"), time.time_ns() % 1_000_000
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "kills.py"), kills, str(seed)],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("equal") == int(kills)
