"""The student's step."""

import math
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torchmetrics import MeanMetric

from nayer_pl.bank.plan import DistillationBatch
from nayer_pl.distillation.divergence import NonFiniteGuard, gradient_norm
from nayer_pl.distillation.judging import Judging
from nayer_pl.distillation.state import DistillationState
from nayer_pl.errors import DivergenceError, require
from nayer_pl.losses.functional import distillation_loss


class Distilling(Judging, DistillationState):
    """The student learns what the teacher says about images; a method may change each part of it.

    See `DataFreeDistillation` for the arguments.
    """

    nesterov = False
    """Whether the student's momentum is Nesterov's."""

    def __init__(
        self,
        temperature: float,
        learning_rate: float,
        min_learning_rate: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        super().__init__()
        require(temperature > 0, "model.temperature", "above 0", temperature)
        require(learning_rate > 0, "model.learning_rate", "above 0", learning_rate)
        lowest = min_learning_rate
        require(lowest >= 0, "model.min_learning_rate", "at least 0", lowest)
        require(0 <= momentum < 1, "model.momentum", "at least 0 and below 1", momentum)
        require(weight_decay >= 0, "model.weight_decay", "at least 0", weight_decay)
        self.automatic_optimization = False
        self.temperature = temperature
        self.learning_rate, self.min_learning_rate = learning_rate, min_learning_rate
        self.momentum, self.weight_decay = momentum, weight_decay
        # A mean that leaves NaN out would hide what must stop the run.
        self.kd_loss = MeanMetric(nan_strategy="disable")
        self._watch = NonFiniteGuard()

    # What a method may say

    def images_to_learn(self, batch: DistillationBatch) -> Tensor:
        """What the student sees in this step: the banked images, in [0, 1], [B, C, H, W]."""
        return batch.images

    def student_loss(self, images: Tensor) -> Tensor:
        """What the student minimizes on images [B, C, H, W] in [0, 1]; a scalar."""
        with torch.no_grad():
            teacher_logits = self.ask_teacher(images)
        return distillation_loss(self.student(images), teacher_logits, self.temperature)

    def student_optimizer(self) -> Optimizer:
        """SGD with momentum."""
        return SGD(
            self.student.parameters(),
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov and self.momentum > 0,  # without any it is plain SGD
            fused=True,
        )

    def student_schedule(self, optimizer: Optimizer, epochs: int) -> LRScheduler:
        """A cosine over the distillation epochs."""
        return CosineAnnealingLR(optimizer, epochs, eta_min=self.min_learning_rate)

    # What happens

    def distillation_step(self, batch: DistillationBatch) -> None:
        """One update of the student."""
        loss = self.student_loss(self.images_to_learn(batch))
        optimizer = self.all_optimizers()[0]
        optimizer.zero_grad()
        self.manual_backward(loss)
        if not self.scales_losses:
            norm = gradient_norm(self.student.parameters())
            number = self.student_updates + 1
            self._watch.before_step(optimizer.optimizer, loss.detach(), norm, number)
        optimizer.step()
        self.student_updates += 1
        self.kd_loss.update(loss.detach())
        # Reading a loss waits for the device, so it is read where it is logged anyway.
        if self.due(self.student_updates):
            self.report_kd_loss()

    def report_kd_loss(self) -> None:
        """Log the mean loss since the last report; stop the run if it is not finite."""
        if not self.kd_loss.update_count:
            return
        value = float(self.kd_loss.compute())
        self.kd_loss.reset()
        self._watch.check()
        if not math.isfinite(value):
            raise DivergenceError(
                f"The distillation loss became {value} before student update "
                f"{self.student_updates} (epoch {self.current_epoch}); the last checkpoint is from "
                "before that. Lower model.learning_rate."
            )
        self.show({"kd": value})
        learning_rate = float(self.all_optimizers()[0].param_groups[0]["lr"])
        self.record({"distillation/loss": value, "distillation/learning_rate": learning_rate})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save nothing after a step that was not finite."""
        self._watch.check()
        super().on_save_checkpoint(checkpoint)

    @property
    def scales_losses(self) -> bool:
        """Whether scaled gradients may overflow, and who scales them looks after it."""
        return getattr(self.trainer.precision_plugin, "scaler", None) is not None

    def all_optimizers(self) -> list[LightningOptimizer]:
        """The student's, then the method's own."""
        found: Any = self.optimizers()
        return found if isinstance(found, list) else [found]
