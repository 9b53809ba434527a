"""Synthesis without a memory: generator and student take turns on fresh images."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from nayer_pl.runtime.options import checked
from nayer_pl.synthesis.synthesizer import Synthesizer


class OnlineSynthesizer(Synthesizer):
    """A generator of noise that is trained all along; every student step sees images of its own.

    The plan should be interleaved (`Plan.interleaved`): a round is a turn of the generator. The
    bank serves pictures and counts only, and holds one round.

    Args:
        generator: Noise z [B, noise_features] -> images in [0, 1], [B, C, H, W].
        noise_features: Size of z ~ N(0, 1).
        criterion: Judges images; see `nayer_pl.synthesis.synthesizer.Criterion`.
        steps: Steps in a turn, each with a z of its own.
        lr: Learning rate of its Adam, which continues from turn to turn.
        betas: Betas of that Adam.
        augmentation: Applied to images before they are judged; None for none.
        follow_student: Whether the learning rate falls as the student's does.
        round_size: Most images in a turn; None for no limit.
    """

    class_conditional = False

    @checked
    def __init__(
        self,
        generator: nn.Module,
        noise_features: PositiveInt,
        criterion: Callable[..., Any],
        steps: PositiveInt,
        lr: NonNegativeFloat,
        betas: tuple[float, float],
        augmentation: Callable[..., Any] | None = None,
        follow_student: bool = True,
        round_size: PositiveInt | None = None,
    ) -> None:
        super().__init__(criterion, steps, augmentation, round_size)
        self.generator, self.noise_features = generator, noise_features
        self.lr, self.betas, self.follow_student = lr, betas, follow_student

    def generate(self, targets: Tensor) -> Tensor:
        """Fresh images; of the labels only the number counts."""
        return self.sample(len(targets))

    def sample(self, count: int) -> Tensor:
        """Fresh images in [0, 1], [count, C, H, W]."""
        device = next(self.generator.parameters()).device
        z = torch.randn(count, self.noise_features, device=device, generator=self.rng)
        return self.generator(z)

    def student_images(self, count: int) -> Tensor:
        """Images of a z of their own, without a gradient."""
        with torch.no_grad():
            return self.sample(count)

    def configure_optimizers(self) -> list[Optimizer]:
        """Adam of the generator."""
        betas = (self.betas[0], self.betas[1])
        return [Adam(self.generator.parameters(), lr=self.lr, betas=betas, fused=True)]

    def start_epoch(self, epoch: int, warmup_epochs: int, optimizers: Sequence[Optimizer]) -> None:
        """Let the generator's learning rate fall with the student's."""
        if self.follow_student:
            student = optimizers[0].param_groups[0]
            optimizers[1].param_groups[0]["lr"] = self.lr * (student["lr"] / student["initial_lr"])
