"""docs/adding-a-method.md, done as it says."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from lightning import Trainer

from nayer_pl import (
    Classifier,
    Digits,
    Plan,
    RealDataModule,
    Supervised,
    SyntheticDataModule,
    save_classifier,
)
from nayer_pl.networks import wrn16_1

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
PYTHON, TEST = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(YAML,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
(COMMAND,) = re.findall(r"python train\.py (--config-dir .*)", PAGE)


def test_it_takes_fewer_than_80_lines():
    assert sum(len(block.splitlines()) for block in (PYTHON, YAML, TEST)) < 80


@pytest.fixture(scope="module")
def teacher():
    """A network that reads digits, a little."""
    network = Classifier(wrn16_1(num_classes=10, channels=1), mean=[0.31], std=[0.34])
    trainer = Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(Supervised(network), datamodule=RealDataModule(Digits(16), batch_size=64))
    return network


def test_the_proof_holds(teacher, fit):
    names: dict = {}
    exec(PYTHON, names)
    exec(TEST, names)
    student = Classifier(wrn16_1(num_classes=10, channels=1))
    method = names["Echo"](teacher, student, (1, 16, 16))
    plan = Plan(epochs=1, warmup_epochs=1, warmup_rounds=2, kd_steps=1, round_size=50)
    data = SyntheticDataModule((1, 16, 16), 10, plan, source=Digits(16))
    names["test_the_teacher_sees_the_wanted_labels"](method, fit, data)


def test_the_command_runs(tmp_path, teacher):
    save_classifier(tmp_path / "teacher.safetensors", teacher)
    (tmp_path / "echo.py").write_text(PYTHON)
    (tmp_path / "my_conf" / "model").mkdir(parents=True)
    (tmp_path / "my_conf" / "model" / "echo.yaml").write_text(YAML)
    short = [
        "teacher.weights=teacher.safetensors", "run_dir=run", "logger=csv", "plan.epochs=1",
        "plan.warmup_epochs=1", "plan.kd_steps=2", "model.generator_steps=2",
        "plan.round_size=20", "trainer.accelerator=cpu",
    ]  # fmt: skip
    subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *shlex.split(COMMAND), *short], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=True, timeout=200,
    )  # fmt: skip
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["images_banked"] == (3 + 1) * 20
