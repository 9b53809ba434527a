"""FastDFKD: Up to 100x Faster Data-free Knowledge Distillation.

Fang et al., AAAI 2022, arXiv 2112.06253.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from nayer_pl.distillation.descent import descend
from nayer_pl.distillation.inversion import InversionDistillation
from nayer_pl.errors import InputError, require, require_not_negative
from nayer_pl.networks.classifier import Classifier
from nayer_pl.synthesis.generators import Generator

MetaUpdate = Literal["fomaml", "reptile"]


class FastDFKD(InversionDistillation):
    """A meta generator, from which a few steps lead to the images of any round.

    All images of a data set have features in common. The meta generator learns them over rounds
    (outer update), so that in each round a copy of it and fresh noise z need only k steps (inner
    loop) to make that round's images.

    The loss, the outer update and its constants are those of the authors' code for CIFAR (fast_meta
    in zju-vipa/Fast-Datafree). Its "fomaml" adds up the gradients of all k steps, where first-order
    MAML (Finn et al., 2017, arXiv 1703.03400) takes the one at the adapted weights alone; and only
    weights are meta-learned, while z is drawn anew. Other than there, every class is wanted equally
    often in a round.

    Args:
        teacher, student: see `InversionDistillation`, which also takes `inversion`.
        image_shape: (C, H, W) of the images to make.
        noise_features: size of z ~ N(0, 1).
        generator: features, image_shape -> generator.
        generator_steps: k, inner steps in a round; the paper's Fast-k.
        generator_lr, latent_lr: of the copy's weights and of z, in an Adam that starts afresh in
            every round.
        generator_betas: of both Adams, inner and outer.
        meta: the direction of the outer update: "fomaml", the sum of the k gradients, or "reptile"
            (Nichol et al., 2018, arXiv 1803.02999), from the meta weights to the adapted ones.
        meta_lr: of the outer Adam, which goes on from round to round; None for k * generator_lr.
        first_layer_reset: the distillation epoch, from 1, that begins with a new first layer (and
            its BatchNorm) of the meta generator; None for never.
        bn_weight, ce_weight, adv_weight, bn_momentum: see `InversionDistillation`.
        round_size: most labels in one round.
        inversion: augmentation, temperature, learning rate, seed and so on.

    Raises:
        InputError: an unknown `meta`, or a teacher without statistics to match.
    """

    drawn_anew = ("adapted", "latents")

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        image_shape: Sequence[int],
        noise_features: int = 256,
        generator: Callable[[int, Sequence[int]], nn.Module] = Generator,
        generator_steps: int = 10,
        generator_lr: float = 2e-3,
        latent_lr: float = 0.01,
        generator_betas: tuple[float, float] = (0.5, 0.999),
        meta: MetaUpdate = "fomaml",
        meta_lr: float | None = None,
        first_layer_reset: int | None = None,
        bn_weight: float = 10.0,
        ce_weight: float = 0.5,
        adv_weight: float = 1.33,
        bn_momentum: float = 0.9,
        round_size: int = 256,
        **inversion: Any,
    ) -> None:
        super().__init__(
            teacher, student, bn_weight, ce_weight, adv_weight, bn_momentum, round_size, **inversion
        )
        if meta not in get_args(MetaUpdate):
            raise InputError(f"model.meta is fomaml or reptile, not '{meta}'.")
        require(generator_steps >= 1, "model.generator_steps", "at least 1", generator_steps)
        require_not_negative(generator_lr=generator_lr, latent_lr=latent_lr, meta_lr=meta_lr or 0.0)
        self.generator_steps, self.meta = generator_steps, meta
        self.generator_lr, self.latent_lr = generator_lr, latent_lr
        self.generator_betas = (generator_betas[0], generator_betas[1])
        self.meta_lr = generator_steps * generator_lr if meta_lr is None else meta_lr
        self.first_layer_reset = first_layer_reset
        self.generator = generator(noise_features, image_shape)
        self.adapted = copy.deepcopy(self.generator)
        self.latents = nn.Embedding(round_size, noise_features)  # z of every image of a round

    def on_train_epoch_start(self) -> None:
        """Draw the first layer anew, if it is time."""
        plan = self.datamodule.plan
        if self.current_epoch - plan.warmup_epochs + 1 == self.first_layer_reset:
            for kind in (nn.Linear, nn.BatchNorm2d):
                first = next((m for m in self.generator.modules() if isinstance(m, kind)), None)
                if first is not None:
                    first.reset_parameters()

    def synthesis_optimizers(self) -> list[Optimizer]:
        """The inner Adam, of the copy and z; the outer one, of the meta generator."""
        groups: list[dict[str, Any]] = [
            {"params": list(self.adapted.parameters())},
            {"params": [self.latents.weight], "lr": self.latent_lr},
        ]
        inner = Adam(groups, lr=self.generator_lr, betas=self.generator_betas, fused=True)
        if self.meta == "fomaml":
            inner.register_step_pre_hook(lambda *_: self._add_gradients())
        meta = self.generator.parameters()
        return [inner, Adam(meta, lr=self.meta_lr, betas=self.generator_betas, fused=True)]

    def steps_to_compile(self) -> list[str]:
        """The generator's step in two graphs, because crops are drawn between them."""
        return [*super().steps_to_compile(), "_make", "invert"]

    def synthesize(self, targets: Tensor, warm_up: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """One round: k steps of the copy, then one of the meta generator."""
        _, inner, outer = self.all_optimizers()
        outer.zero_grad()
        self._start_round()

        def judge(images: Tensor) -> dict[str, Tensor]:
            return self.invert(self.augment(images), targets, warm_up)

        images, history = descend(
            self, inner, self.generator_steps, lambda: self._make(len(targets)), judge
        )
        inner.optimizer.state.clear()  # no round takes over Adam's averages from another
        if self.meta == "reptile":
            self.manual_backward(self._distance())
        outer.step()
        self.statistics.finish_round()
        return images, history

    @torch.no_grad()
    def _start_round(self) -> None:
        self.adapted.load_state_dict(self.generator.state_dict())
        self.latents.weight.normal_(generator=self.rng)

    def _add_gradients(self) -> None:
        """Add the copy's gradients to those of the meta generator."""
        for meta, own in zip(self.generator.parameters(), self.adapted.parameters(), strict=True):
            if own.grad is not None:
                meta.grad = own.grad.clone() if meta.grad is None else meta.grad + own.grad

    def _distance(self) -> Tensor:
        """Half of the squared distance to the adapted weights; its gradient is Reptile's."""
        pairs = zip(self.generator.parameters(), self.adapted.parameters(), strict=True)
        return torch.stack([(meta - own.detach()).square().sum() for meta, own in pairs]).sum() / 2

    def _make(self, count: int) -> Tensor:
        return self.adapted(self.latents.weight[:count])
