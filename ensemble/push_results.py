"""What `thera push` returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Upload:
    """A file that is uploaded.

    Attributes
    ----------
    name : str
        In the repository.
    size : int
        In bytes.
    sha256 : str
        Of its bytes.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class PushResult:
    """An upload to a model repository of the hub.

    Attributes
    ----------
    run : Path
    address : str
        The page of the repository.
    commit : str
        The hash of the commit, in which all files are.
    private : bool
    is_new : bool
        Whether the repository was created.
    uploads : tuple of Upload
    """

    run: Path
    address: str
    commit: str
    private: bool
    is_new: bool
    uploads: tuple[Upload, ...]
