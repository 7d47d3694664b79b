"""Imports torchvision without torch's compiler, which takes half of the time in which timm is imported.

timm imports torchvision, and `torchvision/ops/roi_align.py` (0.26 to 0.29) imports `is_compile_supported` from
`torch._dynamo.utils`, for a function that no network here calls. Its own comment says that dynamo is to be imported
lazily. During the import, a module of that name stands in; the function loads the real one when it is called.
"""

from __future__ import annotations

import sys
from types import ModuleType

NAMES = ("torch._dynamo", "torch._dynamo.utils")
"""The modules that are stood in for, the package first."""


def import_torchvision() -> None:
    """Import torchvision; do nothing where it, or torch's compiler, is imported already."""
    if "torchvision" in sys.modules or NAMES[0] in sys.modules:
        return
    import torch  # noqa: F401  it must be complete before a part of it is replaced

    package, utils = map(ModuleType, NAMES)
    utils.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    sys.modules.update(zip(NAMES, (package, utils), strict=True))
    try:
        import torchvision  # type: ignore[import-untyped, unused-ignore]  # noqa: F401
    finally:
        for name in NAMES:
            del sys.modules[name]


def _is_compile_supported(device_type: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device_type))


import_torchvision()
