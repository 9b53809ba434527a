"""How good the student is: against real labels, and against its teacher."""

import logging
import math
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from nayer_pl.errors import InputError
from nayer_pl.runtime import distributed

log = logging.getLogger(__name__)


class Evaluator(nn.Module):
    """Counts right answers over all ranks; the teacher is asked about every image only once.

    Without real images (`ask_teacher` found none) there are no accuracies, only the agreement of
    student and teacher.

    Example:
        >>> evaluator = Evaluator()
        >>> network = nn.Linear(2, 2)
        >>> evaluator.update(0, torch.rand(4, 2), torch.zeros(4), network, teacher=network)
        >>> evaluator.compute()
        {'agreement': 1.0}
    """

    def __init__(self) -> None:
        super().__init__()
        self.teacher_accuracy, self.student_accuracy, self.agreement = (
            MulticlassAccuracy(average="micro", validate_args=False) for _ in range(3)
        )
        self._teacher_predictions: list[Tensor] = []

    @torch.no_grad()
    def ask_teacher(self, teacher: nn.Module, data: Any, num_classes: int | None = None) -> None:
        """Keep the teacher's predictions for the real images that a data module evaluates on.

        Raises:
            InputError: It is no better than guessing among `num_classes`; None accepts it.
        """
        self._teacher_predictions.clear()
        self.teacher_accuracy.reset()
        if not data.has_real_images:
            return
        count, device = 0, self.teacher_accuracy.device
        for batch in data.evaluation_batches():
            images, labels = (tensor.to(device) for tensor in batch)
            predictions = teacher(images.to(torch.float32) / 255).argmax(1)
            self._teacher_predictions.append(predictions)
            self.teacher_accuracy.update(predictions, labels)
            count += len(labels)
        accuracy = float(self.teacher_accuracy.compute())
        count = int(distributed.all_reduce_sum(count, device))
        message = f"The teacher is right on {100 * accuracy:.2f} % of {count:,} evaluation images."
        rank_zero_only(log.info)(message)
        if num_classes is not None:
            check_teacher_above_chance(accuracy, count, num_classes)

    def update(
        self, i: int, images: Tensor, labels: Tensor, student: nn.Module, teacher: nn.Module
    ) -> None:
        """Compare the student's predictions for batch `i` with the labels and the teacher's."""
        predictions = student(images).argmax(1)
        if self._teacher_predictions:
            teacher_predictions = self._teacher_predictions[i]
            self.student_accuracy.update(predictions, labels)
        else:
            teacher_predictions = teacher(images).argmax(1)
        self.agreement.update(predictions, teacher_predictions)

    def compute(self) -> dict[str, float]:
        """Fractions in [0, 1] by name; forgets the student's, and keeps the teacher's."""
        values = {"agreement": float(self.agreement.compute())}
        if self._teacher_predictions:
            values["student_accuracy"] = float(self.student_accuracy.compute())
            values["teacher_accuracy"] = float(self.teacher_accuracy.compute())
        self.agreement.reset()
        self.student_accuracy.reset()
        return values


def check_teacher_above_chance(accuracy: float, images: int, num_classes: int) -> None:
    """Raise an InputError if guessing would do as well as this teacher.

    That is: if its accuracy on this number of images is at most two standard deviations of a
    guesser's, or two points, above one in `num_classes`. One that is always right passes, though
    a guesser may be so on a handful of images.

    Example:
        >>> check_teacher_above_chance(0.93, images=10_000, num_classes=10)
    """
    chance = 1 / num_classes
    deviation = math.sqrt(chance * (1 - chance) / images)
    if accuracy < 1 and accuracy <= chance + max(0.02, 2 * deviation):
        raise InputError(
            f"The teacher is right on {100 * accuracy:.1f} % of {images:,} evaluation images, and "
            f"guessing among {num_classes} classes would give {100 * chance:.1f} %. Most often its "
            "normalization (mean, std), its weights or the order of the labels differ from what it "
            "was trained with; check_teacher=False accepts it all the same."
        )
