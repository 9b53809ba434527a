"""How good the student is: against real labels, and against its teacher."""

import logging
import math
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassAccuracy

from nayer_pl.errors import InputError

log = logging.getLogger(__name__)


def _accuracy() -> MulticlassAccuracy:
    return MulticlassAccuracy(average="micro", validate_args=False)


class Evaluator(nn.Module):
    """Counts right answers over all ranks; the teacher is asked about every image only once.

    Without real images (`ask_teacher` found none) there are no accuracies,
    only the agreement of student and teacher.

    Example:
        >>> evaluator = Evaluator()
        >>> network = nn.Linear(2, 2)
        >>> evaluator.update(0, torch.rand(4, 2), torch.zeros(4), network, teacher=network)
        >>> evaluator.compute()
        {'agreement': 1.0}
    """

    def __init__(self) -> None:
        super().__init__()
        self.teacher_accuracy, self.student_accuracy = _accuracy(), _accuracy()
        self.agreement = _accuracy()
        self._teacher_predictions: list[Tensor] = []

    @property
    def has_teacher_predictions(self) -> bool:
        """Whether the teacher was asked about the evaluation images."""
        return bool(self._teacher_predictions)

    @torch.no_grad()
    def ask_teacher(
        self, teacher: nn.Module, data: Any, device: torch.device, num_classes: int | None = None
    ) -> None:
        """Keep the teacher's predictions for the real evaluation images, and log its accuracy.

        Args:
            teacher: Images in [0, 1] -> logits.
            data: A data module; nothing happens if it has no real images.
            device: Where the teacher is.
            num_classes: Raise if the teacher is no better than guessing among them; None accepts
                every teacher.

        Raises:
            InputError: See `check_teacher_above_chance`.
        """
        if not data.has_real_images:
            return
        self._teacher_predictions.clear()
        self.teacher_accuracy.reset()
        count = SumMetric().to(self.teacher_accuracy.device)
        for batch in data.evaluation_batches():
            images, labels = (tensor.to(device) for tensor in batch)
            predictions = teacher(images.to(torch.float32) / 255).argmax(1)
            self._teacher_predictions.append(predictions)
            self.teacher_accuracy.update(predictions, labels)
            count.update(len(labels))
        accuracy, images_seen = float(self.teacher_accuracy.compute()), int(count.compute())
        rank_zero_only(log.info)(
            "The teacher is right on %.2f %% of %s evaluation images.",
            100 * accuracy, f"{images_seen:,}",
        )  # fmt: skip
        if num_classes is not None:
            check_teacher_above_chance(accuracy, images_seen, num_classes)

    def update(
        self, i: int, images: Tensor, labels: Tensor, student: nn.Module, teacher: nn.Module
    ) -> None:
        """Compare the student's predictions for batch `i` with the labels and the teacher's."""
        predictions = student(images).argmax(1)
        if self.has_teacher_predictions:
            teacher_predictions = self._teacher_predictions[i]
            self.student_accuracy.update(predictions, labels)
        else:
            teacher_predictions = teacher(images).argmax(1)
        self.agreement.update(predictions, teacher_predictions)

    def compute(self) -> dict[str, float]:
        """Fractions in [0, 1] by name; forgets the student's, and keeps the teacher's."""
        values = {"agreement": float(self.agreement.compute())}
        if self.has_teacher_predictions:
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
