"""Imports timm without torch's compiler, which would take half of the time of the import in every process.

`torch._dynamo` takes several seconds. Two places load it although no network here needs it: torchvision's `roi_align`,
which imports `is_compile_supported` from `torch._dynamo.utils` although it means to load dynamo lazily (torchvision
0.26 to 0.29), and timm's `naflexvit`, which decorates a method with `torch.compiler.disable` (timm 1.0.20 and newer).
While timm is imported, modules of these names stand in. They load the real functions when these are called, so that
torch.compile works as ever.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ensemble.machine import provide_cache_folder

NAMES = ("torch._dynamo", "torch._dynamo.utils")
"""The modules that are stood in for, the package first."""


def import_timm() -> None:
    """Import timm; with torch's compiler only where that is imported already."""
    if "timm" in sys.modules:
        return
    provide_cache_folder()  # the hub's client, which timm imports, chooses its own for good
    import torch  # noqa: F401  it must be complete before a part of it is replaced

    if NAMES[0] not in sys.modules:
        package, utils = map(ModuleType, NAMES)
        package.disable, utils.is_compile_supported = _disable, _is_compile_supported  # type: ignore[attr-defined]
        sys.modules.update(zip(NAMES, (package, utils), strict=True))
        try:
            import timm
        finally:
            for name in NAMES:
                del sys.modules[name]
    import timm  # noqa: F401


def _is_compile_supported(device_type: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device_type))


def _disable(fn: Callable[..., Any] | None = None, *given: Any, **options: Any) -> Any:
    """Stand in for `torch._dynamo.disable`: the real decorator is applied at the first call."""
    if fn is None:
        return functools.partial(_disable, *given, **options)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        return decorated()(*args, **kwargs)

    @functools.cache
    def decorated() -> Callable[..., Any]:
        from torch._dynamo import disable

        return disable(fn, *given, **options)  # type: ignore[no-any-return, no-untyped-call]

    return call


import_timm()
