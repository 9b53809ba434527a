"""The errors that a user can do something about."""


class NayerError(Exception):
    """Base of the errors below; `train.py` prints them as one sentence and exits with 1."""


class InputError(NayerError, ValueError):
    """Something that the user gave cannot work; the message says what, and what to do."""


def require(condition: bool, name: str, wanted: str, value: object) -> None:
    """Raise an InputError unless `condition` holds, which is what `value` should be.

    >>> require(0.1 > 0, "model.learning_rate", "above 0", 0.1)
    """
    if not condition:
        raise InputError(f"{name} must be {wanted}, not {value}.")


def require_not_negative(**options: float) -> None:
    """Raise an InputError unless these options of `model` are 0 or more.

    >>> require_not_negative(bn_weight=10.0, ce_weight=0.5)
    """
    for name, value in options.items():
        require(value >= 0, f"model.{name}", "at least 0", value)


class DivergenceError(NayerError, ArithmeticError):
    """A loss is NaN or infinite; the message names the term and where it happened."""
