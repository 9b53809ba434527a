"""When the student is judged, and the teacher before it."""

import logging
from typing import Any

import torch
from torch import Tensor

from nayer_pl.distillation.evaluation import Evaluation, check_teacher_above_chance
from nayer_pl.distillation.reporting import Reporting
from nayer_pl.distillation.taught import Taught
from nayer_pl.networks.classifier import Classifier
from nayer_pl.runtime import distributed

log = logging.getLogger(__name__)


class Judging(Taught, Reporting):
    """Evaluates the student after an epoch, against real labels and against its teacher."""

    student: Classifier
    evaluation: Evaluation
    datamodule: Any  # has `has_real_images` and `evaluation_batches`

    def examine(self, num_classes: int | None = None) -> None:
        """Keep the teacher's answers to the evaluation images, if there are any.

        Args:
            num_classes: raise an InputError if it does no better than a guesser among so many.
        """
        if not self.datamodule.has_real_images:
            return
        batches = self.datamodule.evaluation_batches()
        accuracy, images = self.evaluation.ask(self.teacher, batches, self._prepare)
        if self.trainer.is_global_zero:
            log.info(
                "The teacher is right on %.2f %% of %s evaluation images.",
                100 * accuracy, f"{images:,}",
            )  # fmt: skip
        if num_classes is not None:
            check_teacher_above_chance(accuracy, images, num_classes)

    def _prepare(self, batch: list[Tensor]) -> Any:
        images, labels = (tensor.to(self.device) for tensor in batch)
        return [images.to(torch.float32) / 255, labels]

    def on_validation_start(self) -> None:
        """Judge the student that all ranks have in common."""
        if not self.evaluation.asked:  # trainer.validate, without a fit before it
            self.examine()
        distributed.all_reduce_batchnorm(self.student)

    def validation_step(self, batch: tuple[Tensor, Tensor], i: int) -> None:
        """Compare the student with the labels and with the teacher."""
        self.evaluation.update(i, *batch, self.student, self.teacher)

    def on_validation_epoch_end(self) -> None:
        """Log fractions in [0, 1]; accuracies only where there are real labels."""
        values = self.evaluation.compute()
        if self.trainer.sanity_checking:
            return
        metrics = {f"val/{name}": value for name, value in values.items()}
        self.log_dict(metrics, logger=False)
        short = {"agreement": "agree", "student_accuracy": "acc"}
        self.show({short[name]: value for name, value in values.items() if name in short})
        self.record({**metrics, "epoch": self.current_epoch})
