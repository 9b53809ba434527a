"""DFAD: Data-Free Adversarial Distillation.

Fang et al., 2019, arXiv 1912.11006.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from nayer_pl.distillation.online import OnlineDistillation, stepping_down
from nayer_pl.networks.classifier import Classifier


class DFAD(OnlineDistillation):
    """Teacher and student disagree by so much; the generator raises it, the student lowers it.

    The discrepancy is the mean absolute error between logits. The student's steps (imitation, five
    in the published code) and the generator's (generation) see images of a new z each.

    The paper's generator may maximize the logarithm of one plus the discrepancy, which slows it
    down where the discrepancy is large. The published code does so for segmentation, and not for
    classification; `log_form` chooses. As in all methods here, images are in [0, 1] (there:
    standardized), and the student is in evaluation mode during the generator's steps (there: in
    training mode).

    Args:
        teacher, student, image_shape: see `OnlineDistillation`, which also takes `online`.
        noise_features: size of z.
        log_form: the generator's loss is -log(1 + discrepancy) instead of -discrepancy.
        learning_rate, weight_decay: of the student's SGD.
        milestones: shares of the distillation epochs after which both learning rates fall.
        decay: what they are multiplied by then.
        online: the generator's arguments, seed and so on of `OnlineDistillation`.
    """

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        image_shape: Sequence[int],
        noise_features: int = 256,
        log_form: bool = False,
        learning_rate: float = 0.1,
        weight_decay: float = 5e-4,
        milestones: Sequence[float] = (0.2, 0.4),
        decay: float = 0.1,
        **online: Any,
    ) -> None:
        super().__init__(
            teacher,
            student,
            image_shape,
            noise_features,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            **online,
        )
        self.log_form, self.milestones, self.decay = log_form, tuple(milestones), decay

    def judge(self, images: Tensor) -> dict[str, Tensor]:
        """The negative discrepancy, or its logarithm."""
        found = F.l1_loss(self.student(images), self.ask_teacher(images))
        return {"loss": -found.log1p() if self.log_form else -found, "discrepancy": found}

    def student_loss(self, images: Tensor) -> Tensor:
        """The discrepancy."""
        with torch.no_grad():
            teacher_logits = self.ask_teacher(images)
        return F.l1_loss(self.student(images), teacher_logits)

    def student_schedule(self, optimizer: Optimizer, epochs: int) -> LRScheduler:
        """Steps down."""
        return stepping_down(optimizer, epochs, self.milestones, self.decay)
