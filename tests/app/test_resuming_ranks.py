"""Two processes that are resumed, as two or another number: the results of resuming_ranks.py."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import torch

from nayer_pl import build_classifier, save_classifier
from nayer_pl.app.resume import find_corruption

ROOT = Path(__file__).resolve().parents[2]
MOMENTS = "0", "4"  # between two rounds of the warm-up; between two steps of the student
IMAGES, UPDATES = 5 * 12, 2 * 4  # of two_ranks.PLAN


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The results of both ranks, by name of the run."""
    pytest.importorskip("resource")
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "NODE_RANK": "0"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(ROOT / "tests" / "resuming_ranks.py"), str(folder), *MOMENTS]
    processes = []
    for rank in ("0", "1"):
        with open(folder / f"{rank}.txt", "w") as out:
            ranked = {**env, "RANK": rank, "LOCAL_RANK": rank}
            processes.append(subprocess.Popen(command, env=ranked, stdout=out, stderr=out))
    try:
        for process in processes:
            process.wait(300)
    finally:
        for process in processes:
            process.kill()
    said = [(folder / f"{rank}.txt").read_text()[-3000:] for rank in "01"]
    assert [process.returncode for process in processes] == [0, 0], said

    def read(name, ranks=2):
        files = [folder / f"{name}_{rank}.pt" for rank in range(ranks)]
        return [torch.load(file, weights_only=False) for file in files]

    read.folder = folder
    return read


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


def test_sigterm__one_process(found):
    """All of them end after the item, and nothing is lost."""
    told = found("told")
    assert [rank["reason"] for rank in told] == ["SIGTERM", "SIGTERM"]
    assert [rank["updates"] for rank in told] == [2, 2]
    assert find_corruption(found.folder / "told" / "checkpoints" / "last.ckpt") is None
    for again, whole in zip(found("told_again"), found("whole"), strict=True):
        assert_same(again, whole)


def test_full_disk__one_process(found):
    for full, whole in zip(found("full"), found("whole"), strict=True):
        assert_same(full, whole)
    (message,) = [text for rank in found("full") for text in rank["said"]]
    assert "/bank/bank-1-" in message
    assert "there is none to resume from" in message
    assert find_corruption(found.folder / "full" / "checkpoints" / "last.ckpt") is None
    assert not list((found.folder / "full").rglob("*.part"))


# train.py with two devices

SHORT = [
    "experiment=digits", "run_dir=run", "teacher.weights=teacher.safetensors", "plan.epochs=2",
    "plan.warmup_epochs=1", "plan.warmup_rounds=2", "plan.rounds_per_epoch=2", "plan.kd_steps=40",
    "plan.round_size=20", "plan.batch_size=16", "model.generator_steps=3",
    "model.noisy_features=32", "trainer.accelerator=cpu", "logger=csv", "model.check_teacher=false",
    "trainer.devices=2", "resume=auto",
]  # fmt: skip


@contextmanager
def ended(process):
    """End a process and what it started, also after a failure."""
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(path, process):
    deadline = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("everyone", [False, True], ids=["the first process", "all of them"])
def test_train_py__sigterm_and_resume(tmp_path, everyone):
    torch.manual_seed(0)
    description = {"_target_": "nayer_pl.networks.wrn16_1", "num_classes": 10, "channels": 1}
    save_classifier(tmp_path / "teacher.safetensors", build_classifier(description, [0.3], [0.4]))

    with open(tmp_path / "said.txt", "a") as out:
        start = partial(
            subprocess.Popen, cwd=tmp_path, stdout=out, stderr=out, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        process = start([sys.executable, str(ROOT / "train.py"), *SHORT, "checkpoint.minutes=0"])
        with ended(process):
            wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", process)
            told = time.monotonic()
            (os.killpg if everyone else os.kill)(process.pid, signal.SIGTERM)
            assert process.wait(200) == 143
            print(f"ended {time.monotonic() - told:.1f} s after SIGTERM")
        said = (tmp_path / "said.txt").read_text()
        assert said.count("Ended by SIGTERM") == 1
        assert "Traceback" not in said
        assert find_corruption(tmp_path / "run" / "checkpoints" / "last.ckpt") is None
        with pytest.raises(ProcessLookupError):  # nothing that it started is left
            os.killpg(process.pid, 0)

        process = start([sys.executable, str(ROOT / "train.py"), *SHORT])
        with ended(process):
            assert process.wait(300) == 0, (tmp_path / "said.txt").read_text()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["images_banked"] == 6 * 20
    assert summary["student_updates"] == 2 * 40
