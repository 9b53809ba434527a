"""Two processes and one student: what two_ranks.py left behind, and train.py with two devices."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from nayer_pl import (
    Classifier,
    Digits,
    DivergenceError,
    InputError,
    MemoryBank,
    build_classifier,
    load_classifier,
    save_classifier,
)
from nayer_pl.bank.bank import read_bank
from nayer_pl.networks.weights import read_weights

ROOT = Path(__file__).resolve().parents[1]
TRAIN = str(ROOT / "train.py")
PLANNED = 5 * 12  # images: the rounds of two_ranks.PLAN

# As a user types it, only less of everything.
SHORT = [
    "experiment=digits", "run_dir=run", "teacher.weights=teacher.safetensors", "plan.epochs=2",
    "plan.warmup_epochs=1", "plan.warmup_rounds=1", "plan.kd_steps=3", "plan.round_size=20",
    "plan.batch_size=16", "model.generator_steps=3", "model.noisy_features=32",
    "trainer.accelerator=cpu", "logger=csv", "model.check_teacher=false",
]  # fmt: skip


def torchrun(node: int, port: int) -> list[str]:
    return [
        "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", f"--node_rank={node}",
        "--master_addr=127.0.0.1", f"--master_port={port}",
    ]  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def together(*commands: list[str], cwd: Path, patience: float = 0) -> list[tuple[int, str, str]]:
    """Run Python with each of these arguments at the same time: exit codes and what they said.

    Within `patience` seconds after the end nothing that it started may be left.
    """
    ours = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    env |= {"OMP_NUM_THREADS": "1"}
    running = []
    for i, command in enumerate(commands):
        streams = [open(cwd / f"{kind}{i}.txt", "w+") for kind in ("out", "err")]  # noqa: SIM115
        process = subprocess.Popen(
            [sys.executable, *command], cwd=cwd, env=env, stdin=subprocess.DEVNULL,
            stdout=streams[0], stderr=streams[1], start_new_session=True,
        )  # fmt: skip
        running.append((process, *streams))
    try:
        for process, *_ in running:
            process.wait(600)  # long enough for a busy machine
    finally:
        for process, *_ in running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(30)
    found = []
    for process, *streams in running:
        ended = time.monotonic()
        while is_there(process.pid):
            assert time.monotonic() < ended + patience, "a process that it started is left"
            time.sleep(0.1)
        texts = []
        for stream in streams:
            stream.seek(0)
            texts.append(stream.read())
            stream.close()
            Path(stream.name).unlink()
        found.append((process.returncode, *texts))
    return found


def is_there(group: int) -> bool:
    """Whether a process group has any process left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# The library without Hydra: two_ranks.py


Found = list[dict[str, Any]]


@pytest.fixture(
    scope="module",
    # Lightning starting the second rank is what train.py shows below.
    params=["nodes", pytest.param("devices", marks=pytest.mark.slow)],
)
def folder(request, tmp_path_factory) -> Path:
    """Where both ranks left what they saw."""
    folder = tmp_path_factory.mktemp(request.param)
    bank = MemoryBank(7, (1, 8, 8))
    bank.add(torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(7)), torch.arange(7))
    bank.save(folder / "bank.safetensors")
    script, port = [str(ROOT / "tests" / "two_ranks.py"), str(folder)], free_port()
    launchers = [torchrun(0, port), torchrun(1, port)] if request.param == "nodes" else [[]]
    commands = [launcher + script for launcher in launchers]
    # Lightning by itself does not wait for the process that it started.
    for code, _, err in together(*commands, cwd=folder, patience=30):
        assert code == 0, err[-3000:]
    return folder


@pytest.fixture(scope="module")
def both(folder) -> Callable[[str], Found]:
    return lambda name: [
        torch.load(folder / f"{name}_{rank}.pt", weights_only=False) for rank in (0, 1)
    ]


def rows(images: Tensor) -> list[tuple[int, ...]]:
    """Each image as something that can sit in a set."""
    images = images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)
    return [tuple(image.flatten().tolist()) for image in images]


def running(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if "running" in k}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [k for k in one if not torch.equal(one[k], other[k])] == []


def assert_mean(mean: dict[str, Tensor], parts: list[dict[str, Tensor]]) -> None:
    """The running statistics are the mean of two that differ."""
    one, other = (running(part) for part in parts)
    assert not any(torch.equal(one[k], other[k]) for k in one)
    for key, value in running(mean).items():
        torch.testing.assert_close(value, (one[key] + other[key]) / 2)


def tiny(state: dict[str, Tensor]) -> Classifier:
    """The classifier of two_ranks.py, written out here a second time."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.norm1 = torch.nn.Conv2d(1, 6, 3, padding=1), torch.nn.BatchNorm2d(6)
            self.conv2 = torch.nn.Conv2d(6, 8, 3, padding=1, stride=2)
            self.norm2, self.head = torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 3)

        def forward(self, x):
            x = torch.relu(self.norm1(self.conv1(x)))
            return self.head(torch.relu(self.norm2(self.conv2(x))).mean((2, 3)))

    net = Classifier(Net(), [0.4], [0.3])
    net.load_state_dict(state)
    return net


def evaluation_images() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(23)
    return torch.randint(256, (23, 1, 8, 8), dtype=torch.uint8, generator=rng), torch.arange(23) % 3


def answers(state: dict[str, Tensor], images: Tensor) -> Tensor:
    return tiny(state).eval()(images / 255).argmax(1)


def share(hits: Tensor) -> Any:
    return pytest.approx(hits.float().mean().item(), abs=1e-6)


def test_strategy(both):
    assert [found["strategy"] for found in both("main")] == [DDPStrategy] * 2
    assert [found["world"] for found in both("main")] == [2, 2]


@pytest.mark.parametrize("name", ["main", "holdout", "initial", "float16", "supervised"])
def test_student__same_on_every_rank(both, name):
    one, other = both(name)
    assert_same(one["start"][0], other["start"][0])  # though they were born different
    assert len(one["validated"]) == len(other["validated"]) > 0
    for mine, yours in zip(one["validated"], other["validated"], strict=True):
        assert_same(mine, yours)
    assert_same(one["student"], other["student"])
    assert any("num_batches_tracked" in key for key in one["student"])
    assert not torch.equal(
        one["start"][0]["network.conv1.weight"], one["student"]["network.conv1.weight"]
    )


@pytest.mark.parametrize("name", ["main", "holdout", "supervised"])
def test_batchnorm__mean_of_the_ranks(both, name):
    one, other = both(name)
    for i, validated in enumerate(one["validated"]):
        assert_mean(validated, [one["own"][i], other["own"][i]])


def test_checkpoint__student(both, folder):
    def student(file: str) -> dict[str, Tensor]:
        state = torch.load(folder / file, weights_only=True)["state_dict"]
        return {k.removeprefix("student."): v for k, v in state.items() if k.startswith("student.")}

    assert_same(student("last.ckpt"), both("main")[0]["student"])
    assert_mean(student("middle.ckpt"), [found["middle"][0] for found in both("holdout")])


def test_student__learns_from_both_ranks(both):
    """Against plain torch: two networks, gradients averaged by hand, SGD and cosine written out."""
    ranks = both("main")
    teacher = tiny(ranks[0]["teacher"]).eval()
    twins = [tiny(found["start"][0]).train() for found in ranks]
    velocity = [torch.zeros_like(p) for p in twins[0].parameters()]
    steps = list(zip(*(found["batches"] for found in ranks), strict=True))
    assert len(steps) == 2 * 4
    for step, batches in enumerate(steps):
        gradients = []
        for twin, images in zip(twins, batches, strict=True):
            assert len(images) == 8 / 2
            wanted = F.softmax(teacher(images) / 20, dim=1)
            logs = F.log_softmax(twin(images) / 20, dim=1)
            loss = (wanted * (wanted.log() - logs)).sum(1).mean() * 400
            gradients.append(torch.autograd.grad(loss, list(twin.parameters())))
        rate = 2e-3 if step < 4 else (2e-3 + 2e-4) / 2
        for i, v in enumerate(velocity):
            mean = (gradients[0][i] + gradients[1][i]) / 2
            for twin in twins:
                weight = list(twin.parameters())[i].data
                if twin is twins[0]:
                    v.mul_(0.9).add_(mean + 1e-4 * weight)
                weight.sub_(rate * v)
        if step % 4 == 3:  # the end of an epoch
            states = [running(twin.state_dict()) for twin in twins]
            for key in states[0]:
                mean = (states[0][key] + states[1][key]) / 2
                states[0][key].copy_(mean)
                states[1][key].copy_(mean)
    for key, value in twins[0].state_dict().items():
        torch.testing.assert_close(ranks[0]["student"][key], value, rtol=1e-3, atol=1e-4)


def test_banks__disjoint(both):
    one, other = both("main")
    assert [len(targets) for targets in one["targets"]] == [12, 12, 0, 12]
    assert [len(targets) for targets in other["targets"]] == [12, 0, 12, 0]
    banks = [rows(found["bank"][0]) for found in (one, other)]
    assert len(set(banks[0] + banks[1])) == len(banks[0] + banks[1]) == PLANNED
    assert one["results"]["images_banked"] == other["results"]["images_banked"] == PLANNED


@pytest.mark.parametrize("name", ["main", "holdout", "initial"])
def test_global_step__same_on_every_rank(both, name):
    """Or a checkpoint would be due on one rank only, and wait there for the other."""
    one, other = both(name)
    made = [sum(len(targets) > 0 for targets in found["targets"]) for found in (one, other)]
    assert made[0] != made[1]
    in_turn = zip(one["targets"], other["targets"], strict=True)
    rounds = sum(max(len(mine), len(yours)) > 0 for mine, yours in in_turn)
    assert one["steps"] == other["steps"] == 4 * rounds + len(one["batches"])


def test_random_streams__differ(both):
    one, other = both("main")
    assert one["targets"][0].tolist() != other["targets"][0].tolist()
    drawn = one["noise"] + other["noise"]
    assert len(drawn) == 5
    assert len({tuple(noise.flatten().tolist()) for noise in drawn}) == 5
    for mine, yours in zip(one["batches"], other["batches"], strict=True):
        assert not set(rows(mine)) & set(rows(yours))


def test_generators__differ(both):
    one, other = both("main")
    for found in (one, other):
        assert_same(found["generator at first"], found["generator at start"])
    for moment in ("generator at start", "generator"):
        weight = "layers.0.weight"
        assert not torch.equal(one[moment][weight], other[moment][weight])


def test_metrics__whole_evaluation_set(both):
    one, other = both("main")
    assert one["results"] == other["results"]
    images, labels = evaluation_images()
    student, teacher = answers(one["student"], images), answers(one["teacher"], images)
    assert len(teacher.unique()) > 1
    assert one["results"]["student_accuracy"] == share(student == labels)
    assert one["results"]["teacher_accuracy"] == share(teacher == labels)
    assert one["results"]["agreement"] == share(student == teacher)


def test_summary__both_banks(both):
    one, other = both("main")
    images, labels = (torch.cat([one["bank"][i], other["bank"][i]]) for i in (0, 1))
    seen = answers(one["teacher"], images)
    assert one["results"]["label_agreement"] == share(seen == labels)


def test_holdout__of_both_ranks(both):
    one, other = both("holdout")
    held, banked = (
        [rows(found[kind][0]) for found in (one, other)] for kind in ("holdout", "bank")
    )
    assert len({*held[0], *held[1], *banked[0], *banked[1]}) == PLANNED
    assert [len(held[0]), len(held[1])] == [9, 6]
    images = torch.cat([one["holdout"][0], other["holdout"][0]])
    agree = answers(one["student"], images) == answers(one["teacher"], images)
    assert one["results"]["agreement"] == other["results"]["agreement"] == share(agree)
    assert one["results"]["student_accuracy"] is None
    assert one["results"]["images_banked"] == PLANNED - 9 - 6


def test_saved_bank__divided(both, folder):
    one, other = both("initial")
    saved = MemoryBank(7, (1, 8, 8))
    saved.add(*read_bank(folder / "bank.safetensors"))
    mine, yours = rows(one["bank"][0]), rows(other["bank"][0])
    assert [len(mine), len(yours)] == [4 + 6, 3]
    assert set(mine[:4] + yours) == set(rows(saved.images))
    assert sorted([*one["bank"][1][:4].tolist(), *other["bank"][1].tolist()]) == list(range(7))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sync_batchnorm", "trainer.sync_batchnorm=true"),
        ("odd_batch", "batch_size=7 cannot be divided evenly among 2 processes"),
    ],
)
def test_input_error__on_every_rank(both, name, message):
    for found in both(name):
        assert found["error"] is InputError
        assert message in found["message"]
        assert found["targets"] == []


def test_divergence__on_one_rank(both):
    """Rank 1 alone has that round: rank 0 would wait for it for ever."""
    one, other = both("broken")
    for found in (one, other):
        assert found["error"] is DivergenceError
        assert "loss term 'bn' became nan at step 1 of round 2" in found["message"]
    assert [len(found["bank"][0]) for found in (one, other)] == [24, 12]


def test_supervised__exported_network(both, folder):
    one, other = both("supervised")
    weights, facts = read_weights(folder / "network.safetensors")
    images, labels = evaluation_images()
    right = share(answers({f"network.{k}": v for k, v in weights.items()}, images) == labels)
    assert one["results"]["accuracy"] == other["results"]["accuracy"] == right
    assert facts["measured"]["val/accuracy"] == right


def test_supervised__each_image_once(both):
    one, other = both("supervised")
    assert len(one["batches"]) == len(other["batches"]) == 2 * (37 // 8)
    for epoch in (slice(0, 4), slice(4, 8)):
        used = [
            row
            for found in (one, other)
            for images in found["batches"][epoch]
            for row in rows(images)
        ]
        assert len(set(used)) == len(used) == 4 * 8


# train.py with two devices, or as two nodes


@pytest.fixture
def teacher_file(tmp_path) -> None:
    """Untrained: nothing here depends on what it knows."""
    torch.manual_seed(0)
    description = {"_target_": "nayer_pl.networks.wrn16_1", "num_classes": 10, "channels": 1}
    save_classifier(tmp_path / "teacher.safetensors", build_classifier(description, [0.3], [0.4]))


def assert_finished(folder: Path, code: int, out: str, err: str) -> dict[str, Any]:
    """One run, one directory, one summary, whose figures are those of both ranks; its summary."""
    assert code == 0, err[-3000:]
    assert out.count("Summary") == 1 + out.count("training it")
    assert out.count("The teacher is right on") == 1
    assert "warn" not in err.lower(), err
    assert "GLOBAL_RANK" not in out + err
    assert "strides" not in out + err
    assert {path.name for path in folder.iterdir()} == {"run", "teacher.safetensors"}
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["images_banked"] == 3 * 20
    assert summary["student_updates"] == 2 * 3
    for phase, images in (("synthesis", 3 * 20), ("distillation", 2 * 3 * 16)):
        speed, seconds = (summary[f"{kind}_{phase}"] for kind in ("images_per_second", "seconds"))
        assert speed * seconds == pytest.approx(images)
    student, _ = load_classifier(folder / "run" / "student.safetensors")
    images, labels = Digits(16).load("evaluation")
    assert summary["student_accuracy"] == share(student(images / 255).argmax(1) == labels)
    return summary


def test_train_py__two_devices(tmp_path):
    recipe = "model=supervised data=digits teacher=wrn16_1 plan.epochs=1"
    arguments = [*SHORT, "trainer.devices=2", f"teacher.trained_by='{recipe}'"]
    [done] = together([TRAIN, *arguments], cwd=tmp_path)
    summary = assert_finished(tmp_path, *done)
    nested = json.loads((tmp_path / "run" / "teacher" / "summary.json").read_text())
    assert nested["accuracy"] == pytest.approx(summary["teacher_accuracy"])


@pytest.mark.slow
@pytest.mark.usefixtures("teacher_file")
@pytest.mark.parametrize("strategy", ["ddp", "ddp_gloo", "ddp_bf16"])
def test_train_py__strategies(tmp_path, strategy):
    arguments = [*SHORT, "trainer.devices=2", f"strategy={strategy}"]
    [done] = together([TRAIN, *arguments], cwd=tmp_path)
    assert_finished(tmp_path, *done)


@pytest.mark.slow
@pytest.mark.usefixtures("teacher_file")
def test_train_py__torchrun_two_nodes(tmp_path):
    arguments, port = [*SHORT, "trainer.num_nodes=2"], free_port()
    nodes = [[*torchrun(node, port), TRAIN, *arguments] for node in (0, 1)]
    first, second = together(*nodes, cwd=tmp_path)
    assert_finished(tmp_path, *first)
    assert second[0] == 0, second[2][-3000:]
    assert "Summary" not in second[1]


BREAK = """
import torch
from lightning import Callback


class BreakRankOne(Callback):
    def on_train_start(self, trainer, method):
        if trainer.global_rank == 1:
            criterion = method.synthesizer.criterion
            criterion.batchnorm.register_forward_hook(lambda *given: given[-1] * torch.nan)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("teacher_file")
def test_train_py__one_rank_fails(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(BREAK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    arguments = [*SHORT, "trainer.devices=2"]
    arguments += ["+callbacks.broken._target_=broken.BreakRankOne"]
    [(code, out, err)] = together([TRAIN, *arguments], cwd=tmp_path)
    assert code == 1
    assert err.count("error: The synthesis loss term 'bn' became nan at step 1 of round 1") == 1
    assert "Traceback" not in out + err
    assert not (tmp_path / "run" / "summary.json").exists()
