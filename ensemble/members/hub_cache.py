"""Check files in the cache of the Hugging Face hub, whose client compares their lengths alone."""

from __future__ import annotations

import re
from pathlib import Path

import timm
from huggingface_hub import try_to_load_from_cache

from ensemble.errors import ArtifactError
from ensemble.runs.files import file_sha256

FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""The names that files of weights have in the repositories that timm reads, the preferred one first."""


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
    if re.match("hf[-_]hub:", name):
        repository = name.partition(":")[2].partition("@")[0]
    else:
        repository = getattr(timm.get_pretrained_cfg(name, allow_unregistered=True), "hf_hub_id", None) or ""
    for filename in FILES if repository else ():
        cached = try_to_load_from_cache(repository, filename)
        if not isinstance(cached, str):
            continue
        blob = Path(cached).resolve()
        if re.fullmatch("[0-9a-f]{64}", blob.name) and file_sha256(blob) != blob.name:
            problem = "is damaged: its SHA-256 is not the one that the hub states"
            raise ArtifactError(blob, problem, "delete it; it is then downloaded again")
        return  # timm loads the first of them
