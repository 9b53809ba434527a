"""How good is the student: against real labels, and against its teacher."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, SumMetric

from nayer_pl.errors import InputError
from nayer_pl.networks.classifier import Classifier


class Evaluation(nn.Module):
    """Counts right answers, over all ranks; the teacher is asked about every image only once.

    Without real images (`ask` was never called) there are no accuracies, only the agreement.
    """

    def __init__(self) -> None:
        super().__init__()
        self.teacher_accuracy, self.student_accuracy = MeanMetric(), MeanMetric()
        self.agreement = MeanMetric()
        self._teacher_answers: list[Tensor] = []

    @property
    def asked(self) -> bool:
        """Whether the teacher was."""
        return bool(self._teacher_answers)

    @torch.no_grad()
    def ask(
        self, teacher: Classifier, batches: Iterable[list[Tensor]], prepare: Callable[..., list]
    ) -> tuple[float, int]:
        """Keep the teacher's answers to these batches; `prepare` puts one on the device.

        Returns:
            Its accuracy in [0, 1], and the number of images, of all ranks together.
        """
        self._teacher_answers.clear()
        self.teacher_accuracy.reset()
        images_seen = SumMetric().to(self.teacher_accuracy.device)
        for batch in batches:
            images, labels = prepare(batch)
            answer = teacher(images).argmax(1)
            self._teacher_answers.append(answer)
            self.teacher_accuracy.update((answer == labels).float())
            images_seen.update(len(labels))
        return float(self.teacher_accuracy.compute()), int(images_seen.compute())

    def update(
        self, i: int, images: Tensor, labels: Tensor, student: Classifier, teacher: Classifier
    ) -> None:
        """Compare the student's answers to batch `i` with the labels and with the teacher's."""
        answer = student(images).argmax(1)
        if self.asked:
            teacher_answer = self._teacher_answers[i]
            self.student_accuracy.update((answer == labels).float())
        else:
            teacher_answer = teacher(images).argmax(1)
        self.agreement.update((answer == teacher_answer).float())

    def compute(self) -> dict[str, float]:
        """Fractions in [0, 1] by name; starts anew, but for the teacher's."""
        values = {"agreement": float(self.agreement.compute())}
        if self.asked:
            values["student_accuracy"] = float(self.student_accuracy.compute())
            values["teacher_accuracy"] = float(self.teacher_accuracy.compute())
        self.agreement.reset()
        self.student_accuracy.reset()
        return values


def check_teacher_above_chance(accuracy: float, images: int, num_classes: int) -> None:
    """Raise an InputError if guessing would do as well as this teacher.

    That is: if its accuracy on so many images is at most two standard deviations of a guesser's,
    or two points, above one in `num_classes`. One that is always right passes, though a guesser
    may be so on a handful of images.

    >>> check_teacher_above_chance(0.93, images=10_000, num_classes=10)
    """
    chance = 1 / num_classes
    deviation = math.sqrt(chance * (1 - chance) / images)
    if accuracy < 1 and accuracy <= chance + max(0.02, 2 * deviation):
        raise InputError(
            f"The teacher is right on {100 * accuracy:.1f} % of {images:,} evaluation images, and "
            f"guessing among {num_classes} classes would give {100 * chance:.1f} %. Most often its "
            "normalization (teacher.mean, teacher.std), its weights (teacher.weights) or the order "
            "of the labels differ from what it was trained with; model.check_teacher=false goes on "
            "all the same."
        )
