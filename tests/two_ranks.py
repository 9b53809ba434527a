"""One of the two ranks that test_distributed.py looks at: a program of its own.

It uses the library as a script without Hydra would, and leaves one file per run and rank in the
folder that it is given.
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from running import CLASSES, SHAPE, TinyNet, TinySource
from torch import Tensor
from torch.optim import SGD

from nayer_pl import (
    NAYER,
    BankOptions,
    Classifier,
    Generator,
    NayerError,
    Plan,
    RealDataModule,
    Supervised,
    SyntheticDataModule,
)
from nayer_pl.bank import DistillationBatch, SynthesisRound
from nayer_pl.callbacks import Export

RANK = int(os.environ["RANK"])

# Three rounds before the first step, then one in each epoch: two ranks can share out neither.
PLAN = Plan(
    epochs=2, warmup_epochs=1, warmup_rounds=3, rounds_per_epoch=1, kd_steps=4, round_size=12,
    batch_size=8,
)  # fmt: skip


# Two ranks can share out neither.
ODD = TinySource(evaluation=23, train=37)


class Witness(Callback):
    """Writes down what this rank saw, and saves the student in the middle of an epoch."""

    def __init__(self, middle: Path) -> None:
        self.middle = middle
        kinds = "targets", "noise", "batches", "start", "own", "validated", "middle"
        self.seen: dict[str, Any] = {kind: [] for kind in kinds}

    def note(self, moment: str, method: LightningModule) -> None:
        self.seen[moment].append(copied(method.exported_classifier.state_dict()))

    def on_train_start(self, trainer: Trainer, method: LightningModule) -> None:
        self.note("start", method)
        if isinstance(method, NAYER):
            self.seen["generator at start"] = copied(method.synthesizer.generator.state_dict())
            layer = method.synthesizer.conditioning.noisy_layer
            layer.register_forward_pre_hook(lambda *_: self.keep_first(layer.weight))

    def on_train_batch_start(
        self, trainer: Trainer, method: LightningModule, item: Any, i: int
    ) -> None:
        self.new_round = isinstance(item, SynthesisRound)
        if isinstance(item, SynthesisRound):
            self.seen["targets"].append(item.targets)
        else:
            images = item.images if isinstance(item, DistillationBatch) else item[0]
            self.seen["batches"].append(images.clone())

    def on_train_batch_end(
        self, trainer: Trainer, method: LightningModule, outputs: Any, item: Any, i: int
    ) -> None:
        if getattr(method, "student_updates", 0) == 2 and not self.seen["middle"]:
            self.note("middle", method)
            trainer.save_checkpoint(self.middle)

    def keep_first(self, weight: Tensor) -> None:
        if self.new_round:
            self.seen["noise"].append(weight.detach().clone())
        self.new_round = False

    def on_validation_start(self, trainer: Trainer, method: LightningModule) -> None:
        self.note("own", method)  # hooks of callbacks come before the module's

    def on_validation_end(self, trainer: Trainer, method: LightningModule) -> None:
        self.note("validated", method)


class BreakRankOne(Callback):
    """In the second round of rank 1 the statistics term is not a number."""

    def on_train_batch_start(self, trainer: Trainer, method: NAYER, item: Any, i: int) -> None:
        if trainer.global_rank == 1 and method.rounds == 1 and len(item.targets):
            criterion = method.synthesizer.criterion
            criterion.batchnorm.register_forward_hook(lambda *given: given[-1] * torch.nan)


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def classifier(seed: int) -> Classifier:
    """With running statistics that are not the first ones, and answers of every class."""
    torch.manual_seed(seed)
    net = Classifier(TinyNet(), mean=[0.4], std=[0.3])
    net.train()
    for _ in range(30):
        net(torch.rand(32, *SHAPE))
    net.eval()
    with torch.no_grad():
        net.network.head.weight *= 10
        net.network.head.bias -= net(ODD.load("evaluation").images / 255).mean(0)
    return net


def distiller(**options: Any) -> NAYER:
    """The same teacher on both ranks; student and generator are born different."""
    return NAYER(
        classifier(0), classifier(10 + RANK), SHAPE, torch.randn(CLASSES, 5), noisy_features=16,
        generator_steps=4, round_size=12, check_teacher=False,
        optimizer=partial(SGD, lr=2e-3, momentum=0.9, weight_decay=1e-4), **options,
    )  # fmt: skip


def synthetic(plan: Plan = PLAN, **options: Any) -> SyntheticDataModule:
    return SyntheticDataModule(SHAPE, CLASSES, plan, ODD, eval_batch_size=5, **options)


def run(
    folder: Path, name: str, method: LightningModule, data: Any, *callbacks: Callback,
    **options: Any,
) -> None:  # fmt: skip
    """Train, and write what this rank knows afterwards to a file of this name."""
    witness = Witness(folder / f"{name}_middle.ckpt")
    trainer = Trainer(
        accelerator="cpu", devices=2, max_epochs=data.max_epochs, logger=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        num_sanity_val_steps=0, callbacks=[witness, ModelCheckpoint(folder, name), *callbacks],
        **options,
    )  # fmt: skip
    found = witness.seen
    try:
        trainer.fit(method, datamodule=data)
    except NayerError as error:
        found |= {"error": type(error), "message": str(error)}
    else:
        found["results"] = method.results()
    found["strategy"], found["world"] = type(trainer.strategy), trainer.world_size
    found["steps"], found["student"] = trainer.global_step, method.exported_classifier.state_dict()
    if isinstance(method, NAYER):
        found["teacher"] = method.teacher.classifier.state_dict()
        found["generator"] = method.synthesizer.generator.state_dict()
    for kind in ("bank", "holdout"):
        kept = getattr(data, kind, None)
        found[kind] = None if kept is None else (kept.images, kept.labels)
    torch.save(found, folder / f"{name}_{RANK}.pt")


def main(folder: Path) -> None:
    run(folder, "main", distiller(), synthetic())
    run(folder, "holdout", distiller(), synthetic(evaluation=False, holdout=0.25))

    # One round in all, which is rank 0's; rank 1 distils from its share of the saved bank.
    one_round = Plan(
        epochs=1, warmup_epochs=1, warmup_rounds=1, rounds_per_epoch=0, kd_steps=2, round_size=6,
        batch_size=4,
    )  # fmt: skip
    data = synthetic(one_round, bank=BankOptions(initial=folder / "bank.safetensors"))
    run(folder, "initial", distiller(), data)

    run(folder, "sync_batchnorm", distiller(), synthetic(), sync_batchnorm=True)
    run(folder, "odd_batch", distiller(), synthetic(Plan(round_size=12, batch_size=7)))
    run(folder, "broken", distiller(), synthetic(), BreakRankOne())

    # The loss scale grows after every third step of an optimizer, the generator's included. CPUs
    # convolve in float16 very slowly: a small generator.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=3)
    half = MixedPrecision("16-mixed", "cpu", scaler)
    run(
        folder,
        "float16",
        distiller(generator=partial(Generator, width=2)),
        synthetic(),
        plugins=half,
    )

    real = RealDataModule(ODD, batch_size=8, epochs=2, eval_batch_size=5)
    export = Export(folder / "network.safetensors", ["a", "b", "c"], SHAPE)
    teacher = Supervised(classifier(20 + RANK), optimizer=partial(SGD, lr=0.02, momentum=0.9))
    run(folder, "supervised", teacher, real, export)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
