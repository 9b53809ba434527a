"""DeepInversion: Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion.

Yin et al., CVPR 2020, arXiv 1912.08795.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from nayer_pl.distillation.descent import descend
from nayer_pl.distillation.inversion import InversionDistillation
from nayer_pl.errors import require, require_not_negative
from nayer_pl.networks.classifier import Classifier


class DeepInversion(InversionDistillation):
    """No generator: the pixels themselves are optimized, from noise.

    The teacher should see the wanted label and its BatchNorms the statistics that they know, in
    images that are smooth (section 3.2). With `adv_weight` it is Adaptive DeepInversion (section
    3.3): teacher and student should also disagree.

    Pixels are held in the teacher's normalized units, for which the published step sizes and
    weights are meant. They start as N(0, 1) in every round, and before each step they are clipped
    to what an image in [0, 1] can be, as the authors' code does for ImageNet (for CIFAR-10 it does
    not). In each step the judges see them rolled by a few pixels, and mirrored or not.

    Paper and published code (NVlabs/DeepInversion, cifar10) differ. The priors are norms of the
    whole batch, as in the code. The competition is the paper's Jensen-Shannon divergence; the code
    takes its Kullback-Leibler divergences the other way round, of probabilities that it keeps
    between 0.01 and 0.99. The images of the best step are kept; what the code keeps under that
    name are those of the last one.

    Args:
        teacher, student: see `InversionDistillation`, which also takes `inversion`.
        image_shape: (C, H, W) of the images to make.
        image_steps: optimization steps in a round.
        image_lr, image_betas: of the Adam of the pixels, in normalized units; it starts afresh in
            every round.
        jitter: largest roll in pixels, in each direction.
        flip: mirror the batch left and right in half of the steps; wrong for digits.
        ce_weight: of the label term.
        tv_weight, l2_weight: of the two image priors.
        bn_weight: of the statistics term.
        adv_weight: of the competition, which is left out in warm-up; 0 for plain DeepInversion.
        adv_temperature: of the competition.
        bn_momentum: weight of earlier rounds in the statistics term; none in the paper.
        round_size: most labels in one round.
        inversion: temperature, learning rate, seed and so on.

    Raises:
        InputError: a teacher without statistics to match, or a number that makes no sense.
    """

    synthesis_rate = "model.image_lr"

    drawn_anew = ("pixels",)

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        image_shape: Sequence[int],
        image_steps: int = 2000,
        image_lr: float = 0.05,
        image_betas: tuple[float, float] = (0.9, 0.999),
        jitter: int = 2,
        flip: bool = True,
        ce_weight: float = 1.0,
        tv_weight: float = 2.5e-5,
        l2_weight: float = 3e-8,
        bn_weight: float = 10.0,
        adv_weight: float = 10.0,
        adv_temperature: float = 3.0,
        bn_momentum: float = 0.0,
        round_size: int = 256,
        **inversion: Any,
    ) -> None:
        super().__init__(
            teacher, student, bn_weight, ce_weight, adv_weight, bn_momentum, round_size, **inversion
        )
        require(
            self.augmentation is None, "augmentation", "null: jitter and flip are its own", "given"
        )
        require(image_steps >= 1, "model.image_steps", "at least 1", image_steps)
        require_not_negative(tv_weight=tv_weight, l2_weight=l2_weight)
        require(image_lr > 0, "model.image_lr", "above 0", image_lr)
        require(jitter >= 0, "model.jitter", "at least 0 pixels", jitter)
        require(adv_temperature > 0, "model.adv_temperature", "above 0", adv_temperature)
        self.image_steps, self.image_lr = image_steps, image_lr
        self.image_betas = (image_betas[0], image_betas[1])
        self.jitter, self.flip = jitter, flip
        self.tv_weight, self.l2_weight = tv_weight, l2_weight
        self.adv_temperature = adv_temperature
        self.pixels = nn.Parameter(torch.zeros(round_size, *image_shape))

    def synthesis_optimizers(self) -> list[Optimizer]:
        """Adam of the pixels."""
        return [Adam([self.pixels], lr=self.image_lr, betas=self.image_betas, fused=True)]

    def steps_to_compile(self) -> list[str]:
        """What follows the random roll."""
        return [*super().steps_to_compile(), "_judge"]

    def synthesize(self, targets: Tensor, warm_up: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """One round: from noise to the images of the step with the lowest loss."""
        optimizer = self.all_optimizers()[1]
        with torch.no_grad():
            self.pixels.normal_(generator=self.rng)

        def judge(images: Tensor) -> dict[str, Tensor]:
            rolled = roll_and_mirror(images, self.jitter, self.flip, self.rng)
            return self._judge(rolled, targets, warm_up)

        images, history = descend(
            self, optimizer, self.image_steps, lambda: self._make(len(targets)), judge
        )
        optimizer.optimizer.state.clear()  # no round takes over Adam's averages from another
        self.statistics.finish_round()
        return images.clamp(0, 1), history  # rounding may lead just outside

    def _make(self, count: int) -> Tensor:
        mean, std = self._normalisation()
        with torch.no_grad():
            self.pixels.clamp_((0 - mean) / std, (1 - mean) / std)
        return self.pixels[:count] * std + mean

    def _normalisation(self) -> tuple[Tensor, Tensor]:
        assert self.teacher.mean is not None
        assert self.teacher.std is not None
        return self.teacher.mean, self.teacher.std

    def _judge(self, images: Tensor, targets: Tensor, warm_up: bool) -> dict[str, Tensor]:
        """The weighted sum of all terms, and the terms."""
        mean, std = self._normalisation()
        pixels, terms = (images - mean) / std, self.invert(images, targets, warm_up)
        terms |= {"tv": total_variation(pixels), "l2": torch.linalg.vector_norm(pixels)}
        priors = self.tv_weight * terms["tv"] + self.l2_weight * terms["l2"]
        return {**terms, "loss": terms["loss"] + priors}

    def oppose(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The competition: one less the Jensen-Shannon divergence (section 3.3)."""
        return 1 - jensen_shannon(student_logits, teacher_logits, self.adv_temperature).mean()


def total_variation(images: Tensor) -> Tensor:
    """How rough images [B, C, H, W] are; a scalar.

    Differences between neighbours in four directions (a row, a column, both diagonals): the sum of
    their Euclidean norms, each over the whole batch.
    """
    right = images[..., 1:] - images[..., :-1]
    down = images[..., 1:, :] - images[..., :-1, :]
    falling = images[..., 1:, 1:] - images[..., :-1, :-1]
    rising = images[..., :-1, 1:] - images[..., 1:, :-1]
    norms = [torch.linalg.vector_norm(each) for each in (right, down, falling, rising)]
    return torch.stack(norms).sum()


def jensen_shannon(first_logits: Tensor, second_logits: Tensor, temperature: float) -> Tensor:
    """Jensen-Shannon divergence of each image at `temperature`, in nats, 0 to log 2: [B]."""
    first = F.log_softmax(first_logits / temperature, dim=1)
    second = F.log_softmax(second_logits / temperature, dim=1)
    middle = torch.logaddexp(first, second) - math.log(2)
    both = first.exp() * (first - middle) + second.exp() * (second - middle)
    return both.sum(1) / 2


def roll_and_mirror(images: Tensor, limit: int, flip: bool, rng: torch.Generator) -> Tensor:
    """Roll all images by the same random shift, and mirror all or none of them.

    Args:
        images: [B, C, H, W].
        limit: largest shift in pixels, in each direction.
        flip: whether they may be mirrored left and right, with probability 1/2.
        rng: on the images' device.
    """
    rows, columns = (torch.arange(size, device=images.device) for size in images.shape[2:])
    # Shifts stay on the device: reading them would wait for it at every step.
    shifts = torch.randint(-limit, limit + 1, (2,), device=images.device, generator=rng)
    rows, columns = (rows - shifts[0]) % len(rows), (columns - shifts[1]) % len(columns)
    if flip:
        mirrored = torch.rand((), device=images.device, generator=rng) < 0.5
        columns = torch.where(mirrored, columns.flip(0), columns)
    return images.index_select(2, rows).index_select(3, columns)
