"""docs/extending.md, done as it says."""

import json
import os
import re
import runpy
import shlex

import pytest
import torch
from running import ROOT, save_untrained_teacher, train_py

from nayer_pl import Classifier, DecoupledKD, create_model
from nayer_pl.app.instantiate import build

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
FILES = dict(re.findall(r"```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = re.findall(r"^    python train\.py (.*)", PAGE.replace("\\\n", ""), re.MULTILINE)
SHORT = [
    "teacher.weights=teacher.safetensors", "run_dir=run", "logger=csv",
    "trainer.accelerator=cpu", "plan.warmup_epochs=1", "plan.warmup_rounds=3",
    "plan.rounds_per_epoch=1", "plan.epochs=1", "plan.kd_steps=2", "plan.round_size=20",
    "model.generator_steps=2", "+model.check_teacher=false", "callbacks.progress=null",
    "callbacks.curves=null",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Every file of the page, where the page says."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


# A row of the table: options to type, and the other choices of the first one's group.
ROWS = re.findall(r"^\| [^|]+ \| `(\S+=[^`]*)`(?:; or ([^|]*))? \|", PAGE, re.MULTILINE)
CHOICES = [
    words.replace(words.partition("=")[2], name) if name else words
    for words, others in ROWS
    for name in ["", *re.findall(r"`(\w+)`", others)]
]


def test_exchange__all_choices():
    for group in ("student_loss", "optimizer", "scheduler"):
        listed = {words.split()[0] for words in CHOICES if words.startswith(f"{group}=")}
        assert listed == {f"{group}={file.stem}" for file in (ROOT / "conf" / group).glob("*.yaml")}


@pytest.mark.parametrize("options", CHOICES)
def test_exchange__command_line(config, options):
    cfg = config("experiment=digits", *options.split())
    if "student_loss" in cfg.model:
        assert callable(build(cfg.model.student_loss))
    assert callable(build(cfg.model.optimizer))
    assert callable(build(cfg.model.scheduler))


def test_exchange__python():
    networks = {
        name: Classifier(create_model("wrn16_1", 10, 1), mean=[0.3], std=[0.3])
        for name in ("teacher", "student")
    }
    names: dict = {**networks, "label_text": torch.eye(10)}
    exec(PYTHON[0], names)
    method = names["method"]
    optimizer = method.updater.optimizer(method.student.parameters())
    assert isinstance(optimizer, torch.optim.Adam)
    assert list(method.updater.scheduler(optimizer, 10).milestones) == [4, 8]
    assert method.updater.loss == DecoupledKD(beta=2.0)


def test_method__page_test(folder, fit, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    runpy.run_path(str(folder / "test_echo.py"))["test_targets_seen"](fit)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "classes"), zip(COMMANDS, (10, 2), strict=True))
def test_command(folder, command, classes):
    save_untrained_teacher(folder, classes)
    path = f"{ROOT / 'src'}{os.pathsep}{folder}"
    status, said = train_py(*shlex.split(command), *SHORT, cwd=folder, PYTHONPATH=path)
    assert status == 0, said
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["images_banked"] == (3 + 1) * 20
