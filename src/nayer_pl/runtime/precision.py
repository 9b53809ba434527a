"""The fastest number format of this machine that does not make results worse."""

from collections.abc import Mapping
from typing import Any

import torch


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
        tell = getattr(torch.cpu, "get_capabilities", dict)  # older torch does not
        capabilities: Mapping[str, Any] = tell()
        amd = str(capabilities.get("cpu_name", "")).startswith("AMD")
        native = bool(capabilities.get("amx_bf16") or (amd and capabilities.get("avx512_bf16")))
    return "bf16-mixed" if native else "32-true"


def fused_dtype(precision: Any) -> torch.dtype | None:
    """The dtype of the fused layers of a frozen teacher (`networks.folding`).

    Args:
        precision: `precision` of a `lightning.Trainer`.

    Returns:
        The dtype; None where layers cannot be fused.
    """
    known = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
    return known.get(str(precision))
