"""The teacher: trained weights in a frozen classifier that carries its normalization."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nayer_pl.errors import InputError
from nayer_pl.networks.architecture import BUILDERS
from nayer_pl.networks.classifier import Classifier, build_classifier


def load_teacher(
    architecture: Mapping[str, Any],
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    trained_by: str | None = None,
    prefix: str | None = None,
    trust_code: bool = False,
    **arguments: Any,
) -> Classifier:
    """Build the teacher, load its weights and freeze it.

    Args:
        architecture: `_target_` and arguments of its network.
        weights: a `.safetensors`, `.pth`, `.pt` or `.ckpt` file; None where the builder returns a
            trained network.
        mean, std: the normalization it was trained with, for weights that do not know it (see
            `build_classifier`).
        trained_by: overrides for `train.py` that would make the file, for the error message.
        prefix: what stands before the network's keys in the file; None finds it.
        trust_code: open a file that runs code when it is opened.
        arguments: more arguments of the network, by name.

    Raises:
        InputError: no such file (with the command that trains it), weights that do not fit, or a
            normalization that nobody knows.
    """
    if weights is not None and not Path(weights).is_file():
        training = f"python train.py {trained_by} teacher.weights='{weights}'"
        hint = f", or train them: {training}" if trained_by else ""
        raise InputError(
            f"The teacher's weights are not at '{weights}'; give their path as "
            f"teacher.weights=PATH{hint}"
        )
    description = {**architecture, **arguments}
    ours = description.get("_target_") in BUILDERS  # born untrained
    if weights is None and not description.get("pretrained", not ours):
        raise InputError(
            "An untrained teacher has nothing to teach; give its weights as teacher.weights=PATH."
        )
    teacher = build_classifier(description, mean, std, weights, prefix, trust_code)
    if not teacher.has_normalization:
        raise InputError(
            "These weights do not say how the teacher's images were normalized; give the "
            "per-channel values it was trained with as teacher.mean=[...] and teacher.std=[...]."
        )
    return teacher.freeze()


def check_no_shared_weights(teacher: Classifier, student: Classifier) -> None:
    """Raise an InputError if teaching the student would change the teacher."""
    theirs = {id(module) for module in teacher.modules()}
    theirs |= {id(parameter) for parameter in teacher.parameters()}
    if any(id(part) in theirs for part in (*student.modules(), *student.parameters())):
        raise InputError(
            "Teacher and student are the same object, or have a network, a layer or weights in "
            "common; build two."
        )
