"""Random streams, one for every purpose on every rank; and the number format that is fastest."""

import hashlib
from enum import IntEnum
from typing import Any

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

    `number` is the rank; or the epoch, for an order that all ranks share.

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


def fastest_precision(accelerator: str = "auto") -> str:
    """Lightning's "bf16-mixed" where the hardware multiplies bfloat16 faster, else "32-true".

    bfloat16 has float32's range, so no loss is scaled; weights, losses and statistics stay float32.
    Any machine can compute in it, but among CPUs only those with matrix instructions for it (AMX),
    and AMD's with AVX512-BF16 (Zen 4 and newer), are known to be faster; Intel's without AMX are
    slower (benchmarks/README.md).

    Args:
        accelerator: As in `lightning.Trainer`.
    """
    native = False
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator in ("auto", "cpu"):
        # older torch does not tell
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        amd = str(capabilities.get("cpu_name", "")).startswith("AMD")
        native = bool(capabilities.get("amx_bf16") or (amd and capabilities.get("avx512_bf16")))
    return "bf16-mixed" if native else "32-true"


def fused_dtype(precision: Any) -> torch.dtype | None:
    """The dtype of a frozen teacher's fused layers at a trainer's precision; None: not fused."""
    return {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}.get(str(precision))
