"""Class names of well-known data sets, in the order of their labels."""

from collections.abc import Sequence
from importlib.resources import files

from nayer_pl.errors import InputError


def class_names(names: str | Sequence[str]) -> list[str]:
    """Class names of a data set (such as "cifar10") that are known here, or the given list.

    Raises:
        InputError: no names of such a data set are known here.

    >>> class_names("digits")[:3]
    ['zero', 'one', 'two']
    """
    if not isinstance(names, str):
        return [str(name) for name in names]
    folder = files("nayer_pl.data") / "class_names"
    known = {path.name[:-4]: path for path in folder.iterdir() if path.name.endswith(".txt")}
    if names not in known:
        raise InputError(
            f"No class names of '{names}' are known here, only those of "
            f"{', '.join(sorted(known))}; give others as a list."
        )
    return known[names].read_text(encoding="utf-8").splitlines()
