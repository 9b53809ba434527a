"""Random streams: one for every purpose on every rank, continued by a resumed run."""

import hashlib
from enum import IntEnum

import torch
from torch import Tensor


class Stream(IntEnum):
    """Purpose of a random stream."""

    BATCHES = 0  # banked images, and their crops
    LABELS = 1  # targets of the images to make
    NOISE = 2  # inputs of a generator, or pixels
    ORDER = 3  # order of real training images
    CROPS = 4  # crops of real training images


def stream_seed(seed: int, number: int, purpose: Stream) -> int:
    """The seed of one stream, different for every purpose, rank and run.

    Args:
        seed: Seed of the run.
        number: The rank; or the epoch, for an order that all ranks share.
        purpose: Purpose of the stream.

    >>> stream_seed(0, 0, Stream.NOISE) != stream_seed(0, 1, Stream.NOISE)
    True
    """
    return (seed * 1_000_003 + number) * 8 + purpose


def restore_generator(rng: torch.Generator, state: Tensor) -> None:
    """Continue a stream from `state`, the `get_state()` of a generator.

    Each kind of device has its own kind of generator. From the state of another kind a new stream
    begins: different numbers, but none of those that were drawn before.
    """
    if len(state) == len(rng.get_state()):
        rng.set_state(state)
        return
    digest = hashlib.sha256(state.cpu().numpy().tobytes()).digest()
    rng.manual_seed(int.from_bytes(digest[:7], "little"))
