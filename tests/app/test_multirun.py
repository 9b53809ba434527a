import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from lightning.fabric.strategies.launchers.subprocess_script import _launch_process_observer
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import OmegaConf

from nayer_pl import InputError
from nayer_pl.app.multirun import objective

MEETING = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


@pytest.mark.parametrize("mode", [[], ["-m"]], ids=["run", "multirun"])
def test_isolated_job__child_process(type_command, tmp_path, mode):
    """Lightning repeats sys.argv, later and elsewhere; it must compose this very job."""
    extra = tmp_path / "my conf" / "experiment"
    extra.mkdir(parents=True)
    (extra / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    jobs, commands = [], []

    def training(cfg):
        jobs.append(OmegaConf.merge(cfg, {"run_dir": os.path.abspath(cfg.run_dir)}))
        commands.append(list(sys.argv))
        assert sys.modules["__main__"].__spec__ is None

    before = sys.modules["__main__"].__spec__
    sweep = ["seed=7,8", "hydra.sweep.dir='it\\'s a sweep'"] if mode else []
    status, printed = type_command(
        training, *mode, "--config-dir", str(extra.parent), "experiment=mine", "data=digits",
        "text_encoder.prompts=['a, {name}=\"b\"']", *sweep,
    )  # fmt: skip
    assert status == 0, printed
    assert len(jobs) == (2 if mode else 1)
    assert sys.modules["__main__"].__spec__ is before
    status, printed = type_command(None, *commands[-1][1:], "--cfg", "job", "--resolve")
    assert status == 0, printed
    ours, theirs = OmegaConf.to_container(jobs[-1], resolve=True), yaml.safe_load(printed)
    assert Path(theirs["run_dir"]).name == ("1" if mode else Path(jobs[-1].run_dir).name)
    # Only the first process of a job needs to know its sweep.
    theirs["sweep"] = theirs["logger"]["wandb"]["group"] = ours["sweep"]
    assert theirs == ours


@pytest.mark.parametrize("failing", [False, True])
def test_isolated_job__leaves_nothing(type_command, monkeypatch, tmp_path, failing):
    monkeypatch.setenv("NODE_RANK", "3")  # of torchrun, say: stays
    for name in set(MEETING) - {"NODE_RANK"}:
        monkeypatch.delenv(name, raising=False)
    threads, jobs = torch.get_num_threads(), []

    def training(cfg):
        jobs.append({name: os.environ.get(name) for name in MEETING})
        assert not dist.is_initialized()
        for name in MEETING:
            monkeypatch.setitem(os.environ, name, "127.0.0.1" if name == "MASTER_ADDR" else "0")
        store = dist.FileStore(str(tmp_path / f"store{cfg.seed}"), 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        torch.set_num_threads(threads + 1)
        if failing:
            raise InputError("no")

    type_command(training, "-m", "seed=0,1")
    clean = {**dict.fromkeys(MEETING), "NODE_RANK": "3"}
    assert jobs == [clean, clean]
    assert {name: os.environ.get(name) for name in MEETING} == clean
    assert not dist.is_initialized()
    assert torch.get_num_threads() == threads


def test_isolated_job__keeps_process_group(type_command, tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        type_command(lambda cfg: None)
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_isolated_job__failed(type_command):
    children = []

    def training(cfg):
        children.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        _launch_process_observer(children)  # kills this process if one of them fails
        raise InputError("no")

    status, _ = type_command(training)
    assert status == 1
    assert children == []
    assert not [
        child
        for observer in threading.enumerate()
        for child in getattr(observer, "_child_processes", [])
    ]


def test_isolated_job__complete(type_command, tmp_path):
    late = "import time; time.sleep(1); open('late', 'w')"

    def training(cfg):
        _launch_process_observer([subprocess.Popen([sys.executable, "-c", late])])

    status, _ = type_command(training)
    assert status == 0
    assert (tmp_path / "late").exists()


@pytest.mark.parametrize(
    ("sweep", "over"),
    [
        ("experiment=compare", "model and seed"),
        ("ablation=conditioning", "seed and model.conditioning"),
        ("hparams_search=optuna", "model.generator_lr"),
    ],
)
def test_check_start__sweep_without_m(type_command, tmp_path, sweep, over):
    if sweep.endswith("optuna"):
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ["experiment=digits", sweep] if "experiment" not in sweep else [sweep]
    status, printed = type_command(None, *words, f"run_dir={tmp_path}/run")
    assert status == 1
    assert f"error: What was chosen is a sweep over {over}" in printed
    assert "-m" in printed
    assert not (tmp_path / "run").exists()


def test_check_start__torchrun(type_command, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    status, printed = type_command(lambda cfg: 0.5, "experiment=digits")
    assert status == 1
    assert "error: With torchrun every process must know the run's directory" in printed
    status, printed = type_command(lambda cfg: 0.5, "experiment=digits", "run_dir=run")
    assert status == 0, printed


def test_objective(type_command, monkeypatch):
    with pytest.raises(InputError, match=r"no 'acuracy' .* choose objective= from accuracy, seed"):
        objective({"seed": 0, "accuracy": 0.5}, "acuracy")
    assert objective({"seed": 0, "accuracy": 0.5}, "accuracy") == 0.5
    status, printed = type_command(lambda cfg: None, "objective=acuracy")
    assert status == 1
    assert printed.endswith("choose objective= from student_accuracy.")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert objective({}, "acuracy") is None  # the first process says it
