"""Check files in the cache of the Hugging Face hub, whose client compares their lengths alone."""

from __future__ import annotations

import re
from pathlib import Path

import timm
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from ensemble.errors import ArtifactError
from ensemble.runs.files import file_sha256
from ensemble.runs.member import HubFile

FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""The names that files of weights have in the repositories that timm reads, the preferred one first."""


def hub_file(name: str) -> HubFile | None:
    """Return the file in the hub's cache that an architecture is loaded from; None where it is not there.

    Parameters
    ----------
    name : str
        As for `refuse_damaged`.
    """
    found = _cached(name)
    if found is None:
        return None
    repository, path = found
    blob = path.resolve()
    sha256 = blob.name if re.fullmatch("[0-9a-f]{64}", blob.name) else file_sha256(blob)
    return HubFile(name, repository, path.parent.name, path.name, sha256)


def refuse_damaged(name: str) -> None:
    """Compare the cached weights of an architecture with the SHA-256 by which the hub names them.

    The cache keeps each large file under its SHA-256, as the hub states it (``blobs/`` in a repository's folder). A
    file that is not there, or has no such name, is not checked.

    Parameters
    ----------
    name : str
        An architecture of timm, or ``hf-hub:OWNER/NAME``.

    Raises
    ------
    ArtifactError
        A cached file has other content; it is named.
    """
    found = _cached(name)
    blob = None if found is None else found[1].resolve()
    if blob is not None and re.fullmatch("[0-9a-f]{64}", blob.name) and file_sha256(blob) != blob.name:
        problem = "is damaged: its SHA-256 is not the one that the hub states"
        raise ArtifactError(blob, problem, "delete it; it is then downloaded again")


def _cached(name: str) -> tuple[str, Path] | None:
    """Return the repository of an architecture's weights and the path of the cached file that timm loads."""
    if re.match("hf[-_]hub:", name):
        repository = name.partition(":")[2].partition("@")[0]
    else:
        repository = getattr(timm.get_pretrained_cfg(name, allow_unregistered=True), "hf_hub_id", None) or ""
    if not repository:
        return None
    try:
        cached = [try_to_load_from_cache(repository, filename) for filename in FILES]
    except HFValidationError:  # no repository can have the name; whoever loads the network says so
        return None
    return next(((repository, Path(path)) for path in cached if isinstance(path, str)), None)
