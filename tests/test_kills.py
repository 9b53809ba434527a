"""SIGKILL at random moments, in real processes: see kills.py."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="every run is a forked process")
def test_killed_runs_end_bit_for_bit_alike(tmp_path):
    kills, seed = os.environ.get("KILLS", "20"), time.time_ns() % 1_000_000
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "kills.py"), kills, str(seed)],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, capture_output=True,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("killed after") == int(kills)
    assert done.stdout.count("equal") >= 1
