"""CMI: Contrastive Model Inversion for Data-Free Knowledge Distillation.

Fang et al., IJCAI 2021, arXiv 2105.08584.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Adam, Optimizer

from nayer_pl.distillation.descent import descend
from nayer_pl.distillation.inversion import InversionDistillation
from nayer_pl.errors import require, require_not_negative
from nayer_pl.networks.classifier import Classifier
from nayer_pl.synthesis.contrast import contrastive_loss, random_part
from nayer_pl.synthesis.generators import Generator, reset_parameters_

Layers = Literal["all", "stages"]


class CMI(InversionDistillation):
    """Images must be told apart: from each other and from those of earlier rounds.

    Every round has a generator of its own; its weights and its noise z are optimized together. A
    head on the teacher's features learns to tell images apart: a part of an image should have the
    embedding of the whole image, and not that of any other one. The generator's images are
    optimized for the same (InfoNCE), so they spread.

    As in the published code (zju-vipa/CMI), features are the spatial means of the inputs of the
    teacher's BatchNorms; the head is Linear, ReLU, Linear and the unit sphere, and is trained all
    along; gradients flow through the part only; new and earlier images have equal weight. Other
    than there, the features of earlier images are not stored, but asked of the teacher once a
    round, about images drawn from the memory bank; and every class is wanted equally often.

    Args:
        teacher, student: see `InversionDistillation`, which also takes `inversion`.
        image_shape: (C, H, W) of the images to make.
        noise_features: size of z, which starts as N(0, 1).
        generator: features, image_shape -> generator.
        generator_steps: optimization steps in a round.
        generator_lr: of generator, z and head.
        generator_betas: of the Adam of generator and z, which starts afresh in every round; the
            head's goes on, with PyTorch's betas.
        bn_weight, ce_weight, adv_weight, bn_momentum: see `InversionDistillation`; in the paper
            there is no average over rounds. The part is mirrored if the augmentation does it.
        cr_weight: of the contrastive term; 0 goes without it.
        cr_temperature: of the contrastive term.
        negatives: most earlier images in it.
        layers: BatchNorms that features are taken from: "all", or "stages" for the last one at each
            resolution (the head has as many rows and columns as there are features).
        embedding_features: size of the head's output.
        part: smallest and largest share of an image's area that the part has.
        round_size: most labels in one round.
        inversion: augmentation, temperature, learning rate, seed and so on.

    Raises:
        InputError: a teacher without BatchNorm, or a value that makes no sense.
    """

    needs_statistics = True  # features too come from BatchNorms

    drawn_anew = ("generator", "latents")

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        image_shape: Sequence[int],
        noise_features: int = 256,
        generator: Callable[[int, Sequence[int]], nn.Module] = Generator,
        generator_steps: int = 200,
        generator_lr: float = 1e-3,
        generator_betas: tuple[float, float] = (0.5, 0.999),
        bn_weight: float = 1.0,
        ce_weight: float = 0.5,
        adv_weight: float = 0.5,
        cr_weight: float = 0.8,
        cr_temperature: float = 0.1,
        negatives: int = 4096,
        layers: Layers = "all",
        embedding_features: int = 256,
        part: tuple[float, float] = (0.25, 1.0),
        bn_momentum: float = 0.0,
        round_size: int = 256,
        **inversion: Any,
    ) -> None:
        super().__init__(
            teacher, student, bn_weight, ce_weight, adv_weight, bn_momentum, round_size, **inversion
        )
        require(layers in get_args(Layers), "model.layers", "all or stages", layers)
        require(generator_steps >= 1, "model.generator_steps", "at least 1", generator_steps)
        require_not_negative(generator_lr=generator_lr, cr_weight=cr_weight)
        require(cr_temperature > 0, "model.cr_temperature", "above 0", cr_temperature)
        require(negatives >= 0, "model.negatives", "at least 0", negatives)
        require(0 < part[0] <= part[1] <= 1, "model.part", "two shares, the smaller first", part)
        self.generator_steps, self.generator_lr = generator_steps, generator_lr
        self.generator_betas = (generator_betas[0], generator_betas[1])
        self.cr_weight, self.cr_temperature = cr_weight, cr_temperature
        self.negatives, self.layers = negatives, layers
        self.part = (part[0], part[1])
        self.generator = generator(noise_features, image_shape)
        self.latents = nn.Parameter(torch.zeros(round_size, noise_features))
        self._means: dict[Any, Tensor] = {}
        for norm in self.statistics.norms:
            norm.register_forward_pre_hook(self._take)
        size = self._features(teacher.dummy_images(image_shape)).shape[1]
        out = nn.Linear(size, embedding_features)
        self.head = nn.Sequential(nn.Linear(size, size), nn.ReLU(), out)
        self.feature_count = size

    def synthesis_optimizers(self) -> list[Optimizer]:
        """One Adam: of the generator and z, and of the head."""
        groups: list[dict[str, Any]] = [
            {"params": self._made_anew(), "betas": self.generator_betas},
            {"params": list(self.head.parameters())},
        ]
        return [Adam(groups, lr=self.generator_lr, fused=True)]

    def _made_anew(self) -> list[nn.Parameter]:
        return [*self.generator.parameters(), self.latents]

    def steps_to_compile(self) -> list[str]:
        """The generator too; but views are drawn at random, and earlier images become more."""
        return [*super().steps_to_compile(), "_make"]

    def synthesize(self, targets: Tensor, warm_up: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """One round: a new generator, and the images of its step with the lowest loss."""
        optimizer = self.all_optimizers()[1]
        earlier = self._remember() if self.cr_weight else None
        restart(self.generator, self.rng)
        with torch.no_grad():
            self.latents.normal_(generator=self.rng)

        def judge(images: Tensor) -> dict[str, Tensor]:
            return self._judge(*self._views(images), earlier, targets, warm_up)

        images, history = descend(
            self, optimizer, self.generator_steps, lambda: self._make(len(targets)), judge
        )
        for parameter in self._made_anew():  # only the head takes over Adam's averages
            optimizer.optimizer.state.pop(parameter, None)
        self.statistics.finish_round()
        self._means = {}  # with the graph that they are part of
        return images, history

    def _make(self, count: int) -> Tensor:
        return self.generator(self.latents[:count])

    def _judge(
        self,
        whole: Tensor,
        part: Tensor,
        earlier: tuple[Tensor, Tensor] | None,
        targets: Tensor,
        warm_up: bool,
    ) -> dict[str, Tensor]:
        """The weighted sum of the terms of inversion and the contrastive one, and the terms."""
        terms = self.invert(whole, targets, warm_up)
        if earlier is not None:
            wholes, parts = self._seen(), self._features(part)
            wholes, parts = torch.cat([wholes, earlier[0]]), torch.cat([parts, earlier[1]])
            embeddings = self._embed(parts), self._embed(wholes).detach()
            terms["cr"] = contrastive_loss(*embeddings, len(whole), self.cr_temperature)
            terms["loss"] = terms["loss"] + self.cr_weight * terms["cr"]
        return terms

    # What images are told apart by

    def _views(self, images: Tensor) -> tuple[Tensor, Tensor]:
        whole = self.augment(images)
        flip = self.augmentation is not None and self.augmentation.flip
        return whole, random_part(images, self.part, flip, self.rng)

    @torch.no_grad()
    def _remember(self) -> tuple[Tensor, Tensor]:
        """Features of both views of earlier images, [n, features] each; n may be 0."""
        bank, size = self.datamodule.bank, len(self.latents)
        chosen = torch.randperm(len(bank), device=self.device, generator=self.rng)
        chosen = chosen[: self.negatives].to(bank.device)
        views = [torch.empty(2, 0, self.feature_count, device=self.device)]
        for first in range(0, len(chosen), size):
            images = bank.images[chosen[first : first + size]].to(self.device) / 255
            views.append(torch.stack([self._features(view) for view in self._views(images)]))
        wholes, parts = torch.cat(views, dim=1)
        return wholes, parts

    def _features(self, images: Tensor) -> Tensor:
        """What the teacher sees in images, [B, C, H, W] -> [B, features]."""
        self.statistics(images)
        return self._seen()

    def _seen(self) -> Tensor:
        """As `_features`, of the images that the teacher has seen last."""
        return torch.cat(list(self._means.values()), dim=1)

    def _take(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        layer = norm if self.layers == "all" else x.shape[2:]  # the last one of its resolution
        self._means[layer] = x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))

    def _embed(self, features: Tensor) -> Tensor:
        return F.normalize(self.head(features))


@torch.no_grad()
def restart(generator: nn.Module, rng: torch.Generator) -> None:
    """New weights, N(0, 0.02) as in DCGAN (Radford et al., 2016, arXiv 1511.06434), in place."""
    reset_parameters_(generator)
    for layer in generator.modules():
        if isinstance(layer, nn.Linear | _ConvNd):
            layer.weight.normal_(0, 0.02, generator=rng)
            if layer.bias is not None:
                layer.bias.zero_()
        elif isinstance(layer, nn.BatchNorm2d) and layer.affine:
            layer.weight.normal_(1, 0.02, generator=rng)
