"""Build what a configuration describes; what a user can correct comes out as one sentence.

Hydra passes on whatever was typed. Here it is first compared with the annotated signatures, so that
`plan.epochs=two` is not answered by an error of arithmetic; and what a constructor says about its
parameters is told with the names that were typed.
"""

import copy
import inspect
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nayer_pl.errors import InputError, NayerError
from nayer_pl.runtime.options import OptionError, check_option


def build(node: DictConfig, **overrides: Any) -> Any:
    """Instantiate a node of a configuration, `_target_` and arguments, and those in it.

    Raises an InputError if a `_target_` does not exist, or has no such option, or not with such a
    value, or fails; and the NayerError that one raises, with the names that were typed.
    """
    typed: Any = copy.deepcopy(node._get_root())  # Hydra resolves it
    try:
        check(node)
        return instantiate(node, **overrides)
    except (InstantiationException, OmegaConfBaseException) as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, NayerError):
            cause = cause.__cause__
        found = re.search(r"full_key: (\S+)", str(error))
        key = found[1] if found else node._get_full_key(None)
        if isinstance(cause, InputError):
            raise with_typed_names(cause, typed, key) from error
        if isinstance(cause, NayerError):
            raise cause from error
        reason = " ".join(str(cause).partition("\n    full_key")[0].split()).rstrip(".")
        raise InputError(
            f"'{key}' cannot be built ({reason or type(cause).__name__}); correct its options: "
            "python train.py --cfg job prints them, with what was typed."
        ) from error


def check(node: DictConfig) -> None:
    """Raise an InputError if a target does not take the options of a node, or of those in it."""
    if not isinstance(node, DictConfig):  # a value that was put in its place
        return
    known, closed = parameters(node.get("_target_"))
    recursive = node.get("_recursive_", True)
    for key in [str(key) for key in node if not str(key).startswith("_")]:
        name = typed_name(node, node._get_full_key(key))
        if closed and key not in known:
            raise unknown(name, known)
        if OmegaConf.is_missing(node, key):
            raise InputError(f"{name} is missing; give it as {name}=VALUE.")
        value = node[key]
        config = isinstance(value, DictConfig | ListConfig)
        inner = [value] if isinstance(value, DictConfig) else value
        nodes = [each for each in inner if _is_target(each)] if config else []
        if nodes and recursive:
            for each in nodes:
                check(each)
        elif not nodes:
            plain = OmegaConf.to_container(value, resolve=True) if config else value
            check_option(name, plain, known.get(key, Any))


def parameters(target: Any) -> tuple[dict[str, Any], bool]:
    """The parameters of a class or function, by name with their types, and whether these are all.

    With `**options` among them they are not; and nothing is known of a target that does not exist.
    """
    try:
        built = get_object(target)
        signature = inspect.signature(built)
        step = built.__init__ if inspect.isclass(built) else built
        types = get_type_hints(step, include_extras=True)
    except Exception:  # what is wrong with it is said when it is built
        return {}, False
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    known = {name: types.get(name, Any) for name, kind in kinds.items() if kind in named}
    return known, inspect.Parameter.VAR_KEYWORD not in kinds.values()


def unknown(name: str, known: Iterable[str]) -> InputError:
    """The answer to an option that does not exist: the closest names, or all.

    >>> print(unknown("model.generator_ler", ["generator_lr", "width"]))
    There is no option model.generator_ler; did you mean 'generator_lr'?
    """
    return InputError(f"There is no option {name}; {suggestion(name.rpartition('.')[2], known)}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """What may have been meant by a name, or everything that could be."""
    known = list(known)
    close = (
        [each for each in known if each.endswith(f".{name}")]
        or get_close_matches(name, known, n=1, cutoff=0.85)
        or get_close_matches(name, known)
    )
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"choose from {', '.join(known)}."


def typed_name(node: DictConfig, key: str) -> str:
    """What a user types for the option at a full key: where it takes its value from, if it does."""
    root, name = node._get_root(), ""
    for part in key.split("."):
        parent = OmegaConf.select(root, name) if name else root
        name = f"{name}.{part}" if name else part
        if isinstance(parent, DictConfig) and part in parent.keys():  # noqa: SIM118, not ???
            value = parent._get_node(part)
            source = re.fullmatch(r"\$\{([\w.]+)\}", str(value._value()))  # type: ignore[union-attr]
            name = typed_name(node, source[1]) if source and source[1] != name else name
    return name


def with_typed_names(error: InputError, root: DictConfig, key: str) -> InputError:
    """The error of a constructor, which names its own parameters, for a user who typed options."""
    built = OmegaConf.select(root, key) if key else root
    if not isinstance(built, DictConfig):
        return error
    options = {option: f"{key}.{option}" for option in map(str, built)}
    for inner in list(options):  # what the parts of it complain about
        part: Any = None if OmegaConf.is_missing(built, inner) else built.get(inner)
        if _is_target(part):
            options |= {str(each): f"{key}.{inner}.{each}" for each in part} | options
    names = sorted(options, key=len, reverse=True)
    # A plain word such as "path" is an option only in "path=" and "set path", or at the beginning.
    sure = "|".join(name for name in names if "_" in name)
    plain = "|".join(name for name in names if "_" not in name)
    first = error.name.partition("[")[0] if isinstance(error, OptionError) else "(?!)"
    pattern = (
        rf"^(?:{first})\b|(?<![\w./'])(?:(?:{sure})\b(?![/.'])|(?:{plain})(?==))"
        rf"|(?<=[Ss]et )(?:{plain})\b(?![/.'])"
    )
    told = re.sub(
        pattern,
        lambda found: typed_name(root, options[found[0]]) if found[0] in options else found[0],
        str(error),
    )
    return InputError(told) if told != str(error) else error


def _is_target(value: Any) -> bool:
    return isinstance(value, DictConfig) and "_target_" in value
