"""A generator can stop making anything to learn from; that should be seen while it happens."""

import logging

from torch import Tensor

log = logging.getLogger(__name__)

ALIKE = 0.02  # mean standard deviation of a pixel over a round, in [0, 1]: five of 255 steps
PATIENCE = 3  # rounds in a row


class CollapseMonitor:
    """Warns, once for each kind, when images are all alike or their labels are not seen in them.

    Args:
        rate: the option that is the learning rate of what makes the images.
    """

    def __init__(self, rate: str) -> None:
        self.rate = rate
        self._in_a_row = {"alike": 0, "labels": 0}

    def update(self, images: Tensor, agreement: float | None, num_classes: int) -> None:
        """Look at one round.

        Args:
            images: of the round, in [0, 1], [B, C, H, W].
            agreement: share of them in which the teacher sees the wanted label; None if none was
                wanted.
            num_classes: so that a guesser's share is known.
        """
        spread = float(images.float().std(dim=0, correction=0).mean())
        if len(images) > 1 and self._again("alike", spread < ALIKE):
            log.warning(
                "Synthesis has collapsed: in the last %s rounds that were looked at, all images "
                "were nearly the same (a pixel varies by %.3f of 1). Lower %s, or let a round take "
                "fewer steps.",
                PATIENCE, spread, self.rate,
            )  # fmt: skip
        if agreement is None:
            return
        chance = 1 / num_classes
        if self._again("labels", agreement <= 1.2 * chance):
            log.warning(
                "The teacher does not see the wanted labels: in the last %s rounds in %.0f %% of "
                "the images, and guessing would give %.0f %%. Raise model.ce_weight against the "
                "other weights, or take more steps in a round; and see that class names, "
                "teacher.mean and teacher.std are the teacher's.",
                PATIENCE, 100 * agreement, 100 * chance,
            )  # fmt: skip

    def _again(self, kind: str, bad: bool) -> bool:
        self._in_a_row[kind] = self._in_a_row[kind] + 1 if bad else 0
        return self._in_a_row[kind] == PATIENCE
