"""FastDFKD: Up to 100x Faster Data-free Knowledge Distillation.

Fang et al., AAAI 2022, arXiv 2112.06253.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Lt
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from nayer_pl.distillation.module import DataFreeDistillation
from nayer_pl.distillation.student import COSINE, MOMENTUM_SGD
from nayer_pl.losses.distillation import KLDivergence
from nayer_pl.losses.inversion import InversionLoss
from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.teacher import FrozenTeacher
from nayer_pl.runtime.options import checked
from nayer_pl.synthesis.generators import Generator
from nayer_pl.synthesis.synthesizer import Synthesizer

MetaUpdate = Literal["fomaml", "reptile"]


class FastDFKD(DataFreeDistillation):
    """A meta generator, from which a few steps lead to the images of any round.

    All images of a data set have features in common. The meta generator learns them over rounds
    (outer update), so that in each round a copy of it and fresh noise z need only k steps (inner
    loop) to make that round's images.

    The loss, the outer update and its constants are those of the authors' code for CIFAR (fast_meta
    in zju-vipa/Fast-Datafree). Its "fomaml" adds up the gradients of all k steps, where first-order
    MAML (Finn et al., 2017, arXiv 1703.03400) takes the one at the adapted weights alone; and only
    weights are meta-learned, while z is drawn for every round. Other than there, every class is
    wanted equally often in a round.

    Args:
        teacher: Trained classifier; frozen here.
        student: Classifier with as many outputs.
        image_shape: (C, H, W) of the images to make.
        noise_features: Size of z ~ N(0, 1).
        generator: (features, image_shape) -> generator.
        generator_steps: k, inner steps in a round; the paper's Fast-k.
        generator_lr: Learning rate of the copy's weights, in an Adam that starts afresh in every
            round.
        latent_lr: Learning rate of z, in the same Adam.
        generator_betas: Betas of both Adams, inner and outer.
        meta: Direction of the outer update: "fomaml", the sum of the k gradients, or "reptile"
            (Nichol et al., 2018, arXiv 1803.02999), from the meta weights to the adapted ones.
        meta_lr: Learning rate of the outer Adam, which continues from round to round; None for
            k * generator_lr.
        first_layer_reset: The distillation epoch, from 1, that begins with a new first layer (and
            its BatchNorm) of the meta generator; None for never.
        bn_weight: Weight of the BatchNorm statistics term.
        ce_weight: Weight of the label term.
        adv_weight: Weight of the adversarial term, which is left out in warm-up.
        bn_momentum: Weight of earlier rounds in the statistics term.
        augmentation: Of the images before teacher and student judge them; None for none.
        round_size: Most labels in one round.
        student_loss: (student logits, teacher logits, labels) -> scalar.
        optimizer: Parameters -> optimizer of the student.
        scheduler: Optimizer -> its learning-rate schedule over distillation epochs.
        seed: Seed of this rank's noise.
        check_teacher: Stop before any synthesis if the teacher is no better than guessing.
        compile: Let `torch.compile` fuse the steps; the first ones then take a minute or more.

    Raises:
        InputError: An option is out of range, or the teacher has no statistics to match.

    Example:
        >>> from nayer_pl.networks import create_model
        >>> teacher = Classifier(create_model("wrn16_1", num_classes=3), mean=[0.5], std=[0.2])
        >>> student = Classifier(create_model("wrn16_1", num_classes=3))
        >>> FastDFKD(teacher, student, (3, 32, 32), generator_steps=5).synthesizer.steps
        5
    """

    @checked
    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        image_shape: Sequence[int],
        noise_features: PositiveInt = 256,
        generator: Callable[..., nn.Module] = Generator,
        generator_steps: PositiveInt = 10,
        generator_lr: NonNegativeFloat = 2e-3,
        latent_lr: NonNegativeFloat = 0.01,
        generator_betas: tuple[float, float] = (0.5, 0.999),
        meta: MetaUpdate = "fomaml",
        meta_lr: NonNegativeFloat | None = None,
        first_layer_reset: PositiveInt | None = None,
        bn_weight: NonNegativeFloat = 10.0,
        ce_weight: NonNegativeFloat = 0.5,
        adv_weight: NonNegativeFloat = 1.33,
        bn_momentum: Annotated[float, Ge(0), Lt(1)] = 0.9,
        augmentation: Callable[..., Any] | None = None,
        round_size: PositiveInt = 256,
        student_loss: Callable[..., Any] = KLDivergence(),
        optimizer: Callable[..., Any] = MOMENTUM_SGD,
        scheduler: Callable[..., Any] = COSINE,
        seed: int = 0,
        check_teacher: bool = True,
        compile: bool = False,
    ) -> None:
        frozen_teacher = FrozenTeacher(teacher)
        synthesizer = MetaSynthesizer(
            generator(noise_features, image_shape),
            nn.Embedding(round_size, noise_features),  # z of every image of a round
            InversionLoss(frozen_teacher, bn_weight, ce_weight, adv_weight, bn_momentum),
            generator_steps,
            (generator_lr, latent_lr),
            generator_betas,
            meta,
            generator_steps * generator_lr if meta_lr is None else meta_lr,
            first_layer_reset,
            augmentation,
        )
        common = student_loss, optimizer, scheduler, seed, check_teacher, compile
        super().__init__(frozen_teacher, student, synthesizer, *common)


class MetaSynthesizer(Synthesizer):
    """A copy of a meta generator is adapted in every round, and the meta generator learns from it.

    `latents` holds z of every image of a round, [round_size, features]; `lrs` are the learning
    rates of the copy's weights and of z.

    Example:
        >>> parts = Generator(6, (1, 8, 8), width=4), nn.Embedding(4, 6), lambda *_: {}
        >>> numbers = 10, (2e-3, 0.01), (0.5, 0.999), "fomaml", 0.02
        >>> MetaSynthesizer(*parts, *numbers).generate(torch.tensor([0, 1, 2])).shape
        torch.Size([3, 1, 8, 8])
    """

    transient = ("adapted", "latents")

    def __init__(
        self,
        generator: nn.Module,
        latents: nn.Embedding,
        criterion: InversionLoss,
        steps: int,
        lrs: tuple[float, float],
        betas: tuple[float, float],
        meta: MetaUpdate,
        meta_lr: float,
        first_layer_reset: int | None = None,
        augmentation: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(criterion, steps, augmentation, latents.num_embeddings)
        self.generator, self.latents = generator, latents
        self.adapted = copy.deepcopy(generator)
        self.lrs, self.betas, self.meta_lr = lrs, (betas[0], betas[1]), meta_lr
        self.meta, self.first_layer_reset = meta, first_layer_reset

    def configure_optimizers(self) -> list[Optimizer]:
        """The inner Adam, of the copy and z; the outer one, of the meta generator."""
        groups: list[dict[str, Any]] = [
            {"params": list(self.adapted.parameters())},
            {"params": [self.latents.weight], "lr": self.lrs[1]},
        ]
        inner = Adam(groups, lr=self.lrs[0], betas=self.betas, fused=True)
        if self.meta == "fomaml":
            inner.register_step_pre_hook(lambda *_: self._add_gradients())
        outer = Adam(self.generator.parameters(), lr=self.meta_lr, betas=self.betas, fused=True)
        return [inner, outer]

    def start_epoch(self, epoch: int, warmup_epochs: int, optimizers: Sequence[Optimizer]) -> None:
        """Draw the first layer again, if it is time."""
        if epoch - warmup_epochs + 1 == self.first_layer_reset:
            for kind in (nn.Linear, nn.BatchNorm2d):
                first = next((m for m in self.generator.modules() if isinstance(m, kind)), None)
                if first is not None:
                    first.reset_parameters()

    @torch.no_grad()
    def start_round(self, targets: Tensor, teacher: FrozenTeacher, bank: Any) -> None:
        """Copy the meta generator, and draw z."""
        self.generator.zero_grad()
        self.adapted.load_state_dict(self.generator.state_dict())
        self.latents.weight.normal_(generator=self.rng)

    def generate(self, targets: Tensor) -> Tensor:
        """Images of z; of the labels only the number counts."""
        return self.adapted(self.latents.weight[: len(targets)])

    def finish_round(self, optimizers: Sequence[Any], backward: Callable[[Tensor], None]) -> None:
        """Take the outer step; no round takes over the inner Adam's averages from another."""
        inner, outer = optimizers
        inner.optimizer.state.clear()
        if self.meta == "reptile":
            backward(self._distance())
        outer.step()
        self.criterion.batchnorm.update_average()

    def _add_gradients(self) -> None:
        """Add the copy's gradients to those of the meta generator."""
        for meta, own in zip(self.generator.parameters(), self.adapted.parameters(), strict=True):
            if own.grad is not None:
                meta.grad = own.grad.clone() if meta.grad is None else meta.grad + own.grad

    def _distance(self) -> Tensor:
        """Half of the squared distance to the adapted weights; its gradient is Reptile's."""
        pairs = zip(self.generator.parameters(), self.adapted.parameters(), strict=True)
        return torch.stack([(meta - own.detach()).square().sum() for meta, own in pairs]).sum() / 2

    def compile_steps(self) -> None:
        """The generator's step in two graphs, because crops are drawn between them."""
        self.generate = torch.compile(self.generate, dynamic=False)  # type: ignore[method-assign]
        self.criterion.forward = torch.compile(self.criterion.forward, dynamic=False)
