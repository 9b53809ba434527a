"""Two processes and one student: what two_ranks.py left behind, and train.py with two devices."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy
from running import (
    ROOT,
    TRAIN,
    Program,
    TinyNet,
    TinySource,
    free_port,
    run_two_ranks,
    save_untrained_teacher,
    train_py,
)
from torch import Tensor

from nayer_pl import (
    Classifier,
    Digits,
    DivergenceError,
    InputError,
    MemoryBank,
    load_classifier,
)
from nayer_pl.bank.bank import read_bank
from nayer_pl.networks.weights import read_weights

PLANNED = 5 * 12  # images: the rounds of two_ranks.PLAN

# As a user types it, only less of everything.
SHORT = [
    "experiment=digits", "run_dir=run", "teacher.weights=teacher.safetensors", "plan.epochs=2",
    "plan.warmup_epochs=1", "plan.warmup_rounds=1", "plan.kd_steps=3", "plan.round_size=20",
    "plan.batch_size=16", "model.generator_steps=3", "model.noisy_features=32",
    "trainer.accelerator=cpu", "logger=csv", "model.check_teacher=false",
    "trainer.precision=32-true",  # as the exported student is asked here
]  # fmt: skip


# The library without Hydra: two_ranks.py


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where both ranks leave what they saw, and find a saved bank."""
    folder = tmp_path_factory.mktemp("ranks")
    bank = MemoryBank(7, (1, 8, 8))
    bank.add(torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(7)), torch.arange(7))
    bank.save(folder / "bank.safetensors")
    return folder


@pytest.fixture(scope="module")
def both(folder) -> Callable[[str], list[dict[str, Any]]]:
    return run_two_ranks("two_ranks.py", folder=folder)


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


def with_weights(state: dict[str, Tensor]) -> Classifier:
    """The classifier of two_ranks.py with these weights."""
    net = Classifier(TinyNet(), mean=[0.4], std=[0.3])
    net.load_state_dict(state)
    return net


def answers(state: dict[str, Tensor], images: Tensor) -> Tensor:
    return with_weights(state).eval()(images / 255).argmax(1)


def share(hits: Tensor) -> Any:
    return pytest.approx(hits.float().mean().item(), abs=1e-6)


@pytest.mark.parametrize("name", ["main", "holdout", "initial", "float16", "supervised"])
def test_student__bit_for_bit(both, name):
    """The same on every rank, though it was born different."""
    one, other = both(name)
    for found in (one, other):
        assert (found["strategy"], found["world"]) == (DDPStrategy, 2)
    assert len(one["validated"]) == len(other["validated"]) > 0
    for mine, yours in zip(
        [one["start"][0], one["student"], *one["validated"]],
        [other["start"][0], other["student"], *other["validated"]],
        strict=True,
    ):
        assert_same(mine, yours)
    assert any("num_batches_tracked" in key for key in one["student"])
    weight = "network.conv1.weight"
    assert not torch.equal(one["start"][0][weight], one["student"][weight])


@pytest.mark.parametrize("name", ["main", "holdout", "supervised"])
def test_running_statistics__mean(both, name):
    one, other = both(name)
    for i, validated in enumerate(one["validated"]):
        assert_mean(validated, [one["own"][i], other["own"][i]])


def test_checkpoints(both, folder):
    """They hold the student of all ranks."""

    def student(file: str) -> dict[str, Tensor]:
        state = torch.load(folder / file, weights_only=True)["state_dict"]
        return {k.removeprefix("student."): v for k, v in state.items() if k.startswith("student.")}

    assert_same(student("main.ckpt"), both("main")[0]["student"])
    assert_mean(student("main_middle.ckpt"), [found["middle"][0] for found in both("main")])


def test_student_steps__plain_torch(both):
    """Two networks, gradients averaged by hand, SGD and cosine written out."""
    ranks = both("main")
    teacher = with_weights(ranks[0]["teacher"]).eval()
    twins = [with_weights(found["start"][0]).train() for found in ranks]
    velocity = [torch.zeros_like(p) for p in twins[0].parameters()]
    steps = list(zip(*(found["batches"] for found in ranks), strict=True))
    assert len(steps) == 2 * 4
    for step, batches in enumerate(steps):
        gradients = []
        for twin, images in zip(twins, batches, strict=True):
            assert len(images) == 8 / 2
            target = F.softmax(teacher(images) / 20, dim=1)
            logs = F.log_softmax(twin(images) / 20, dim=1)
            loss = (target * (target.log() - logs)).sum(1).mean() * 400
            gradients.append(torch.autograd.grad(loss, list(twin.parameters())))
        rate = 2e-3 if step < 4 else (2e-3 + 2e-4) / 2
        weights = zip(*(twin.parameters() for twin in twins), strict=True)
        for v, pair, grads in zip(velocity, weights, zip(*gradients, strict=True), strict=True):
            v.mul_(0.9).add_(sum(grads) / 2 + 1e-4 * pair[0].data)
            for weight in pair:
                weight.data.sub_(rate * v)
        if step % 4 == 3:  # the end of an epoch
            states = [running(twin.state_dict()) for twin in twins]
            for tensors in zip(*(state.values() for state in states), strict=True):
                mean = sum(tensors) / 2
                for tensor in tensors:
                    tensor.copy_(mean)
    for key, value in twins[0].state_dict().items():
        torch.testing.assert_close(ranks[0]["student"][key], value, rtol=1e-3, atol=1e-4)


def test_rounds__shared_out(both):
    """Every rank has labels, noise, generator, images and batches of its own."""
    one, other = both("main")
    for moment in ("generator at start", "generator"):
        assert not torch.equal(*(found[moment]["layers.0.weight"] for found in (one, other)))
    assert [len(targets) for targets in one["targets"]] == [12, 12, 0, 12]
    assert [len(targets) for targets in other["targets"]] == [12, 0, 12, 0]
    assert one["targets"][0].tolist() != other["targets"][0].tolist()
    noise = [*one["noise"], *other["noise"]]
    assert len(noise) == len({tuple(drawn.flatten().tolist()) for drawn in noise}) == 5
    banks = [*rows(one["bank"][0]), *rows(other["bank"][0])]
    assert len(set(banks)) == len(banks) == PLANNED
    assert one["results"]["images_banked"] == other["results"]["images_banked"] == PLANNED
    for mine, yours in zip(one["batches"], other["batches"], strict=True):
        assert not set(rows(mine)) & set(rows(yours))
    # Steps are counted alike, or a checkpoint would be due on one rank only, which waits there.
    assert one["steps"] == other["steps"] == 4 * 4 + 2 * 4


def test_results(both):
    """Of the whole evaluation set and of both banks."""
    one, other = both("main")
    assert one["results"] == other["results"]
    images, labels = TinySource(evaluation=23).load("evaluation")
    student, teacher = answers(one["student"], images), answers(one["teacher"], images)
    assert len(teacher.unique()) > 1
    assert one["results"]["student_accuracy"] == share(student == labels)
    assert one["results"]["teacher_accuracy"] == share(teacher == labels)
    assert one["results"]["agreement"] == share(student == teacher)
    images, labels = (torch.cat([one["bank"][i], other["bank"][i]]) for i in (0, 1))
    assert one["results"]["label_agreement"] == share(answers(one["teacher"], images) == labels)


def test_holdout(both):
    """Without real images, both shares that were held back judge."""
    ranks = both("holdout")
    held, banked = ([rows(found[kind][0]) for found in ranks] for kind in ("holdout", "bank"))
    assert len({*held[0], *held[1], *banked[0], *banked[1]}) == PLANNED
    assert [len(held[0]), len(held[1])] == [9, 6]
    images = torch.cat([found["holdout"][0] for found in ranks])
    agree = answers(ranks[0]["student"], images) == answers(ranks[0]["teacher"], images)
    for found in ranks:
        assert found["results"]["agreement"] == share(agree)
        assert found["results"]["student_accuracy"] is None
        assert found["results"]["images_banked"] == PLANNED - 9 - 6


def test_initial_bank(both, folder):
    """It is shared out, and stands in for a round."""
    one, other = both("initial")
    saved = MemoryBank(7, (1, 8, 8))
    saved.add(*read_bank(folder / "bank.safetensors"))
    mine, yours = rows(one["bank"][0]), rows(other["bank"][0])
    assert [len(mine), len(yours)] == [4 + 6, 3]
    assert set(mine[:4] + yours) == set(rows(saved.images))
    assert sorted([*one["bank"][1][:4].tolist(), *other["bank"][1].tolist()]) == list(range(7))


@pytest.mark.parametrize(
    ("name", "error", "message", "banked"),
    [
        ("sync_batchnorm", InputError, "sync_batchnorm", [0, 0]),
        ("odd_batch", InputError, "batch_size", [0, 0]),
        # Rank 1 alone has that round: rank 0 would wait for it forever.
        ("broken", DivergenceError, "term 'bn' became nan at step 1 of round 2", [24, 12]),
    ],
)
def test_errors(both, name, error, message, banked):
    """The same on every rank."""
    for found, images in zip(both(name), banked, strict=True):
        assert found["error"] is error
        assert message in found["message"]
        assert len(found["bank"][0]) == images if images else found["targets"] == []


def test_supervised__export(both, folder):
    one, other = both("supervised")
    weights, facts = read_weights(folder / "network.safetensors")
    images, labels = TinySource(evaluation=23).load("evaluation")
    right = share(answers({f"network.{k}": v for k, v in weights.items()}, images) == labels)
    assert one["results"]["accuracy"] == other["results"]["accuracy"] == right
    assert facts["measured"]["val/accuracy"] == right


# train.py with two devices, or as two nodes


def assert_finished(folder: Path, code: int, said: str) -> dict[str, Any]:
    """One run, one directory, one summary, whose figures are those of both ranks; its summary."""
    assert code == 0, said[-3000:]
    assert said.count("Summary") == 1 + said.count("training it")
    assert said.count("The teacher is right on") == 1
    assert not re.search("warning|GLOBAL_RANK|strides", said, re.IGNORECASE), said
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


def test_train_py__missing_teacher(tmp_path):
    recipe = "model=supervised data=digits teacher=wrn16_1 plan.epochs=1"
    arguments = [*SHORT, "trainer.devices=2", f"teacher.trained_by='{recipe}'"]
    arguments += ["model.conditioning=onehot"]  # no encoder to load
    summary = assert_finished(tmp_path, *train_py(*arguments, cwd=tmp_path))
    nested = json.loads((tmp_path / "run" / "teacher" / "summary.json").read_text())
    assert nested["accuracy"] == pytest.approx(summary["teacher_accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_gloo", "ddp_bf16"])
def test_train_py__strategies(tmp_path, strategy):
    save_untrained_teacher(tmp_path)
    arguments = [*SHORT, "trainer.devices=2", f"strategy={strategy}"]
    assert_finished(tmp_path, *train_py(*arguments, cwd=tmp_path))


@pytest.mark.slow
def test_train_py__two_nodes(tmp_path):
    save_untrained_teacher(tmp_path)
    launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    launcher += ["--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    first, second = (
        Program(*launcher, f"--node_rank={i}", TRAIN, *SHORT, "trainer.num_nodes=2", cwd=tmp_path)
        for i in (0, 1)
    )
    with first, second:
        assert_finished(tmp_path, *first.end())
        status, said = second.end()
    assert status == 0, said[-3000:]
    assert "Summary" not in said


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
def test_train_py__error_of_one_rank(tmp_path):
    save_untrained_teacher(tmp_path)
    (tmp_path / "broken.py").write_text(BREAK)
    arguments = [*SHORT, "trainer.devices=2", "+callbacks.broken._target_=broken.BreakRankOne"]
    path = f"{ROOT / 'src'}{os.pathsep}{tmp_path}"
    status, said = train_py(*arguments, cwd=tmp_path, PYTHONPATH=path)
    assert status == 1
    assert said.count("error: The synthesis loss term 'bn' became nan at step 1 of round 1") == 1
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "summary.json").exists()
