"""Two processes that are resumed, as two or another number: the results of resuming_ranks.py."""

import json
import os
import signal

import pytest
import torch
from running import TRAIN, Program, run_two_ranks, save_untrained_teacher, train_py

from nayer_pl.app.resume import find_corruption

MOMENTS = "0", "4"  # between two rounds of the warm-up; between two steps of the student
IMAGES, UPDATES = 5 * 12, 2 * 4  # of two_ranks.PLAN


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(folder):
    """The results of both ranks, by name of the run."""
    pytest.importorskip("resource")
    return run_two_ranks("resuming_ranks.py", *MOMENTS, folder=folder)


def assert_same(one, other):
    """Every tensor, count and row."""
    for key in ("updates", "results", "images", "metrics"):
        assert one[key] == other[key]
    for key in ("student", "generator"):
        assert [k for k in other[key] if not torch.equal(one[key][k], other[key][k])] == []
    assert all(torch.equal(a, b) for a, b in zip(one["bank"], other["bank"], strict=True))


def test_resume__as_many_processes(found):
    for again, whole in zip(found("again"), found("whole"), strict=True):
        assert_same(again, whole)
        assert not again["said"]


def labeled(found, key):
    """The images of all ranks with their labels, as a set."""
    return {
        (*image.flatten().tolist(), label)
        for rank in found
        for image, label in zip(rank[key][0], rank[key][1].tolist(), strict=True)
    }


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(("name", "before", "now"), [("more", 1, 2), ("fewer", 2, 1)])
def test_resume__other_number_of_processes(found, moment, name, before, now):
    ended, whole = (
        found(f"{name}_{moment}", now),
        found("alone" if before == 1 else "whole", before),
    )
    # The images that each rank had made by then are the first of its bank at the end.
    rounds = {"0": 1, "4": 4 // before}[moment]
    made = [{"bank": tuple(part[: 12 * rounds] for part in rank["bank"])} for rank in whole]
    there = labeled(made, "bank")
    assert labeled(ended, "first bank") == there
    assert len(there) == sum(len(rank["first bank"][1]) for rank in ended)  # and none is twice

    # The plan is completed exactly.
    assert there < labeled(ended, "bank")
    assert sum(len(rank["bank"][1]) for rank in ended) == IMAGES
    for rank in ended:
        assert rank["updates"] == UPDATES
        assert rank["images"]["synthesis"] == IMAGES
        assert rank["images"]["distillation"] == whole[0]["images"]["distillation"]

    # One warning.
    (message,) = [text for rank in ended for text in rank["said"]]
    assert f"had {before} processes and now has {now}: its {len(there)} banked images" in message


def test_sigterm__one_process(found, folder):
    """All of them end after the item, and nothing is lost."""
    told = found("told")
    assert [rank["reason"] for rank in told] == ["SIGTERM", "SIGTERM"]
    assert [rank["updates"] for rank in told] == [2, 2]
    assert find_corruption(folder / "told" / "checkpoints" / "last.ckpt") is None
    for again, whole in zip(found("told_again"), found("whole"), strict=True):
        assert_same(again, whole)


def test_full_disk__one_process(found, folder):
    for full, whole in zip(found("full"), found("whole"), strict=True):
        assert_same(full, whole)
    (message,) = [text for rank in found("full") for text in rank["said"]]
    assert "/bank/bank-1-" in message
    assert "there is none to resume from" in message
    assert find_corruption(folder / "full" / "checkpoints" / "last.ckpt") is None
    assert not list((folder / "full").rglob("*.part"))


# train.py with two devices

SHORT = [
    "experiment=digits", "run_dir=run", "teacher.weights=teacher.safetensors", "plan.epochs=2",
    "plan.warmup_epochs=1", "plan.warmup_rounds=2", "plan.rounds_per_epoch=2", "plan.kd_steps=40",
    "plan.round_size=20", "plan.batch_size=16", "model.generator_steps=3",
    "model.noisy_features=32", "trainer.accelerator=cpu", "logger=csv", "model.check_teacher=false",
    "trainer.devices=2", "resume=auto",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("everyone", [False, True], ids=["the first process", "all of them"])
def test_train_py__sigterm_and_resume(tmp_path, everyone):
    save_untrained_teacher(tmp_path)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with Program(TRAIN, *SHORT, "checkpoint.minutes=0", cwd=tmp_path) as program:
        program.wait_for(last.exists)
        (os.killpg if everyone else os.kill)(program.pid, signal.SIGTERM)
        status, said = program.end(200)
    assert status == 143
    assert said.count("Ended by SIGTERM") == 1
    assert "Traceback" not in said
    assert find_corruption(last) is None

    status, said = train_py(*SHORT, cwd=tmp_path)
    assert status == 0, said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["images_banked"] == 6 * 20
    assert summary["student_updates"] == 2 * 40
