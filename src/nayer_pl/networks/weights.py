"""Weight files: read without running their code, fitted with clear errors, written atomically."""

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nayer_pl.errors import InputError


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a state dict and its metadata.

    `.safetensors` files carry metadata as JSON; anything else is opened by `torch.load` with
    `weights_only=True`, which runs no code of the file, and may wrap its tensors in `state_dict`.

    Raises:
        InputError: the file is damaged, or is not a file of tensors.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                facts = {key: _fact(metadata[key]) for key in metadata if key != "format"}
                return {key: file.get_tensor(key) for key in file.keys()}, facts  # noqa: SIM118
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"There is no weight file '{path}'.") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"'{path}' is damaged, or holds more than tensors, and loading that could run code; "
            "save its state_dict alone (as .safetensors or .pth) and give that file."
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"'{path}' is damaged or not a file of weights: {error}") from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"'{path}' holds no state dict (names to tensors).")
    return tensors, {}


def load_weights(network: nn.Module, path: str | Path) -> dict[str, Any]:
    """Load the weights in `path` into `network`, all of them, and return the file's metadata.

    Raises:
        InputError: keys or shapes differ; the message names the first of each kind.
    """
    state, metadata = read_weights(path)
    wanted = network.state_dict()
    problems = {
        "missing": [key for key in wanted if key not in state],
        "unexpected": [key for key in state if key not in wanted],
        "of another shape": [
            f"{key} ({tuple(state[key].shape)} instead of {tuple(wanted[key].shape)})"
            for key in wanted
            if key in state and state[key].shape != wanted[key].shape
        ],
    }
    if any(problems.values()):
        found = "; ".join(f"{kind}: {_first(keys)}" for kind, keys in problems.items() if keys)
        raise InputError(
            f"The weights in '{path}' do not fit {type(network).__name__} ({found}); choose the "
            "architecture and the number of classes that they were trained with."
        )
    network.load_state_dict(state)
    return metadata


def _first(keys: list[str], shown: int = 3) -> str:
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(keys[:shown]) + more


def save_weights(path: str | Path, network: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Write a `.safetensors` file, complete or not at all; `metadata` values must be JSON."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()
    }
    facts = {key: json.dumps(value) for key, value in metadata.items()}
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        scratch.touch()
        mode = scratch.stat().st_mode  # of any new file; safetensors makes private ones
        save_file(tensors, scratch, {"format": "pt", **facts})
        scratch.chmod(mode)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def _fact(text: str) -> Any:
    """A metadata value: JSON if this package wrote it, any text if others did."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
