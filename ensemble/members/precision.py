"""Name the number formats of networks, and check which of them this CPU supports."""

from __future__ import annotations

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The precisions by the names that options and plans use."""


def onednn_computes(dtype: torch.dtype) -> bool:
    """Return whether oneDNN has layers in this format on this CPU; bfloat16 needs AVX-512 or a similar extension."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
