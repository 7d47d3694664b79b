"""Find and check an architecture's files in the cache of the Hugging Face hub, whose client compares lengths alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import timm
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from ensemble.errors import ArtifactError
from ensemble.runs.files import file_sha256
from ensemble.runs.member import HubFile

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The names that the file of weights has in the repositories that timm reads, the preferred one first."""

CONFIG = "config.json"
"""The file of a repository that names its architecture."""


@dataclass(frozen=True)
class HubSource:
    """Where in the model hub an architecture is.

    Attributes
    ----------
    name : str
        The architecture, with the tag of its weights if it has one.
    repository, revision : str
        The revision is a branch, a tag or a commit.
    weights : tuple of str
        The names that the file of weights may have, the preferred one first.
    in_hub : bool
        Whether the repository also names the architecture, which then is not one of timm's names.
    custom_load : bool or str
        How timm reads the weights.
    """

    name: str
    repository: str
    revision: str = constants.DEFAULT_REVISION
    weights: tuple[str, ...] = WEIGHTS
    in_hub: bool = False
    custom_load: bool | str = False

    def at(self, revision: str) -> Self:
        return replace(self, revision=revision)

    @property
    def address(self) -> str:
        """The repository and the revision as timm writes them."""
        return f"{self.repository}@{self.revision}"

    def cached(self, names: Sequence[str] = ()) -> Path | None:
        """Return the first of some files that is in the cache, by default of the weights; None where none is."""
        for name in names or self.weights:
            path = try_to_load_from_cache(self.repository, name, revision=self.revision)
            if isinstance(path, str):
                return Path(path)
        return None

    def refuse_damaged(self) -> None:
        """Compare the cached weights with the SHA-256 by which the hub names them.

        The cache keeps each large file under its SHA-256, as the hub states it (``blobs/`` in a repository's folder). A
        file that is not there, or has no such name, is not checked.

        Raises
        ------
        ArtifactError
            A cached file has other content; it is named.
        """
        path = self.cached()
        blob = None if path is None else path.resolve()
        if blob is not None and _is_sha256(blob.name) and file_sha256(blob) != blob.name:
            problem = "is damaged: its SHA-256 is not the one that the hub states"
            raise ArtifactError(blob, problem, "delete it; it is then downloaded again")


def hub_source(name: str, address: str | None = None) -> HubSource | None:
    """Return where an architecture and its weights are in the hub; None where they are not there.

    Parameters
    ----------
    name : str
        An architecture of timm, with or without a tag, or ``hf-hub:OWNER/NAME`` with or without ``@REVISION``.
    address : str, optional
        The repository and commit to use instead of the architecture's own, as in `HubSource.address`.
    """
    facts: Any = None
    if in_hub := bool(re.match("hf[-_]hub:", name)):
        own = name.partition(":")[2]
    else:
        facts = timm.get_pretrained_cfg(name, allow_unregistered=True)
        own = getattr(facts, "hf_hub_id", None) or ""
    repository, _, revision = (address or own).partition("@")
    given, custom_load = getattr(facts, "hf_hub_filename", None), getattr(facts, "custom_load", False)
    weights = _names(given, bool(custom_load)) if given else WEIGHTS
    source = HubSource(name, repository, revision or constants.DEFAULT_REVISION, weights, in_hub, custom_load)
    try:
        source.cached()
    except HFValidationError:  # no repository can have the name; the network's construction refuses it
        return None
    return source


def _names(name: str, exactly: bool) -> tuple[str, ...]:
    """Return the names under which timm looks for a file: first for that of safetensors, unless `exactly` is set."""
    if exactly or not name.endswith(".bin"):
        return (name,)
    safe = {"pytorch_model.bin": "model.safetensors", "open_clip_pytorch_model.bin": "open_clip_model.safetensors"}
    return safe.get(name, name.removesuffix(".bin") + ".safetensors"), name


def hub_file(name: str, address: str | None = None) -> HubFile | None:
    """Return the file in the hub's cache that an architecture is loaded from; None where it is not there.

    Parameters
    ----------
    name, address : str
        As for `hub_source`.
    """
    source = hub_source(name, address)
    path = None if source is None else source.cached()
    if source is None or path is None:
        return None
    blob = path.resolve()
    sha256 = blob.name if _is_sha256(blob.name) else file_sha256(blob)
    return HubFile(name, source.repository, path.parent.name, path.name, sha256)


def _is_sha256(name: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", name) is not None
