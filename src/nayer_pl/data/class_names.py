"""Names of the classes of a data set, in the order of its labels."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from nayer_pl.data.batches import ImageSource
from nayer_pl.errors import InputError


def class_names(
    names: str | Sequence[Any] | None = None, source: ImageSource | None = None
) -> list[str]:
    """Names of the classes, from which the text of the labels is made.

    Args:
        names: a data set whose names are part of this package (such as "cifar10"), a list of names,
            or a text file with one name on each line; None for the data set's own names.
        source: the data set; it is asked only if `names` is None.

    Raises:
        InputError: there are no such names, or one of them is empty.

    Example:
        >>> class_names("digits")[:3]
        ['zero', 'one', 'two']
    """
    if names is None:
        if source is None:
            raise InputError("No class names are given: set class_names to a list or a file.")
        return source.class_names()
    if not isinstance(names, str):
        return _checked([str(name) for name in names], "class_names")
    folder = files("nayer_pl.data") / "class_names"
    known = {path.name[:-4]: path for path in folder.iterdir() if path.name.endswith(".txt")}
    if names in known:
        return known[names].read_text(encoding="utf-8").splitlines()
    if not Path(names).is_file():
        raise InputError(
            f"No class names of '{names}' are known here, only those of "
            f"{', '.join(sorted(known))}; give others as a list, or as a file with one on each "
            "line."
        )
    try:
        lines = Path(names).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"The class names in '{names}' are not UTF-8 text.") from error
    return _checked([line.strip() for line in lines if line.strip()], f"'{names}'")


def _checked(names: list[str], where: str) -> list[str]:
    """The names, unless there are none or one is empty."""
    if not names or not all(name.strip() for name in names):
        what = "holds no class names" if not names else "holds an empty class name"
        raise InputError(f"{where} {what}; give one for each class, in the order of the labels.")
    return names
