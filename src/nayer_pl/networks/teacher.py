"""The teacher: frozen, asked through a faster copy, and observed at its BatchNorms."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nayer_pl.errors import InputError
from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.folding import folded
from nayer_pl.runtime.numerics import fused_dtype

if TYPE_CHECKING:
    from typing_extensions import Self

Network = TypeVar("Network", bound=nn.Module)

Layers = Literal["all", "stages"]
Statistics = tuple[Tensor, Tensor]
"""Mean and biased variance of each channel of a batch, [C] and [C]."""


class Observation(NamedTuple):
    """What the teacher says about a batch of images, and what its BatchNorms saw of it."""

    logits: Tensor
    """[B, num_classes], at least float32."""
    statistics: dict[nn.Module, Statistics]
    """Of the input of each of `FrozenTeacher.norms` that was called."""


class FrozenTeacher(nn.Module):
    """The trained network that a student learns from. It never changes, and never trains.

    There are three ways to ask it, for three purposes:

    - `teacher(images)`: logits, from a copy that answers the same but faster (see `accelerate`);
    - `teacher.observe(images)`: logits, and the statistics of the inputs of its BatchNorms;
    - `teacher.classifier`: the network itself, without anything of ours inside.

    Args:
        classifier: Images in [0, 1], [B, C, H, W] -> logits [B, num_classes].

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        >>> teacher = FrozenTeacher(Classifier(network, mean=[0.5], std=[0.5]))
        >>> logits, statistics = teacher.observe(torch.rand(2, 1, 3, 3))
        >>> logits.shape, len(statistics)
        (torch.Size([2, 4]), 1)
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier.freeze()
        self.fast: Classifier | None
        self.__dict__["fast"] = None  # no submodule: it is neither saved nor moved
        # Hooks sit in a copy that shares every tensor, so the network itself stays free of them.
        self._observed: Classifier
        self.__dict__["_observed"] = tied_copy(self.classifier)  # likewise
        self.norms = [
            module
            for module in self._observed.modules()
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
        ]
        for norm in self.norms:
            norm.register_forward_pre_hook(self._observe)
        self._statistics: dict[nn.Module, Statistics] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes] of images in [0, 1], [B, C, H, W]."""
        return self.classifier(images) if self.fast is None else self.fast(images)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Labels [B] of images in [0, 1], [B, C, H, W]."""
        return self(images).argmax(1)

    def observe(self, images: Tensor) -> Observation:
        """Logits of images in [0, 1], and the statistics of every BatchNorm's input."""
        self._statistics = {}
        logits = self._observed(images)
        statistics, self._statistics = self._statistics, {}  # nothing holds on to the graph
        return Observation(logits, statistics)

    def _observe(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._statistics[norm] = ChannelMoments.apply(inputs[0])

    def require_norms(self, optional: bool = False) -> None:
        """Raise an InputError if there are no BatchNorm statistics to match.

        A method for which they are optional can do without them, with `bn_weight=0`.
        """
        if not self.norms:
            without = (
                "; or set bn_weight=0 if this one can work without the term (expect a weaker "
                "student)"
            )
            raise InputError(
                "The teacher has no BatchNorm2d with running statistics, so there is nothing for "
                "the statistics term to match; choose a method that needs none: DFAD works with "
                "every teacher, DAFL with one that ends in a linear layer, ZSKT with one that has "
                f"feature maps{without if optional else ''}."
            )

    def accelerate(self, image_shape: Sequence[int], precision: Any) -> None:
        """Answer from a copy with BatchNorms folded into convolutions, until `decelerate`.

        The images have `image_shape` (C, H, W); `precision` is a `lightning.Trainer`'s.
        """
        # A plain attribute: as a submodule, the copy would be saved with the teacher.
        self.__dict__["fast"] = folded(self.classifier, image_shape, fused_dtype(precision))

    def decelerate(self) -> None:
        """Forget the faster copy, which does not follow this module to another device."""
        self.__dict__["fast"] = None

    def train(self, mode: bool = True) -> "Self":
        """Stay in evaluation mode, whatever `mode` is."""
        return super().train(False)


class TeacherFeatures:
    """The spatial mean of every channel that goes into the teacher's BatchNorms.

    Args:
        teacher: Its BatchNorms are watched from now on.
        image_shape: (C, H, W) of the images.
        layers: BatchNorms that features are taken from: "all", or "stages" for the last one at each
            resolution.

    Example:
        >>> teacher = FrozenTeacher(Classifier(nn.BatchNorm2d(3), mean=[0.5], std=[0.2]))
        >>> features = TeacherFeatures(teacher, image_shape=(3, 8, 8), layers="all")
        >>> features.count, features(torch.rand(4, 3, 8, 8)).shape
        (3, torch.Size([4, 3]))
    """

    def __init__(self, teacher: FrozenTeacher, image_shape: Sequence[int], layers: Layers) -> None:
        self.teacher, self.layers = teacher, layers
        self._means: dict[Any, Tensor] = {}
        for norm in teacher.norms:
            norm.register_forward_pre_hook(self._keep)
        self.count = self(teacher.classifier.dummy_images(image_shape)).shape[1]

    def __call__(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, count]."""
        self.teacher.observe(images)
        return self.last()

    def last(self) -> Tensor:
        """The same of the images that the teacher has observed last."""
        return torch.cat(list(self._means.values()), dim=1)

    def forget(self) -> None:
        """Let go of the last images, and of the graph that they are part of."""
        self._means = {}

    def _keep(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        layer = norm if self.layers == "all" else x.shape[2:]  # the last one of its resolution
        self._means[layer] = x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))


class ChannelMoments(torch.autograd.Function):
    """Mean and biased variance of every channel: [B, C, H, W] -> [C], [C], at least float32.

    `torch.var_mean` in value, but by BatchNorm's own kernel, which is many times faster on images
    whose channels are last; and differentiated in one pass over the images.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Statistics:
        """One call, which sums in float32 also where x has fewer digits."""
        if x.device.type in ("cpu", "cuda"):
            dtype = torch.promote_types(x.dtype, torch.float32)
            unused = x.new_zeros(x.shape[1], dtype=dtype)  # running averages
            mean, variance = torch.batch_norm_update_stats(x, unused, unused.clone(), 0.0)
        else:  # no such kernel
            variance, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """d mean / dx = 1 / n and d variance / dx = 2 (x - mean) / n."""
        x, mean = ctx.saved_tensors
        per_channel = x.shape[1] / x.numel()
        slope = 2 * per_channel * grads[1]
        offset = per_channel * grads[0] - slope * mean
        offset, slope = (each.to(x.dtype).view(1, -1, 1, 1) for each in (offset, slope))
        return torch.addcmul(offset, x, slope)


def tied_copy(module: Network) -> Network:
    """A second module that holds the first one's parameters and buffers, also after a move."""
    # Not only parameters and buffers: weight normalization keeps what it computes as an attribute.
    kept = [value for part in module.modules() for value in vars(part).values()]
    tensors = [*module.parameters(), *module.buffers(), *kept]
    twin = copy.deepcopy(module, {id(each): each for each in tensors if isinstance(each, Tensor)})
    for own, other in zip(module.modules(), twin.modules(), strict=True):
        other._parameters, other._buffers = own._parameters, own._buffers
    return twin
