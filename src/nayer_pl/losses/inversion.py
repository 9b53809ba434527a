"""The loss of the methods that invert the teacher: label, statistics and adversary."""

from collections.abc import Callable
from typing import Annotated

from annotated_types import Ge, Lt
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from nayer_pl.losses.batchnorm import BatchNormMatching
from nayer_pl.losses.functional import adversarial_loss, class_loss
from nayer_pl.networks.teacher import FrozenTeacher
from nayer_pl.runtime.options import checked


class InversionLoss(nn.Module):
    """The teacher should see the target label, and its BatchNorms the statistics that they know.

    L = bn_weight L_bn + ce_weight L_ce + adv_weight L_adv (NAYER, equation 5).

    Args:
        teacher: Its BatchNorms are matched.
        bn_weight: Weight of the statistics term; 0 leaves it out.
        ce_weight: Weight of the label term.
        adv_weight: Weight of the adversarial term, which is left out in warm-up.
        bn_momentum: Weight of earlier rounds in the statistics term.
        adversary: (student logits, teacher logits) -> the adversarial term, a scalar.

    Raises:
        InputError: `bn_weight` is above 0, and the teacher has no statistics to match.
    """

    @checked
    def __init__(
        self,
        teacher: FrozenTeacher,
        bn_weight: NonNegativeFloat,
        ce_weight: NonNegativeFloat,
        adv_weight: NonNegativeFloat,
        bn_momentum: Annotated[float, Ge(0), Lt(1)],
        adversary: Callable[[Tensor, Tensor], Tensor] = adversarial_loss,
    ) -> None:
        super().__init__()
        self.bn_weight, self.ce_weight, self.adv_weight = bn_weight, ce_weight, adv_weight
        self.adversary = adversary
        self.batchnorm = BatchNormMatching(teacher.norms, bn_momentum)
        if bn_weight:
            teacher.require_norms(optional=True)

    def forward(
        self,
        images: Tensor,
        targets: Tensor,
        teacher: FrozenTeacher,
        student: nn.Module,
        warm_up: bool,
    ) -> dict[str, Tensor]:
        """L ("loss") and its terms, scalars, of images [B, C, H, W] and target labels [B]."""
        logits, statistics = teacher.observe(images)
        terms = {"ce": class_loss(logits, targets)}
        loss = self.ce_weight * terms["ce"]
        if self.bn_weight:
            terms["bn"] = self.batchnorm(statistics)
            loss = loss + self.bn_weight * terms["bn"]
        if self.adv_weight and not warm_up:
            terms["adv"] = self.adversary(student(images), logits)
            loss = loss + self.adv_weight * terms["adv"]
        return {"loss": loss, **terms}
