"""The teacher: trained weights in a frozen classifier that carries its normalisation."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nayer_pl.errors import InputError
from nayer_pl.networks.architecture import build_network
from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.weights import load_weights

log = logging.getLogger(__name__)


def load_teacher(
    architecture: Mapping[str, Any],
    weights: str | Path,
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.5,),
    trained_by: str | None = None,
) -> Classifier:
    """Build the teacher, load its weights and freeze it.

    Args:
        architecture: `_target_` and arguments of its network.
        weights: a `.safetensors`, `.pth` or `.ckpt` file.
        mean, std: the normalisation it was trained with. A file written by this package knows
            its own, and that one is taken.
        trained_by: overrides for `train.py` that would make the file, for the error message.

    Raises:
        InputError: no such file (with the command that trains it), or weights that do not fit.
    """
    weights = Path(weights)
    if not weights.is_file():
        hint = f", or train them: python train.py {trained_by}" if trained_by else ""
        raise InputError(
            f"The teacher's weights are not at '{weights}'; give their path as "
            f"teacher.weights=PATH{hint}"
        )
    network = build_network(architecture)
    carried = load_weights(network, weights).get("classifier")
    teacher = Classifier(network, mean, std)
    if isinstance(carried, Mapping) and {"mean", "std"} <= carried.keys():
        given, teacher = teacher, Classifier(network, carried["mean"], carried["std"])
        same = torch.equal(*torch.broadcast_tensors(given.mean, teacher.mean)) and torch.equal(
            *torch.broadcast_tensors(given.std, teacher.std)
        )
        if not same:
            log.warning(
                "'%s' was trained with mean %s and std %s; these are used, not %s and %s.",
                weights, carried["mean"], carried["std"], list(mean), list(std),
            )  # fmt: skip
    return teacher.freeze()
