"""What a data-free run must remember to resume as if nothing had happened.

The student is common to all ranks, and Lightning saves it. Each rank has its own images, which are
the data module's business, and its own synthesizer, optimizers and counts, which are saved here.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from nayer_pl.distillation.rank_state import RankState, load_mean, mean_state
from nayer_pl.networks.registry import described
from nayer_pl.networks.weights import fingerprint
from nayer_pl.runtime import distributed
from nayer_pl.runtime.rng import restore_generator


class DistillationState(RankState):
    """The state of a `DataFreeDistillation` beside the student's weights.

    Args:
        module: The `DataFreeDistillation` whose state it is.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self._teacher_weights: str | None = None
        self._buffers: dict[str, Tensor] | None = None  # the student's, from a checkpoint
        self._optimizers: list[dict[str, Any]] = []  # the synthesizer's, from a checkpoint

    def identity(self) -> dict[str, str]:
        """Method, networks, images and plan."""
        module, data = self.module, self.module.datamodule
        teacher = module.teacher.classifier
        self._teacher_weights = self._teacher_weights or fingerprint(teacher)
        return {
            "method": type(module).__name__,
            "teacher": f"{described(teacher)} (weights {self._teacher_weights})",
            "student": described(module.student),
            "image shape": str(tuple(data.image_shape)),
            "number of classes": str(data.num_classes),
            "plan": str(data.plan),
        }

    def own(self) -> dict[str, Any]:
        """What makes this rank's images, and what it has counted."""
        module = self.module
        optimizers = [each.state_dict() for each in module.trainer.optimizers[1:]]
        return {
            "parts": {
                n: tensor.cpu() for n, tensor in module.state_dict().items() if self._is_own(n)
            },
            "buffers": {n: b.cpu().clone() for n, b in module.student.named_buffers()},
            "rounds": module.rounds,
            "synthesis_steps": module.synthesis_steps,
            "rng": module.synthesizer.rng.get_state(),
            # Other ranks get them, which may not see this one's device.
            "optimizers": move_data_to_device(optimizers, torch.device("cpu")),
            "kd_loss": mean_state(module.updater.mean_loss),
            "synthesis_loss": mean_state(module.synthesis_loss),
        }

    def _is_own(self, name: str) -> bool:
        """Whether a tensor is neither the networks' nor drawn again in every round."""
        transient = [f"synthesizer.{part}" for part in self.module.synthesizer.transient]
        elsewhere = ("student", "teacher", *transient)
        return not any(name == part or name.startswith(f"{part}.") for part in elsewhere)

    def load_own(self, states: Sequence[dict[str, Any]], rank: int) -> None:
        """Restore it; a rank that is new starts from another one's state, with noise of its own."""
        module, alike = self.module, states[rank % len(states)]
        if rank < len(states):
            restore_generator(module.synthesizer.rng, alike["rng"])
        module.load_state_dict(alike["parts"], strict=False)
        self._buffers, self._optimizers = alike["buffers"], alike["optimizers"]
        mine = states[rank :: module.trainer.world_size]  # none if there are more ranks than before
        module.rounds = sum(state["rounds"] for state in mine)
        module.synthesis_steps = sum(state["synthesis_steps"] for state in mine)
        load_mean(module.updater.mean_loss, [state["kd_loss"] for state in mine])
        load_mean(module.synthesis_loss, [state["synthesis_loss"] for state in mine])

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Add also what the ranks have in common: averaged BatchNorm buffers and the progress."""
        super().save(checkpoint)
        module, state = self.module, checkpoint["state_dict"]
        with distributed.averaged_batchnorm(module.student):  # saving must not change a run
            for name, buffer in module.student.named_buffers(prefix="student"):
                if name in state:  # not the normalization
                    state[name] = buffer.clone()
        for optimizer in checkpoint.get("optimizer_states", [])[1:]:  # every rank has its own
            optimizer["state"] = {}
        progress = {"student_updates": module.student_updates, "rounds": module.rounds}
        checkpoint["progress"] = progress

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Restore also the progress, and the place in the epoch."""
        super().load(checkpoint)
        self.module.student_updates = checkpoint["progress"]["student_updates"]
        self.module.datamodule.seek_epoch(checkpoint["loops"]["fit_loop"])

    def finish_loading(self) -> None:
        """Restore the synthesizer's optimizers, after Lightning has restored those it knows."""
        super().finish_loading()
        own = self.module.trainer.optimizers[1:]
        for optimizer, state in zip(own, self._optimizers, strict=False):
            optimizer.load_state_dict(state)
        self._optimizers = []

    def restore_batchnorm_buffers(self) -> None:
        """To be called in every step: with the first one DDP sends out those of rank 0."""
        if self._buffers is not None:
            for name, buffer in self.module.student.named_buffers():
                buffer.copy_(self._buffers[name])
            self._buffers = None
