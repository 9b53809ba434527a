"""Random streams: one for every purpose on every rank, taken up again by a run that goes on."""

import hashlib

import torch
from torch import Tensor


def stream_seed(seed: int, rank: int, purpose: int) -> int:
    """A seed of its own for every purpose on every rank."""
    return (seed * 1_000_003 + rank) * 8 + purpose


def take_up(rng: torch.Generator, state: Tensor) -> None:
    """Let a stream go on from `state`, a generator's `get_state`.

    Each kind of device has its own kind of generator. From the state of another one a new stream
    begins: not the numbers that would have come, but none that were there before.
    """
    if len(state) == len(rng.get_state()):
        rng.set_state(state)
        return
    digest = hashlib.sha256(state.cpu().numpy().tobytes()).digest()
    rng.manual_seed(int.from_bytes(digest[:7], "little"))
