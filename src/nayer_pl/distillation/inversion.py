"""What the methods share that invert the teacher: wanted labels, its statistics, an opponent."""

from typing import Any

from torch import Tensor

from nayer_pl.distillation.base import DataFreeDistillation
from nayer_pl.errors import InputError, require, require_not_negative
from nayer_pl.losses.batchnorm import BatchNormMatching
from nayer_pl.losses.functional import adversarial_loss, class_loss
from nayer_pl.networks.classifier import Classifier
from nayer_pl.synthesis.augmentation import RandomCropFlip


class InversionDistillation(DataFreeDistillation):
    """The teacher should see the wanted label in an image, and its BatchNorms what they know.

    L = bn_weight L_bn + ce_weight L_ce + adv_weight L_adv (NAYER, equation 5).

    Args:
        teacher, student: see `DataFreeDistillation`, which also takes `distillation`.
        bn_weight, ce_weight, adv_weight: of the three terms; the adversarial one is left out in
            warm-up.
        bn_momentum: weight of the running average in the statistics term.
        round_size: most labels in one round.
        augmentation: of the images before teacher and student see them; None for none.
        distillation: temperature, learning rate, seed and so on of `DataFreeDistillation`.

    Raises:
        InputError: with `bn_weight`, a teacher without statistics to match.
    """

    needs_statistics = False
    """Whether the method asks for them with `bn_weight=0` too."""
    drawn_anew: tuple[str, ...] = ()
    """Parts that every round begins with anew, so that no checkpoint needs them."""

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        bn_weight: float,
        ce_weight: float,
        adv_weight: float,
        bn_momentum: float,
        round_size: int,
        augmentation: RandomCropFlip | None = None,
        **distillation: Any,
    ) -> None:
        super().__init__(teacher, student, **distillation)
        require_not_negative(bn_weight=bn_weight, ce_weight=ce_weight, adv_weight=adv_weight)
        self.bn_weight, self.ce_weight, self.adv_weight = bn_weight, ce_weight, adv_weight
        self.round_size, self.augmentation = round_size, augmentation
        self.statistics = BatchNormMatching(teacher, bn_momentum)
        if bn_weight or self.needs_statistics:
            ask_for_statistics(self.statistics, optional=not self.needs_statistics)

    def on_fit_start(self) -> None:
        """Check that the plan's rounds are not larger than this method's."""
        planned = self.datamodule.plan.round_size
        wanted = f"at least plan.round_size, which is {planned}"
        require(self.round_size >= planned, "model.round_size", wanted, self.round_size)
        super().on_fit_start()

    def own_state(self) -> dict[str, Any]:
        """Without what is drawn anew."""
        state = super().own_state()
        parts = state["parts"].items()
        state["parts"] = {n: part for n, part in parts if n.split(".")[0] not in self.drawn_anew}
        return state

    def augment(self, images: Tensor) -> Tensor:
        """Crop and mirror with this rank's own noise, if that is wanted."""
        return images if self.augmentation is None else self.augmentation(images, self.rng)

    def invert(self, images: Tensor, targets: Tensor, warm_up: bool) -> dict[str, Tensor]:
        """L and its terms, for images [B, C, H, W] and wanted labels [B]."""
        teacher_logits = self.statistics(images)
        terms = {"ce": class_loss(teacher_logits, targets)}
        loss = self.ce_weight * terms["ce"]
        if self.bn_weight:
            terms["bn"] = self.statistics.loss()
            loss = loss + self.bn_weight * terms["bn"]
        if self.adv_weight and not warm_up:
            terms["adv"] = self.oppose(self.student(images), teacher_logits)
            loss = loss + self.adv_weight * terms["adv"]
        return {"loss": loss, **terms}

    def oppose(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """L_adv: low where the student has something to learn; a scalar."""
        return adversarial_loss(student_logits, teacher_logits)


def ask_for_statistics(statistics: BatchNormMatching, optional: bool = False) -> None:
    """Raise an InputError if the teacher has none; `optional` if the method can go on without."""
    if not statistics.norms:
        without = (
            "; or set model.bn_weight=0 if this one can go on without the term (expect a weaker "
            "student)"
        )
        raise InputError(
            "The teacher has no BatchNorm2d with running statistics, so there is nothing for the "
            "statistics term to match; choose a method that does without it: model=dfad works with "
            "every teacher, model=dafl with one that ends in a linear layer, model=zskt with one "
            f"that has feature maps{without if optional else ''}."
        )
