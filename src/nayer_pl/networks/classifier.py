"""A network together with its normalization: images in [0, 1] in, logits out."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nayer_pl.errors import InputError
from nayer_pl.networks.hooks import preserve_mode
from nayer_pl.networks.registry import build_network
from nayer_pl.networks.weights import load_weights

log = logging.getLogger(__name__)


class Classifier(nn.Module):
    """A teacher or student: it normalizes images in [0, 1] as `network` was trained to see them.

    Without `mean` and `std` it cannot classify images before `copy_normalization`.

    Args:
        network: images [B, C, H, W] -> logits [B, num_classes].
        mean: per-channel mean, one value or C.
        std: per-channel standard deviation, one value or C.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
        >>> classifier = Classifier(network, mean=[0.5], std=[0.25])
        >>> classifier(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        # Not part of the state: weight files keep the network's own keys, in every layout.
        self.register_buffer("mean", None, persistent=False)
        self.register_buffer("std", None, persistent=False)
        if mean is None and std is None:
            return
        given = f"mean={mean} and std={std}"
        if mean is None or std is None or not len(mean) == len(std) > 0:
            raise InputError(f"{given} must be as many values, one for each channel.")
        if not all(0 <= value <= 1 for value in mean) or not all(0 < s < math.inf for s in std):
            raise InputError(
                f"{given} must be those of images in [0, 1]: means from 0 to 1, std above zero; "
                "divide those of images in [0, 255] by 255."
            )
        self.mean = torch.tensor(mean).float().view(1, -1, 1, 1)
        self.std = torch.tensor(std).float().view(1, -1, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images in [0, 1], [B, C, H, W] -> logits [B, num_classes], at least float32."""
        logits = self.network(self.normalize(images))
        if not isinstance(logits, Tensor):
            raise InputError(
                f"{type(self.network).__name__} must return logits [B, classes], not "
                f"{type(logits).__name__}, in training mode too; turn its other outputs off."
            )
        # Losses at high temperature need float32's digits, whatever the network computes in.
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def normalize(self, images: Tensor) -> Tensor:
        """Images in [0, 1], [B, C, H, W] -> what the network sees, in units of its `std`."""
        if self.mean is None or self.std is None:
            raise InputError(
                "This classifier does not know how its images are normalized; give it mean and "
                "std, or another classifier's by copy_normalization."
            )
        return (images - self.mean) / self.std

    @property
    def has_normalization(self) -> bool:
        """Whether it has a normalization."""
        return self.mean is not None

    def copy_normalization(self, other: "Classifier") -> None:
        """Normalize as another classifier does; a student normalizes as its teacher.

        Raises:
            InputError: the other one has no normalization.
        """
        if other.mean is None or other.std is None:
            raise InputError("The other classifier has no normalization; give it mean and std.")
        self.mean, self.std = other.mean.clone(), other.std.clone()

    @property
    def description(self) -> dict[str, Any] | None:
        """The arguments of `build_classifier` that rebuild this; None if they are not known."""
        known = getattr(self.network, "architecture", None)
        return None if known is None else {"architecture": known, **self.normalization}

    @property
    def normalization(self) -> dict[str, list[float]]:
        """`mean` and `std` as plain values; empty without them."""
        if self.mean is None or self.std is None:
            return {}
        return {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}

    def dummy_images(self, image_shape: Sequence[int], count: int = 1) -> Tensor:
        """Gray images [count, C, H, W], for finding out what the network returns."""
        like = next(self.parameters(), torch.empty(0))
        return torch.full((count, *image_shape), 0.5, device=like.device, dtype=like.dtype)

    @torch.no_grad()
    def num_classes(self, image_shape: Sequence[int]) -> int:
        """Number of logits for images of shape (C, H, W), found by classifying a gray one.

        Raises:
            InputError: the network does not take images of this shape, or returns no logits.
        """
        name = type(self.network).__name__
        values = 1 if self.mean is None else self.mean.numel()
        if values not in (1, image_shape[0]):
            raise InputError(
                f"mean and std have {values} values, and images of shape {tuple(image_shape)} "
                f"{image_shape[0]} channels; give one value for all of them, or one for each."
            )
        try:
            with preserve_mode(self):
                answer: Any = self.eval().network(self.dummy_images(image_shape))
        except Exception as error:  # networks of others can raise anything
            raise InputError(
                f"{name} does not take images of shape {tuple(image_shape)}: "
                f"{error or type(error).__name__}"
            ) from error
        if not isinstance(answer, Tensor) or answer.ndim != 2:
            got = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise InputError(f"{name} must return logits [B, classes], not {got}.")
        return answer.shape[1]

    @torch.no_grad()
    def check_train_forward(self, image_shape: Sequence[int]) -> None:
        """Call the network once in training mode with images of shape (C, H, W), and restore it.

        Raises:
            InputError: it returns no logits.
        """
        before = [buffer.clone() for buffer in self.network.buffers()]
        try:
            with preserve_mode(self):
                self.train()(self.dummy_images(image_shape, count=2))
        finally:
            for buffer, value in zip(self.network.buffers(), before, strict=True):
                buffer.copy_(value)

    def freeze(self) -> "Classifier":
        """Evaluation mode, and no gradient for any parameter; returns self."""
        return self.eval().requires_grad_(False)


def build_classifier(
    architecture: Mapping[str, Any],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: str | Path | None = None,
    prefix: str | None = None,
    trust_code: bool = False,
) -> Classifier:
    """Build a `Classifier` from a description of its network.

    If the weights know the normalization that they were trained with, it is used: that of a file
    of this package always, that of weights that the builder downloaded (its network's
    `normalization`) if `mean` and `std` are not given.

    Args:
        architecture: `_target_` and arguments of the network.
        mean: per-channel mean of the images.
        std: per-channel standard deviation of the images.
        weights: a file to start from; without one the network is as its builder returns it.
        prefix: the text before the network's keys in the file; None finds it.
        trust_code: open a file that runs code when it is opened.

    Raises:
        InputError: the network cannot be built, or the weights do not fit it.

    Example:
        >>> wrn = {"_target_": "nayer_pl.networks.wrn16_1", "num_classes": 10}
        >>> build_classifier(wrn, mean=[0.5], std=[0.25]).num_classes((3, 32, 32))
        10
    """
    description = dict(architecture)
    if weights is not None and "pretrained" in description:
        description["pretrained"] = False  # no download that would be replaced
    network = build_network(description)
    facts = {} if weights is None else load_weights(network, weights, prefix, trust_code)
    given, carried = Classifier(network, mean, std), facts.get("classifier")
    if isinstance(carried, Mapping) and {"mean", "std"} <= carried.keys():
        own = Classifier(network, carried["mean"], carried["std"])
        if given.has_normalization and not _alike(given.normalization, own.normalization):
            log.warning(
                "'%s' was trained with mean %s and std %s; these are used, not %s and %s.",
                weights, carried["mean"], carried["std"], mean, std,
            )  # fmt: skip
        return own
    downloaded = getattr(network, "normalization", None)
    if not given.has_normalization and isinstance(downloaded, Mapping):
        given = Classifier(network, **downloaded)
    return given


def _alike(first: Mapping[str, list[float]], second: Mapping[str, list[float]]) -> bool:
    """Whether two normalizations are the same, where one value is for every channel."""
    channels = max(len(first["mean"]), len(second["mean"]))
    return all(
        first[key] * (channels // len(first[key])) == second[key] * (channels // len(second[key]))
        for key in ("mean", "std")
    )
