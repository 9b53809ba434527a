"""Trained classifiers and their files: weights, architecture and normalization together."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nayer_pl.errors import InputError
from nayer_pl.networks.classifier import Classifier, build_classifier
from nayer_pl.networks.registry import BUILDERS
from nayer_pl.networks.weights import read_weights, save_weights

log = logging.getLogger(__name__)


def save_classifier(path: str | Path, classifier: Classifier, **facts: Any) -> None:
    """Write `classifier` to a `.safetensors` file that `load_classifier` can rebuild.

    Args:
        path: the file, which is complete or not there at all, also after a crash.
        classifier: its network's state dict is written under the network's own keys.
        facts: anything else to keep (class names, image shape, accuracy), as JSON.

    Raises:
        InputError: the path does not end in `.safetensors`.

    Example:
        >>> import tempfile
        >>> from nayer_pl import build_classifier
        >>> wrn = {"_target_": "nayer_pl.networks.wrn16_1", "num_classes": 2}
        >>> student = build_classifier(wrn, mean=[0.5], std=[0.25])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/student.safetensors"
        ...     save_classifier(path, student, class_names=["cat", "dog"])
        ...     loaded, facts = load_classifier(path)
        >>> facts["class_names"], loaded.normalization
        (['cat', 'dog'], {'mean': [0.5], 'std': [0.25]})
    """
    if classifier.description is None:
        log.warning(
            "'%s' holds weights only: how %s is built was not recorded (build it with "
            "nayer_pl.networks.build_network, or decorate its builder with @architecture).",
            path, type(classifier.network).__name__,
        )  # fmt: skip
    save_weights(path, classifier.network, {"classifier": classifier.description, **facts})


def load_classifier(
    path: str | Path,
    architecture: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[Classifier, dict[str, Any]]:
    """Rebuild a classifier saved by `save_classifier`; see the example there.

    A file must not choose which code runs, nor download anything: only architectures of
    `nayer_pl.networks` are rebuilt because the file names them.

    Args:
        path: the file.
        architecture: `_target_` and arguments, for a network that is not from this package.
        mean: per-channel mean, for a file that does not hold it.
        std: per-channel standard deviation, for a file that does not hold it.

    Returns:
        The classifier, frozen, and the facts in the file.

    Raises:
        InputError: the architecture is not named or from elsewhere, or the normalization is not
            known.
    """
    _, facts = read_weights(path)
    if architecture is None:
        architecture = _named_architecture(path, facts.get("classifier"))
    return _frozen(build_classifier(architecture, mean, std, weights=path)), facts


def _named_architecture(path: str | Path, description: Any) -> Mapping[str, Any]:
    named = description.get("architecture") if isinstance(description, Mapping) else None
    target = named.get("_target_") if isinstance(named, Mapping) else None
    if target not in BUILDERS:
        theirs = f" but '{target}'; if you trust it, give architecture={named}."
        none = "; give it as architecture={'_target_': ...}."
        raise InputError(
            f"'{path}' does not name an architecture of this package{theirs if target else none}"
        )
    return named  # type: ignore[return-value]


def _frozen(classifier: Classifier) -> Classifier:
    if not classifier.has_normalization:
        raise InputError(
            "These weights do not say how their images were normalized; give the per-channel "
            "values that they were trained with as mean=[...] and std=[...]."
        )
    return classifier.freeze()


def load_teacher(
    architecture: Mapping[str, Any],
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    trained_by: str | None = None,
    prefix: str | None = None,
    trust_code: bool = False,
) -> Classifier:
    """Build the teacher, load its weights and freeze it.

    Args:
        architecture: `_target_` and arguments of its network.
        weights: a `.safetensors`, `.pth`, `.pt` or `.ckpt` file; None if the builder returns a
            trained network.
        mean: per-channel mean it was trained with, for weights that do not know it.
        std: per-channel standard deviation, likewise (see `build_classifier`).
        trained_by: what would make the file, for the error message.
        prefix: the text before the network's keys in the file; None finds it.
        trust_code: open a file that runs code when it is opened.

    Raises:
        InputError: the file is not there, the weights do not fit, or no normalization is known.

    Example:
        >>> wrn = {"_target_": "nayer_pl.networks.wrn16_1", "num_classes": 10}
        >>> load_teacher(wrn, "none.pth")
        Traceback (most recent call last):
        nayer_pl.errors.InputError: The teacher's weights are not at 'none.pth'; give weights=PATH
    """
    if weights is not None and not Path(weights).is_file():
        hint = f", or make them by {trained_by}" if trained_by else ""
        raise InputError(f"The teacher's weights are not at '{weights}'; give weights=PATH{hint}")
    ours = architecture.get("_target_") in BUILDERS  # built with untrained weights
    if weights is None and not architecture.get("pretrained", not ours):
        raise InputError("An untrained teacher has nothing to teach; give weights=PATH.")
    return _frozen(build_classifier(architecture, mean, std, weights, prefix, trust_code))


def check_no_shared_weights(teacher: Classifier, student: Classifier) -> None:
    """Refuse a student whose training would change its teacher.

    Raises:
        InputError: they share a module or a parameter.
    """
    parts, others = (
        {id(part) for part in (*net.modules(), *net.parameters())} for net in (teacher, student)
    )
    if parts & others:
        raise InputError(
            "Teacher and student are the same object, or have a network, a layer or weights in "
            "common; build two."
        )
