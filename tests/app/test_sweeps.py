"""`train.py -m` under Hydra's sweepers and launchers."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose
from running import ROOT, TRAIN, Program, train_py

from nayer_pl import DivergenceError, InputError


def test_jobs__recipes_and_directories(type_command):
    jobs = []
    status, _ = type_command(
        jobs.append, "-m", "model=nayer", "data=cifar10,tinyimagenet",
        "model.generator_steps=20,30",
    )  # fmt: skip
    assert status == 0
    seen = [(cfg.data.name, cfg.model.generator_steps, cfg.plan.kd_steps) for cfg in jobs]
    assert seen == [
        (data, steps, kd_steps)
        for data, kd_steps in (("cifar10", 400), ("tinyimagenet", 1000))
        for steps in (20, 30)
    ]
    (sweep,) = {Path(cfg.run_dir).parent for cfg in jobs}
    assert [Path(cfg.run_dir).name for cfg in jobs] == list("0123")
    assert {cfg.sweep for cfg in jobs} == {sweep.name}


def test_jobs__one_fails(type_command):
    jobs = []

    def training(cfg):
        jobs.append(cfg.seed)
        if cfg.seed == 1:
            raise InputError("This cannot work; do that.")

    status, printed = type_command(training, "-m", "seed=0,1,2")
    assert jobs == [0, 1, 2]
    assert status == 1
    assert "Traceback" not in printed
    after_the_last_job = printed[printed.index("#2") :]
    assert "error: job 1 of the sweep: This cannot work; do that." in after_the_last_job


def test_jobs__ctrl_c(type_command):
    jobs = []

    def training(cfg):
        jobs.append(cfg.seed)
        sys.exit(1)  # what Lightning makes of it

    status, printed = type_command(training, "-m", "seed=0,1,2")
    assert jobs == [0]
    assert status == 1
    assert printed.endswith("interrupted")


def test_optuna__failing_trial(type_command):
    """The study goes through, and the same words continue it."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    trials = []

    def training(cfg):
        trials.append(cfg.model.generator_lr)
        if len(trials) == 2:
            raise DivergenceError("The loss became nan.")
        return -trials[-1]

    study = ["hydra.sweeper.storage=sqlite:///s.db", "hydra.sweeper.study_name=digits"]
    for complete in (4, 8):  # a batch each
        status, printed = type_command(
            training, "-m", "hparams_search=optuna", "hydra.sweeper.n_trials=4", *study
        )
        assert status == 0, printed
        assert len(trials) == complete
    best = min(rate for i, rate in enumerate(trials) if i != 1)
    *_, last = sorted(Path("multirun").glob("*/optimization_results.yaml"))
    assert yaml.safe_load(last.read_text())["best_params"]["model.generator_lr"] == best


def test_optuna__every_trial_fails(type_command):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    trials = []

    def training(cfg):
        trials.append(cfg)
        raise InputError("The teacher is not there.")

    status, printed = type_command(training, "-m", "hparams_search=optuna")
    assert status == 1
    assert len(trials) == 4  # of 20: the first batch
    assert "error: job 0 of the sweep: The teacher is not there." in printed.splitlines()
    assert "CompactHydraException: " not in printed  # as a traceback would end


@pytest.mark.parametrize(("launcher", "tasks"), [("local", 1), ("slurm", 4)])
def test_submitit__tasks(config, launcher, tasks):
    """Under SLURM a task per device; elsewhere Lightning starts the other processes itself."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    config()
    words = [f"hydra/launcher={launcher}", "trainer.devices=4", "trainer.num_nodes=2"]
    asked = compose("train", words, return_hydra_config=True).hydra.launcher
    assert (asked.tasks_per_node, asked.gpus_per_node, asked.nodes) == (tasks, 4, 2)


# Real jobs, several processes each.

TRAINED = "teacher.safetensors"
SHORT = [
    "experiment=digits", "plan.epochs=1", "plan.warmup_epochs=1", "plan.warmup_rounds=2",
    "plan.kd_steps=4", "plan.round_size=20", "plan.batch_size=16", "model.generator_steps=2",
    "model.noisy_features=32", "teacher=wrn16_1", f"teacher.weights={TRAINED}",
    "trainer.accelerator=cpu", "callbacks.samples=null", "callbacks.curves=null",
]  # fmt: skip


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A folder with a trained teacher."""
    status, printed = train_py(
        "model=supervised", "data=digits", "teacher=wrn16_1", f"teacher.weights={TRAINED}",
        "plan.epochs=1", "trainer.accelerator=cpu", "logger=csv", cwd=tmp_path,
    )  # fmt: skip
    assert status == 0, printed
    return tmp_path


def summaries(folder: Path) -> dict[str, dict[str, Any]]:
    files = folder.glob("multirun/*/*/summary.json")
    return {file.parent.name: json.loads(file.read_text()) for file in files}


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["hydra/launcher=basic"],
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        ["hydra/launcher=local"],
        ["hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null"],
    ],
    ids=lambda words: words[0].partition("=")[2],
)
def test_jobs__two_devices_one_fails(scratch, launcher):
    """The first diverges on both devices; the others, in the same process, must not notice."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    for name in ("sbatch", "srun", "sacct"):
        program = scratch / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/tests/slurm.py" {name} "$@"'
        )
        program.chmod(0o755)
    status, printed = train_py(
        "-m", *SHORT, *launcher, "trainer.devices=2", "model.student_loss.temperature=1",
        "model.optimizer.lr=1e38,0.1,0.2", cwd=scratch,
        WANDB_MODE="offline",
        PATH=f"{scratch}/bin{os.pathsep}{os.environ['PATH']}",
    )  # fmt: skip
    assert status == 1, printed
    assert "error: job 0 of the sweep: The distillation loss became" in printed
    assert "Traceback" not in printed
    done = summaries(scratch)
    assert done.keys() == {"1", "2"}
    assert all(summary["images_banked"] == 3 * 20 for summary in done.values())
    for job in "012":
        assert len(list(scratch.glob(f"multirun/*/{job}/wandb/offline-run-*"))) == 1, job


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "local"])
def test_jobs__ctrl_c_two_devices(scratch, launcher):
    endless = ["plan.epochs=100", "plan.kd_steps=1000", "logger=csv", "trainer.devices=2"]
    # A shell's background jobs ignore Ctrl-C, and so would whatever they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    words = ["-m", *SHORT, *endless, f"hydra/launcher={launcher}", "seed=0,1"]
    with Program(TRAIN, *words, cwd=scratch) as program:
        checkpoints = "multirun/*/0/checkpoints/last.ckpt"
        program.wait_for(lambda: list(scratch.glob(checkpoints)))  # after warm-up
        os.killpg(program.pid, signal.SIGINT)  # as a terminal does
        status, printed = program.end(60)
    assert status == 1, printed
    assert "interrupted" in printed
    assert summaries(scratch) == {}
