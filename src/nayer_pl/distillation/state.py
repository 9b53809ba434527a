"""What a data-free run must remember to go on as if nothing had happened."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torchmetrics import MeanMetric

from nayer_pl.bank.datamodule import SyntheticDataModule
from nayer_pl.distillation.rank_state import (
    Resumable,
    load_metric,
    metric_state,
)
from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.registry import described
from nayer_pl.networks.weights import fingerprint
from nayer_pl.runtime import distributed
from nayer_pl.runtime.rng import restore_generator


class DistillationState(Resumable, ABC):
    """The state of `DataFreeDistillation`, on every rank; the bank's is its data module's.

    A method whose synthesis remembers more than tensors of the module, `rng` and its optimizers
    adds that to `own_state`.
    """

    teacher: Classifier
    student: Classifier
    kd_loss: MeanMetric
    synthesis_loss: MeanMetric
    rng: torch.Generator
    student_updates = 0
    rounds = 0
    synthesis_steps = 0

    _statistics: dict[str, Tensor] | None = None  # the student's, from a checkpoint
    _optimizers_of_synthesis: list[dict[str, Any]] | None = None  # likewise
    _teachers_weights: str | None = None

    @property
    @abstractmethod
    def datamodule(self) -> SyntheticDataModule:
        """The plan and the bank."""

    def facts(self) -> dict[str, str]:
        """Method, networks, images and plan."""
        data = self.datamodule
        self._teachers_weights = self._teachers_weights or fingerprint(self.teacher)
        return {
            **super().facts(),
            "teacher": f"{described(self.teacher)} (weights {self._teachers_weights})",
            "student": described(self.student),
            "image shape": str(tuple(data.image_shape)),
            "number of classes": str(data.num_classes),
            "plan": str(data.plan),
        }

    def own_state(self) -> dict[str, Any]:
        """What makes this rank's images, without the teacher, and what it has counted."""
        optimizers = [each.state_dict() for each in self.trainer.optimizers[1:]]
        return {
            "parts": {
                name: tensor.cpu()
                for name, tensor in self.state_dict().items()
                # The teacher also stands, watched, one level deeper.
                if not {"student", "teacher"} & set(name.split(".")[:2])
            },
            "statistics": {n: b.cpu().clone() for n, b in self.student.named_buffers()},
            "rounds": self.rounds,
            "synthesis_steps": self.synthesis_steps,
            "rng": self.rng.get_state(),
            # Other ranks get them, who may not see this one's device.
            "optimizers": move_data_to_device(optimizers, torch.device("cpu")),
            "kd_loss": metric_state(self.kd_loss),
            "synthesis_loss": metric_state(self.synthesis_loss),
        }

    def load_own_state(self, states: Sequence[dict[str, Any]], rank: int) -> None:
        """A rank that was not there before begins with what another one knows, and own noise."""
        alike = states[rank % len(states)]
        if rank < len(states):
            restore_generator(self.rng, alike["rng"])
        self._optimizers_of_synthesis = alike["optimizers"]
        self.load_state_dict(alike["parts"], strict=False)
        self._statistics = alike["statistics"]
        mine = states[rank :: self.trainer.world_size]  # empty if there are more ranks than before
        self.rounds = sum(state["rounds"] for state in mine)
        self.synthesis_steps = sum(state["synthesis_steps"] for state in mine)
        load_metric(self.kd_loss, [state["kd_loss"] for state in mine])
        load_metric(self.synthesis_loss, [state["synthesis_loss"] for state in mine])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what each rank has alone; then what they have in common, which is the student."""
        super().on_save_checkpoint(checkpoint)
        state = checkpoint["state_dict"]
        for key in [key for key in state if not key.startswith("student.")]:
            del state[key]
        with distributed.averaged_batchnorm(self.student):  # for now: saving must not change a run
            for name, buffer in self.student.named_buffers(prefix="student"):
                if name in state:  # not the normalization
                    state[name] = buffer.clone()
        for optimizer in checkpoint.get("optimizer_states", [])[1:]:  # every rank has its own
            optimizer["state"] = {}
        checkpoint["progress"] = {"student_updates": self.student_updates, "rounds": self.rounds}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counters, and the place in the epoch."""
        super().on_load_checkpoint(checkpoint)
        self.student_updates = checkpoint["progress"]["student_updates"]
        self.datamodule.seek_epoch(checkpoint["loops"]["fit_loop"])

    def on_train_start(self) -> None:
        """Optimizers of synthesis come back after Lightning has restored those that it knows."""
        super().on_train_start()
        saved = self._optimizers_of_synthesis or []
        for optimizer, state in zip(self.trainer.optimizers[1:], saved, strict=False):
            optimizer.load_state_dict(state)
        self._optimizers_of_synthesis = None

    def take_back_statistics(self) -> None:
        """To be called in every step: with the first one DDP sends out those of rank 0."""
        if self._statistics is not None:
            for name, buffer in self.student.named_buffers():
                buffer.copy_(self._statistics[name])
            self._statistics = None
