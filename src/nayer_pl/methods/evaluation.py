"""How good is the student: against real labels, and against its teacher."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from nayer_pl.networks.classifier import Classifier


class Evaluation(nn.Module):
    """Counts right answers; the teacher is asked about the evaluation images only once.

    Without real images (`ask` was never called) there are no accuracies, only the agreement.
    """

    def __init__(self) -> None:
        super().__init__()
        self.teacher_accuracy, self.student_accuracy = MeanMetric(), MeanMetric()
        self.agreement = MeanMetric()
        self._teacher_answers: list[Tensor] = []

    @torch.no_grad()
    def ask(
        self, teacher: Classifier, batches: Iterable[list[Tensor]], prepare: Callable[..., list]
    ) -> None:
        """Keep the teacher's answers to these batches; `prepare` puts one on the device."""
        self._teacher_answers.clear()
        self.teacher_accuracy.reset()
        for batch in batches:
            images, labels = prepare(batch)
            answer = teacher(images).argmax(1)
            self._teacher_answers.append(answer)
            self.teacher_accuracy.update((answer == labels).float())

    def update(
        self, i: int, images: Tensor, labels: Tensor, student: Classifier, teacher: Classifier
    ) -> None:
        """Compare the student's answers to batch `i` with the labels and with the teacher's."""
        answer = student(images).argmax(1)
        if self._teacher_answers:
            teacher_answer = self._teacher_answers[i]
            self.student_accuracy.update((answer == labels).float())
        else:
            teacher_answer = teacher(images).argmax(1)
        self.agreement.update((answer == teacher_answer).float())

    def compute(self) -> dict[str, float]:
        """Fractions in [0, 1] by name; starts anew, but for the teacher's."""
        values = {"agreement": float(self.agreement.compute())}
        if self._teacher_answers:
            values["student_accuracy"] = float(self.student_accuracy.compute())
            values["teacher_accuracy"] = float(self.teacher_accuracy.compute())
        self.agreement.reset()
        self.student_accuracy.reset()
        return values
