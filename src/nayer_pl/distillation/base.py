"""A teacher, a student that learns from it, and how the student is evaluated and saved."""

from collections.abc import Callable, Sequence
from typing import Any

from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from nayer_pl.distillation import reporting
from nayer_pl.distillation.evaluator import Evaluator
from nayer_pl.distillation.rank_state import RankState
from nayer_pl.distillation.student import COSINE, MOMENTUM_SGD, StudentUpdater
from nayer_pl.errors import InputError
from nayer_pl.losses.distillation import KLDivergence, StudentLoss
from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.pretrained import check_no_shared_weights
from nayer_pl.networks.teacher import FrozenTeacher
from nayer_pl.runtime import distributed


class TeacherStudentModule(LightningModule):
    """Evaluates a student after every epoch and keeps its teacher frozen and out of checkpoints.

    Args:
        teacher: Frozen; images in [0, 1], [B, C, H, W] -> logits [B, num_classes].
        student: Classifier with as many outputs, which learns.
        student_loss: (student logits, teacher logits, labels) -> scalar that the student minimizes.
        optimizer: Parameters -> optimizer of the student; a partial of one of torch's classes.
        scheduler: Optimizer -> its learning-rate schedule; likewise.
        check_teacher: Stop before any training if the teacher is no better than guessing.

    Raises:
        InputError: Teacher and student share weights, or the optimizer cannot be built.

    Example:
        >>> from torch import nn
        >>> teacher = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), [0.3], [0.4])
        >>> student = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
        >>> module = TeacherStudentModule(FrozenTeacher(teacher), student)
        >>> module.student.normalization == teacher.normalization  # a student sees as its teacher
        True
    """

    student_updates: int
    datamodule: Any  # has `has_real_images` and `evaluation_batches`

    def __init__(
        self,
        teacher: FrozenTeacher,
        student: Classifier,
        student_loss: StudentLoss = KLDivergence(),
        optimizer: Callable[..., Any] = MOMENTUM_SGD,
        scheduler: Callable[..., Any] = COSINE,
        check_teacher: bool = True,
    ) -> None:
        super().__init__()
        check_no_shared_weights(teacher.classifier, student)
        if not student.has_normalization:
            student.copy_normalization(teacher.classifier)
        self.strict_loading = False  # checkpoints leave the teacher out
        self.teacher, self.student = teacher, student
        self.updater = StudentUpdater(student_loss, optimizer, scheduler)
        self.evaluator, self.rank_state = Evaluator(), RankState(self)
        self.check_teacher = check_teacher

    def prepare_networks(self, image_shape: Sequence[int], num_classes: int) -> None:
        """Check both networks for images (C, H, W), and ask the teacher about the real ones.

        Raises:
            InputError: A network does not fit, or the teacher is no better than guessing.
        """
        self.train()  # a trainer leaves every network in the mode that it comes in
        for name, net in (("teacher", self.teacher.classifier), ("student", self.student)):
            outputs = net.num_classes(image_shape)
            if outputs != num_classes:
                raise InputError(
                    f"The {name} has {outputs} outputs, but the data set has {num_classes} "
                    "classes; they must be the same."
                )
        self.student.check_train_forward(image_shape)
        self.teacher.accelerate(image_shape, self.trainer.precision)
        required = num_classes if self.check_teacher else None
        self.evaluator.ask_teacher(self.teacher.classifier, self.datamodule, required)

    def on_validation_start(self) -> None:
        """Evaluate the student that all ranks have in common."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:  # not within a fit, which has asked
            self.evaluator.ask_teacher(self.teacher.classifier, self.datamodule)
        distributed.all_reduce_batchnorm(self.student)

    def validation_step(self, batch: tuple[Tensor, Tensor], i: int) -> None:
        """Compare the student with the labels and with the teacher."""
        self.evaluator.update(i, *batch, self.student, self.teacher.classifier)

    def on_validation_epoch_end(self) -> None:
        """Log fractions in [0, 1]; accuracies only where there are real labels."""
        values = self.evaluator.compute()
        if not self.trainer.sanity_checking:
            reporting.log_evaluation(self, values)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the student and what each rank has to itself; nothing after a step that failed."""
        self.updater.guard.check()
        self.rank_state.save(checkpoint)
        state = checkpoint["state_dict"]
        for key in [key for key in state if not key.startswith("student.")]:
            del state[key]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` added."""
        self.rank_state.load(checkpoint)

    def on_train_start(self) -> None:
        """Restore what building and Lightning's own restoring would overwrite."""
        self.rank_state.finish_loading()

    def teardown(self, stage: str) -> None:
        """Forget the teacher's faster copy, which does not follow to another device."""
        self.teacher.decelerate()

    @property
    def exported_classifier(self) -> Classifier:
        """The network that the run is for."""
        return self.student
