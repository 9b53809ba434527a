"""DFQ: Data-Free Network Quantization With Adversarial Knowledge Distillation.

Choi et al., CVPR Workshops 2020, arXiv 2005.04136.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from nayer_pl.distillation.module import DataFreeDistillation
from nayer_pl.distillation.student import MOMENTUM_SGD
from nayer_pl.losses.distillation import KLDivergence
from nayer_pl.losses.functional import class_balance_loss, entropy_loss, kl_divergence
from nayer_pl.losses.inversion import GaussianMatching
from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.teacher import FrozenTeacher
from nayer_pl.runtime.options import checked
from nayer_pl.synthesis.generators import Generator
from nayer_pl.synthesis.synthesizer import OnlineSynthesizer


class DFQ(DataFreeDistillation):
    """The generator looks for disagreement among images that could be the teacher's own data.

    It maximizes KL(teacher || student), less three terms that keep its images near the data: the
    teacher's BatchNorms should see their statistics, the teacher should be sure of every image
    (instance entropy), and over a batch it should see every class as often (batch entropy). In
    warm-up epochs the generator learns from those three alone. The student minimizes the
    divergence. The plan should be interleaved. No network is quantized here, and there is one
    generator and one student; the paper has more of them for some of its results. Images are in
    [0, 1] (there: standardized by a last BatchNorm in the generator).

    The authors published no code. Later collections (CMI's) have another method of this name, with
    the l2 norm of DeepInversion and the cross-entropy of DAFL in place of the KL divergence and the
    instance entropy.

    Args:
        teacher: Trained classifier; frozen here.
        student: Classifier with as many outputs.
        image_shape: (C, H, W) of the images to make.
        bn_weight: Weight of the divergence of statistics, in nats, summed over channels.
        entropy_weight: Weight of the entropy of a prediction, in nats.
        balance_weight: Weight of the entropy over classes, in nats.
        adv_weight: Weight of the divergence between teacher and student, in nats.
        noise_features: Size of z ~ N(0, 1).
        generator: (features, image_shape) -> generator.
        generator_steps: Steps of the generator in a turn, each with a z of its own.
        generator_lr: Learning rate of the generator's Adam, which continues from turn to turn
            and falls as the student's does.
        generator_betas: Betas of that Adam.
        augmentation: Of the images before teacher and student judge them; None for none.
        student_loss: (student logits, teacher logits, labels) -> scalar.
        optimizer: Parameters -> optimizer of the student.
        scheduler: Optimizer -> its learning-rate schedule over distillation epochs.
        seed: Seed of this rank's noise.
        check_teacher: Stop before any synthesis if the teacher is no better than guessing.
        compile: Let `torch.compile` fuse the steps; the first ones then take a minute or more.

    Raises:
        InputError: The teacher has no BatchNorm statistics to match, or an option is out of range.

    Example:
        >>> from nayer_pl.networks import create_model
        >>> teacher = Classifier(create_model("wrn16_1", num_classes=3), mean=[0.5], std=[0.2])
        >>> student = Classifier(create_model("wrn16_1", num_classes=3))
        >>> DFQ(teacher, student, (3, 32, 32)).synthesizer.noise_features
        512
    """

    @checked
    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        image_shape: Sequence[int],
        bn_weight: NonNegativeFloat = 1.0,
        entropy_weight: NonNegativeFloat = 1.0,
        balance_weight: NonNegativeFloat = 1.0,
        adv_weight: NonNegativeFloat = 1.0,
        noise_features: PositiveInt = 512,
        generator: Callable[..., nn.Module] = Generator,
        generator_steps: PositiveInt = 1,
        generator_lr: NonNegativeFloat = 1e-3,
        generator_betas: tuple[float, float] = (0.5, 0.999),
        augmentation: Callable[..., Any] | None = None,
        student_loss: Callable[..., Any] = KLDivergence(temperature=1.0),
        optimizer: Callable[..., Any] = partial(MOMENTUM_SGD, lr=0.1, nesterov=True),
        scheduler: Callable[..., Any] = CosineAnnealingLR,
        seed: int = 0,
        check_teacher: bool = True,
        compile: bool = False,
    ) -> None:
        frozen_teacher = FrozenTeacher(teacher)
        frozen_teacher.require_norms()
        matching = GaussianMatching(frozen_teacher.norms)
        weights = bn_weight, entropy_weight, balance_weight, adv_weight
        synthesizer = OnlineSynthesizer(
            generator(noise_features, image_shape),
            noise_features,
            partial(plausible_disagreement, matching=matching, weights=weights),
            generator_steps,
            generator_lr,
            generator_betas,
            augmentation,
        )
        common = student_loss, optimizer, scheduler, seed, check_teacher, compile
        super().__init__(frozen_teacher, student, synthesizer, *common)


def plausible_disagreement(
    images: Tensor,
    targets: Tensor,
    teacher: FrozenTeacher,
    student: nn.Module,
    warm_up: bool,
    matching: GaussianMatching,
    weights: tuple[float, float, float, float],
) -> dict[str, Tensor]:
    """Statistics, instance and batch entropy, less the divergence, which warm-up leaves out."""
    logits, statistics = teacher.observe(images)
    terms = {
        "bn": matching(statistics),
        "entropy": entropy_loss(logits),
        "balance": class_balance_loss(logits),
    }
    bn, entropy, balance, adv = weights
    loss = bn * terms["bn"] + entropy * terms["entropy"]
    loss = loss + balance * terms["balance"]
    if adv and not warm_up:
        terms["divergence"] = kl_divergence(student(images), logits).mean()
        loss = loss - adv * terms["divergence"]
    return {"loss": loss, **terms}
