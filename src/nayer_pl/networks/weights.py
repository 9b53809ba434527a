"""Weight files: read without running code, in any layout, and written completely or not at all."""

import hashlib
import json
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from nayer_pl.errors import InputError
from nayer_pl.runtime.files import write_durably


def read_weights(
    path: str | Path, trust_code: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read every tensor of a file by name, and its metadata.

    `.safetensors` files carry metadata as JSON. Anything else is opened by `torch.load` and may
    nest its tensors in dictionaries, whose keys are joined by dots: `state_dict.fc.weight`. A
    pickle that holds more than tensors, such as a whole `nn.Module`, can run any code when it is
    opened, and is opened only with `trust_code`.

    Raises:
        InputError: the file is damaged, holds no tensors, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"The weight file '{path}' {problem}; give the path of the file itself.")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                facts = {key: _fact(metadata[key]) for key in metadata if key != "format"}
                return {key: file.get_tensor(key) for key in file.keys()}, facts  # noqa: SIM118
        content = torch.load(path, map_location="cpu", weights_only=not trust_code)
    except Exception as error:  # a damaged pickle can raise anything
        if isinstance(error, pickle.UnpicklingError) and not trust_code:
            raise InputError(
                f"'{path}' is damaged, or holds more than tensors, and loading that could run "
                "code; give a file of its state_dict alone, or, if you trust who made this one, "
                "set trust_code=true."
            ) from error
        raise InputError(
            f"'{path}' is damaged or not a file of weights ({type(error).__name__}: {error}); copy "
            "it again, or give another."
        ) from error
    tensors = dict(_tensors(content))
    if not tensors:
        raise InputError(f"'{path}' holds no state dict (names to tensors).")
    return tensors, {}


def _tensors(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if isinstance(content, Mapping):
        for key, value in content.items():
            if isinstance(value, Tensor):
                yield f"{prefix}{key}", value
            else:
                yield from _tensors(value, f"{prefix}{key}.")


def load_weights(
    network: nn.Module, path: str | Path, prefix: str | None = None, trust_code: bool = False
) -> dict[str, Any]:
    """Load all weights in `path` (see `read_weights`), and return the file's metadata.

    `prefix` is the text before the network's own keys in the file, such as
    `state_dict.student.network.`; None finds it. Other entries are ignored.

    Raises:
        InputError: several networks of the file fit, or none does (keys or shapes differ, and the
            message names the first of each kind), or a weight is NaN or infinite.
    """
    state, metadata = read_weights(path, trust_code)
    wanted = network.state_dict()
    if prefix is None:
        prefix = _find_prefix(state, wanted, path)
    elif prefix and not prefix.endswith("."):
        prefix += "."
    part = _part(state, wanted, prefix)
    misfit = _misfit(part, wanted)
    if misfit:
        where = f" under '{prefix}'" if prefix else ""
        raise InputError(
            f"The weights in '{path}'{where} do not fit {type(network).__name__} ({misfit}); "
            "choose the architecture and the number of classes that they were trained with."
        )
    broken = [key for key in wanted if not part[key].isfinite().all()]
    if broken:
        raise InputError(
            f"'{path}' has weights that are NaN or infinite ({_first(broken)}), as training that "
            "diverged leaves them; give a file from before that."
        )
    network.load_state_dict(part)
    return metadata


def _find_prefix(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Any) -> str:
    """The prefix under which the file has all wanted tensors, or else the most of them."""
    shared: Counter[str] = Counter()
    for key in state:
        words = key.split(".")
        for i in range(len(words)):
            if ".".join(words[i:]) in wanted:
                shared[".".join([*words[:i], ""])] += 1
    fitting = [prefix for prefix in shared if _fits(_part(state, wanted, prefix), wanted)]
    if len(fitting) > 1:
        raise InputError(
            f"'{path}' holds several networks that fit, under {' and '.join(map(repr, fitting))}; "
            "choose one with prefix=."
        )
    return fitting[0] if fitting else max(shared, key=shared.__getitem__, default="")


def _part(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], prefix: str
) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, by the rest of their names."""
    # Files from before PyTorch 0.4.1 do not count batches, and trained networks need no count.
    counters = {key: wanted[key] for key in wanted if key.endswith("num_batches_tracked")}
    under = [key for key in state if key.startswith(prefix)]
    return counters | {key.removeprefix(prefix): state[key] for key in under}


def _fits(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return all(key in state and state[key].shape == wanted[key].shape for key in wanted)


def _misfit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """The differences between `state` and `wanted` in words; empty if it fits."""
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    shapes = {
        key: (tuple(state[key].shape), tuple(wanted[key].shape))
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    }
    # Another number of outputs in any layer but the last would change the layers after it.
    layers = {key.rpartition(".")[0] for key in shapes}
    if not missing and not unexpected and len(layers) == 1:
        found, right = next(iter(shapes.values()))
        if found[1:] == right[1:] and len(found) == len(right) > 0:
            return (
                f"the file's last layer ({layers.pop()}) has {found[0]} outputs, {right[0]} are "
                "wanted"
            )
    reshaped = [f"{key} ({found} instead of {right})" for key, (found, right) in shapes.items()]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    return "; ".join(f"{kind}: {_first(keys)}" for kind, keys in problems.items() if keys)


def _first(keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + more


def save_weights(path: str | Path, network: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Write the network's state dict, and metadata as JSON, completely or not at all.

    Raises:
        InputError: the path does not end in `.safetensors`, so it would be read as another format.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"Weights are written to files that end in .safetensors, not to '{path}'.")
    # Clones, as a layer may have two names, and the format needs its weights under each.
    tensors = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in network.state_dict().items()
    }
    facts = {key: json.dumps(value, default=str) for key, value in metadata.items()}
    write_durably(path, save(tensors, {"format": "pt", **facts}))


def _fact(text: str) -> Any:
    """A metadata value: JSON from this package, any text from others."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def fingerprint(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """Twelve hexadecimal digits of a hash that is equal for equal weights.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> fingerprint(layer) == fingerprint(layer.state_dict())
        True
    """
    digest = hashlib.sha256()
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]
