"""What the methods without a memory share: generator and student take turns on fresh images."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

from nayer_pl.bank.plan import DistillationBatch
from nayer_pl.distillation.base import DataFreeDistillation
from nayer_pl.distillation.descent import descend
from nayer_pl.errors import require, require_not_negative
from nayer_pl.networks.classifier import Classifier
from nayer_pl.synthesis.generators import Generator


class OnlineDistillation(DataFreeDistillation):
    """A generator of noise, trained all along; every step of the student sees images of its own.

    The plan should be interleaved (`Plan.interleaved`): a round is the generator's turn. The bank
    serves pictures and counts only, and one round is enough for it.

    Args:
        teacher, student: see `DataFreeDistillation`, which also takes `distillation`.
        image_shape: (C, H, W) of the images to make.
        noise_features: size of z ~ N(0, 1).
        generator: features, image_shape -> generator.
        generator_steps: in a turn, each with a z of its own.
        generator_lr, generator_betas: of its Adam, which goes on from turn to turn. The learning
            rate falls as the student's does.
        distillation: temperature, learning rate, seed and so on of `DataFreeDistillation`.
    """

    wants_labels = False

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        image_shape: Sequence[int],
        noise_features: int = 100,
        generator: Callable[[int, Sequence[int]], nn.Module] = Generator,
        generator_steps: int = 1,
        generator_lr: float = 1e-3,
        generator_betas: tuple[float, float] = (0.9, 0.999),
        **distillation: Any,
    ) -> None:
        super().__init__(teacher, student, **distillation)
        require(generator_steps >= 1, "model.generator_steps", "at least 1", generator_steps)
        require_not_negative(generator_lr=generator_lr)
        self.noise_features, self.generator_steps = noise_features, generator_steps
        self.generator_lr = generator_lr
        self.generator_betas = (generator_betas[0], generator_betas[1])
        self.generator = generator(noise_features, image_shape)

    @abstractmethod
    def judge(self, images: Tensor) -> dict[str, Tensor]:
        """What the generator minimizes ("loss") and its terms, scalars, for images [B, C, H, W]."""

    def make(self, count: int) -> Tensor:
        """Fresh images in [0, 1], [count, C, H, W]."""
        z = torch.randn(count, self.noise_features, device=self.device, generator=self.rng)
        return self.generator(z)

    def synthesize(self, targets: Tensor, warm_up: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's turn; of the labels only the number counts."""
        optimizer = self.all_optimizers()[1]
        return descend(
            self, optimizer, self.generator_steps, lambda: self.make(len(targets)), self.judge
        )

    @torch.no_grad()
    def images_to_learn(self, batch: DistillationBatch) -> Tensor:
        """As many fresh images as the batch has."""
        return self.make(len(batch.images))

    def synthesis_optimizers(self) -> list[Optimizer]:
        """Adam of the generator."""
        betas = self.generator_betas
        return [Adam(self.generator.parameters(), lr=self.generator_lr, betas=betas, fused=True)]

    def on_train_epoch_start(self) -> None:
        """Let the generator's learning rate fall with the student's."""
        students, own = self.trainer.optimizers[:2]
        share = students.param_groups[0]["lr"] / self.learning_rate
        own.param_groups[0]["lr"] = self.generator_lr * share


def stepping_down(
    optimizer: Optimizer, epochs: int, milestones: Sequence[float], decay: float
) -> LRScheduler:
    """A learning rate that is multiplied by `decay` after these shares of the epochs."""
    return MultiStepLR(optimizer, [round(share * epochs) for share in milestones], decay)
