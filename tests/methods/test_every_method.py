"""What every method of conf/model promises a user, whatever it does inside."""

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from nayer_pl import build_classifier, callbacks, save_classifier
from nayer_pl.app.train import train
from nayer_pl.networks.weights import read_weights

ROOT = Path(__file__).resolve().parents[2]
REAL = {"supervised", "kd", "scratch"}  # these learn from real images
METHODS = sorted({path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")} - REAL)

# The real data, networks and files, only less of everything.
SHORT = [
    "experiment=digits", "data.source.image_size=8", "data.image_shape=[1,8,8]", "plan.epochs=2",
    "plan.rounds_per_epoch=1", "plan.kd_steps=2", "plan.round_size=20", "plan.batch_size=16",
    "teacher.weights=teacher.safetensors", "text_encoder=file", "text_encoder.path=text.npy",
    "model.check_teacher=false", "trainer.accelerator=cpu", "trainer.precision=32-true",
    "logger=csv", "callbacks.progress=null", "callbacks.samples=null", "callbacks.curves=null",
    "+trainer.enable_progress_bar=false",
]  # fmt: skip
SUMMARY = {
    "seed", "precision", "teacher_accuracy", "student_accuracy", "agreement", "teacher_parameters",
    "student_parameters", "student_updates", "images_banked", "images_kept", "synthesis_steps",
    "bank_bytes", "synthesis_loss", "label_agreement", "diversity", "seconds_teacher",
    "seconds_synthesis", "images_per_second_synthesis", "seconds_distillation",
    "images_per_second_distillation", "machine", "versions",
}  # fmt: skip


def smaller(cfg: DictConfig) -> list[str]:
    """Overrides that make a method's own numbers small, whatever they are called."""
    sizes = [f"plan.{name}={min(1, cfg.plan[name])}" for name in ("warmup_epochs", "warmup_rounds")]
    for name, value in cfg.model.items():
        if name.endswith("steps") and isinstance(value, int):
            sizes.append(f"model.{name}={min(2, value)}")
        if name == "noisy_features":
            sizes.append(f"model.{name}=32")
        if name == "generator" and "width" in value:
            sizes.append("model.generator.width=4")
    return sizes


@pytest.fixture
def short(config, tmp_path):
    """The configuration of a run of seconds; the files that it reads are in its directory."""
    description = {"_target_": "nayer_pl.networks.wrn16_1", "num_classes": 10, "channels": 1}
    teacher = build_classifier(description, [0.3053], [0.3398])
    save_classifier(tmp_path / "teacher.safetensors", teacher)
    np.save(tmp_path / "text.npy", np.eye(10, dtype="float32"))

    def compose(name: str) -> DictConfig:
        cfg = config(f"model={name}", *SHORT)
        cfg.merge_with_dotlist(smaller(cfg))
        return cfg

    return compose


class StopHereError(Exception):
    pass


@pytest.fixture
def watched(monkeypatch):
    """Keeps every student as it was at the start, and can stop a run after so many items."""

    class Witness(callbacks.Checkpoints):
        first, items, last = {}, 0, None

        def on_train_start(self, trainer, method):
            super().on_train_start(trainer, method)
            Witness.first = copy.deepcopy(method.student.state_dict())
            Witness.items = 0

        def on_train_batch_end(self, trainer, *rest):
            super().on_train_batch_end(trainer, *rest)
            Witness.items += 1
            if Witness.items == Witness.last:
                raise StopHereError

    monkeypatch.setattr(callbacks, "Checkpoints", Witness)
    return Witness


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("name", METHODS)
def test_one_rank__summary_student_and_resume(short, watched, tmp_path, name):
    cfg = short(name)
    summary, objects = train(cfg)
    teacher, student = objects["method"].teacher.classifier, objects["method"].student

    assert summary.keys() == SUMMARY
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert summary["student_updates"] == 2 * 2
    assert summary["images_banked"] > 0

    places = [{p.data_ptr() for p in net.parameters()} for net in (teacher, student)]
    assert not places[0] & places[1]
    assert same(teacher.network.state_dict(), read_weights(tmp_path / "teacher.safetensors")[0])
    learned = student.state_dict()
    assert [
        n for n, _ in student.named_parameters() if torch.equal(learned[n], watched.first[n])
    ] == []
    exported, _ = read_weights(tmp_path / "run" / "student.safetensors")
    assert same(student.network.state_dict(), exported)

    # Once more, but stopped between the two steps of the first epoch, and resumed.
    again = {"run_dir": f"{tmp_path}/again", "checkpoint": {"minutes": 0}}
    cfg = OmegaConf.merge(cfg, again)
    watched.last = watched.items - 4
    with pytest.raises(StopHereError):
        train(cfg)
    watched.last = None
    resumed, objects = train(OmegaConf.merge(cfg, {"resume": "auto"}))
    assert watched.items == 4
    assert same(objects["method"].student.state_dict(), learned)
    timeless = {key for key in SUMMARY if "second" not in key}
    assert {key: resumed[key] for key in timeless} == {key: summary[key] for key in timeless}


WITNESS = """
import torch
from lightning import Callback


class Witness(Callback):
    def on_train_end(self, trainer, method):
        found = {"images": trainer.datamodule.bank.images, "student": method.student.state_dict()}
        torch.save(found, f"rank{trainer.global_rank}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_ranks__different_images_for_one_student(short, tmp_path, name):
    (tmp_path / "witness.py").write_text(WITNESS)
    command = [
        sys.executable, str(ROOT / "train.py"), f"model={name}", *SHORT, *smaller(short(name)),
        "plan.rounds_per_epoch=2", "run_dir=run", "trainer.devices=2", "strategy=ddp_gloo",
        "+callbacks.witness._target_=witness.Witness",
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        command, cwd=tmp_path, env=env, text=True, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        _, errors = running.communicate(timeout=300)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)  # with the rank that it started
    assert running.returncode == 0, errors[-3000:]
    one, other = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert same(one["student"], other["student"])
    images = [{*map(tuple, found["images"].flatten(1).tolist())} for found in (one, other)]
    assert all(images)
    assert not images[0] & images[1]
    assert json.loads((tmp_path / "run" / "summary.json").read_text()).keys() == SUMMARY
