"""What the builders of other packages' networks (`from_*`) have in common."""

from typing import Any

from torch import nn

from nayer_pl.errors import InputError


def require_name(name: str | None, source: str, example: str) -> str:
    """`name`, or an error that says how to give one."""
    if not name:
        raise InputError(
            f"Which network of {source}? Give teacher.name= or student.name=, such as {example}."
        )
    return name


def check_head_shape(name: str, found: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Refuse published weights whose (classes, channels) are not the wanted ones.

    The packages would replace the last layer by an untrained one, and say nothing.
    """
    if found != wanted:
        raise InputError(
            f"The published weights of '{name}' have {found[0]} outputs for images of {found[1]} "
            f"channels, {wanted[0]} outputs for {wanted[1]} channels are wanted; give weights that "
            "were trained for these as teacher.weights=PATH, or choose the data set of these."
        )


def attach_normalization(network: nn.Module, mean: Any, std: Any) -> None:
    """Leave with `network` what its weights were trained with, for `build_classifier`."""
    network.normalization = {"mean": list(mean), "std": list(std)}  # type: ignore[assignment]
