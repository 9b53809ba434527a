"""ZSKT: Zero-shot Knowledge Transfer via Adversarial Belief Matching.

Micaelli and Storkey, NeurIPS 2019, arXiv 1905.09768.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from nayer_pl.distillation.divergence import gradient_norm
from nayer_pl.distillation.online import OnlineDistillation
from nayer_pl.errors import InputError, require, require_not_negative
from nayer_pl.losses.functional import divergence
from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.hooks import frozen, layer_outputs


class ZSKT(OnlineDistillation):
    """The generator looks for images that student and teacher disagree on; the student learns them.

    A turn belongs to one batch of z (algorithm 1): after the generator's step the student takes
    its steps, ten in the paper, all on the images of that z. The generator maximizes
    KL(teacher || student). The student minimizes it together with attention transfer (equation 1).

    Paper and published code differ; this is the code. It averages the student's divergence over
    classes as well as images, and the squares of attention differences over pixels, and beta was
    chosen for that; it also clips the gradients of both networks. Not taken over: the generator's
    images are in [0, 1] instead of standardized, and the student is in evaluation mode while the
    generator looks for its weaknesses.

    Args:
        teacher, student, image_shape: see `OnlineDistillation`, which also takes `online`.
        beta: weight of attention transfer; 0 goes without it.
        round_size: z in a turn; the student sees all of them, or the first of them if its batches
            are smaller.
        temperature: of both losses.
        learning_rate: of the student's Adam; falls to `min_learning_rate` along a cosine.
        momentum: Adam's first beta.
        weight_decay: of the student's Adam.
        max_gradient_norm: to which the gradient of either network is clipped before a step.
        online: the generator's arguments, seed and so on of `OnlineDistillation`.

    Raises:
        InputError: with `beta`, teacher and student have no feature maps of the same resolution.
    """

    z: Tensor

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        image_shape: Sequence[int],
        beta: float = 250.0,
        round_size: int = 128,
        temperature: float = 1.0,
        learning_rate: float = 2e-3,
        min_learning_rate: float = 0.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        max_gradient_norm: float = 5.0,
        **online: Any,
    ) -> None:
        super().__init__(
            teacher,
            student,
            image_shape,
            temperature=temperature,
            learning_rate=learning_rate,
            min_learning_rate=min_learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            **online,
        )
        require_not_negative(beta=beta)
        require(max_gradient_norm > 0, "model.max_gradient_norm", "above 0", max_gradient_norm)
        self.beta, self.max_gradient_norm = beta, max_gradient_norm
        self.pairs = paired_layers(teacher, student, image_shape) if beta else []
        self.register_buffer("z", torch.zeros(round_size, self.noise_features))

    def on_fit_start(self) -> None:
        """Check that a turn has enough images for the student."""
        plan = self.datamodule.plan
        if plan.batch_size > len(self.z):
            raise InputError(
                f"ZSKT's student learns from the {len(self.z)} images of the generator's turn, but "
                f"plan.batch_size is {plan.batch_size}; set plan.round_size to the same."
            )
        super().on_fit_start()

    # The generator's turn

    def synthesize(self, targets: Tensor, warm_up: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw the z of this turn, and let the generator take its steps on it."""
        self.z.normal_(generator=self.rng)
        return super().synthesize(targets, warm_up)

    def make(self, count: int) -> Tensor:
        """The first images of this turn, in [0, 1], [count, C, H, W]."""
        return self.generator(self.z[:count])

    def judge(self, images: Tensor) -> dict[str, Tensor]:
        """The negative divergence."""
        found = self._divergence(self.student(images), self.ask_teacher(images))
        return {"loss": -found, "divergence": found}

    def _divergence(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return divergence(student_logits, teacher_logits, self.temperature).mean()

    # The student's steps

    def student_loss(self, images: Tensor) -> Tensor:
        """KL(teacher || student) / number of classes + beta * attention (equation 1)."""
        if not self.pairs:
            with torch.no_grad():
                wanted = self.ask_teacher(images)
            return self._divergence(self.student(images), wanted) / wanted.shape[1]
        teachers_layers, students_layers = zip(*self.pairs, strict=True)
        with torch.no_grad():
            wanted, teacher_maps = layer_outputs(self.teacher, images, teachers_layers)
        logits, student_maps = layer_outputs(self.student, images, students_layers)
        differences = [
            attention_loss(student_maps[student], teacher_maps[teacher])
            for teacher, student in self.pairs
        ]
        loss = self._divergence(logits, wanted) / wanted.shape[1]
        return loss + self.beta * torch.stack(differences).sum()

    def student_optimizer(self) -> Optimizer:
        """Adam."""
        return Adam(
            self.student.parameters(),
            lr=self.learning_rate,
            betas=(self.momentum, 0.999),
            weight_decay=self.weight_decay,
            fused=True,
        )

    # Both

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient, which is multiplied by the loss's scale where losses are scaled."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        limit = torch.full((), self.max_gradient_norm, device=self.device)
        clip_gradient(optimizer, limit if scaler is None else scaler.scale(limit))


def clip_gradient(optimizer: Optimizer, limit: Tensor) -> None:
    """Scale the gradient of all parameters together down to a norm of `limit`, a scalar."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    factor = (limit / gradient_norm(parameters)).clamp(max=1)  # 1 too where the norm is 0
    torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], factor)


def attention(maps: Tensor) -> Tensor:
    """Where a layer looks: the mean square over channels, [B, C, H, W] -> unit vectors [B, H W].

    Zagoruyko and Komodakis, 2017, arXiv 1612.03928, section 3.1.
    """
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return F.normalize(maps.square().mean(1).flatten(1))


def attention_loss(student_maps: Tensor, teacher_maps: Tensor) -> Tensor:
    """Mean squared difference of attention; a scalar. Channels of [B, C, H, W] may differ."""
    return (attention(student_maps) - attention(teacher_maps)).square().mean()


def paired_layers(
    teacher: Classifier, student: Classifier, image_shape: Sequence[int]
) -> list[tuple[str, str]]:
    """Names of the teacher's and the student's last layer at each resolution that both have."""
    theirs, own = last_layers(teacher, image_shape), last_layers(student, image_shape)
    pairs = [(theirs[size], own[size]) for size in theirs if size in own]
    if not pairs:
        raise InputError(
            "Teacher and student have no feature maps of the same resolution, so attention cannot "
            f"be transferred (teacher: {_sizes(theirs)}; student: {_sizes(own)}); set model.beta=0 "
            "to go without it, or choose a method that does without it: model=dfad works with "
            "every teacher, model=dafl with one that ends in a linear layer, model=nayer with one "
            "that has BatchNorms."
        )
    return pairs


def last_layers(net: Classifier, image_shape: Sequence[int]) -> dict[tuple[int, ...], str]:
    """For every resolution (H, W) the name of the last layer with a convolution in it.

    Of a residual network that is the end of each stage. A single pixel has no attention.
    """
    layers = [
        name
        for name, module in net.network.named_modules()
        if name and any(isinstance(part, nn.Conv2d) for part in module.modules())
    ]
    with torch.no_grad(), frozen(net):
        _, maps = layer_outputs(net, net.dummy_images(image_shape), layers)
    sizes = {name: tuple(out.shape[2:]) for name, out in maps.items() if isinstance(out, Tensor)}
    return {size: name for name, size in sizes.items() if len(size) == 2 and size != (1, 1)}


def _sizes(layers: Iterable[tuple[int, ...]]) -> str:
    return ", ".join(f"{height}x{width}" for height, width in layers) or "none"
