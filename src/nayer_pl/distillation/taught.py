"""The teacher of a method: frozen, and asked through a faster copy while a trainer runs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning import LightningModule
from torch import Tensor

from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.folding import folded
from nayer_pl.networks.pretrained import check_no_shared_weights
from nayer_pl.runtime.precision import fused_dtype

if TYPE_CHECKING:
    from typing_extensions import Self


class Taught(LightningModule):
    """Has a teacher beside the student; it never learns, and no checkpoint needs it."""

    teacher: Classifier

    def learn_from(self, teacher: Classifier, student: Classifier) -> None:
        """Take a teacher, and its normalization for a student that has none.

        Raises:
            InputError: the two share weights.
        """
        check_no_shared_weights(teacher, student)
        if not student.has_normalization:
            student.copy_normalization(teacher)
        self.strict_loading = False  # checkpoints leave the teacher out
        self.teacher = teacher.freeze()

    def ask_teacher(self, images: Tensor) -> Tensor:
        """The teacher's logits; while a trainer runs, from its folded copy."""
        return self.teacher(images)

    def fold_teacher(self, image_shape: Sequence[int]) -> None:
        """Ask a copy from here on that answers the same, faster."""
        dtype = fused_dtype(self.trainer.precision)
        # A bound method: as an attribute, a copy of the teacher would be saved and moved about.
        self.ask_teacher = folded(self.teacher, image_shape, dtype).forward  # type: ignore[method-assign]

    def teardown(self, stage: str) -> None:
        """The folded copy does not follow this module to another device."""
        self.__dict__.pop("ask_teacher", None)

    def train(self, mode: bool = True) -> "Self":
        """As `nn.Module.train`, but the teacher's BatchNorm never leaves evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self
