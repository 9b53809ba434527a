"""One file that is enough to use a trained classifier: weights, architecture, normalization."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nayer_pl.errors import InputError
from nayer_pl.networks.architecture import BUILDERS
from nayer_pl.networks.classifier import Classifier, build_classifier
from nayer_pl.networks.weights import read_weights, save_weights

log = logging.getLogger(__name__)


def save_classifier(path: str | Path, classifier: Classifier, **facts: Any) -> None:
    """Write `classifier` to a `.safetensors` file that `load_classifier` can rebuild.

    Args:
        path: the file; complete or not there at all, also after a crash.
        classifier: its network's own state dict is written, under the network's own keys.
        facts: anything else worth keeping (class names, image shape, accuracy), as JSON.
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
    """Rebuild a classifier saved by `save_classifier`; returns it, frozen, and the file's facts.

    Args:
        path: the file.
        architecture: `_target_` and arguments, for a network that is not from this package. The
            file names an import path too, but a file must not choose what code runs, nor fetch
            anything: only architectures of `nayer_pl.networks` are rebuilt on its word.
        mean, std: the normalization, for a file that does not know it.

    Raises:
        InputError: the file does not say how to rebuild the network, or names foreign code, or
            nobody says how its images are normalized.
    """
    _, facts = read_weights(path)
    if architecture is None:
        architecture = _named_architecture(path, facts.get("classifier"))
    classifier = build_classifier(architecture, mean, std, weights=path)
    if not classifier.has_normalization:
        raise InputError(
            f"'{path}' does not say how its images were normalized; give mean=[...] and std=[...]."
        )
    return classifier.freeze(), facts


def _named_architecture(path: str | Path, description: Any) -> Mapping[str, Any]:
    named = description.get("architecture") if isinstance(description, Mapping) else None
    target = named.get("_target_") if isinstance(named, Mapping) else None
    if target not in BUILDERS:
        raise InputError(
            f"'{path}' does not name an architecture that is rebuilt on a file's word"
            + (
                f" but '{target}'; if you trust it, give architecture={named}."
                if target
                else "; give it as architecture={'_target_': ...}."
            )
        )
    return named  # type: ignore[return-value]
