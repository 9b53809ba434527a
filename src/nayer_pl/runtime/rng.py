"""Random streams: one for every purpose on every rank, taken up again by a run that goes on."""

import hashlib
from enum import IntEnum

import torch
from torch import Tensor


class Stream(IntEnum):
    """What random numbers are drawn for."""

    BATCHES = 0  # of banked images, and their crops
    LABELS = 1  # of the images to make
    NOISE = 2  # what images are made of
    ORDER = 3  # of a teacher's training images
    CROPS = 4  # of those


def stream_seed(seed: int, number: int, purpose: Stream) -> int:
    """A seed of its own for every purpose.

    Args:
        seed: of the run.
        number: of the rank; of the epoch for an order that all ranks share.
        purpose: what for.
    """
    return (seed * 1_000_003 + number) * 8 + purpose


def restore_generator(rng: torch.Generator, state: Tensor) -> None:
    """Let a stream go on from `state`, a generator's `get_state`.

    Each kind of device has its own kind of generator. From the state of another one a new stream
    begins: not the numbers that would have come, but none that were there before.
    """
    if len(state) == len(rng.get_state()):
        rng.set_state(state)
        return
    digest = hashlib.sha256(state.cpu().numpy().tobytes()).digest()
    rng.manual_seed(int.from_bytes(digest[:7], "little"))
