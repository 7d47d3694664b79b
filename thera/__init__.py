"""thera: images and a 0/1 label file in; the label file with the lowest half total error rate (HTER) out.

The public names are those of the package `ensemble`, which is installed beside this one:

>>> import thera
>>> thera.MemberConfig is __import__("ensemble").MemberConfig
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ensemble import *  # noqa: F403
    from ensemble import __version__ as __version__


def __getattr__(name: str) -> Any:
    if name.startswith("__") and name not in ("__all__", "__version__"):  # attributes that the import system looks up
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    package = _package()
    if name not in ("__all__", *package.__all__):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(package, name)


def __dir__() -> list[str]:
    return sorted(_package().__all__)


def _package() -> Any:
    """Return the package `ensemble` beside this one.

    Raises
    ------
    ImportError
        Another module of that name comes first on the path.
    """
    from pathlib import Path

    import ensemble

    file = getattr(ensemble, "__file__", None)
    if file is None or Path(file).resolve().parent != Path(__file__).resolve().parents[1] / "ensemble":
        raise ImportError(
            f"another module named ensemble hides thera's own: {file}; rename it, or remove it from sys.path"
        )
    return ensemble
