"""The config model of `thera push`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import field_validator

from ensemble.config_fields import RUN, Frozen, option

PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
"""The name of an owner or of a repository on the hub."""


class PushConfig(Frozen):
    """What is uploaded of a run, and where to."""

    name: Annotated[str, option(RUN, "Upload to this model repository of the hub, OWNER/NAME, which may be new.")]
    model: Annotated[
        Path | None,
        option(
            RUN,
            "Upload this .onnx file of thera export, which must be of the run's decision.",
            unset="a new export, export/RUN.onnx in the run's folder",
        ),
    ] = None
    private: Annotated[bool, option(RUN, "Keep the repository private, and upload nothing to one that is public.")] = (
        False
    )
    yes: Annotated[bool, option(RUN, "Upload without a question; needed where there is no terminal.")] = False

    @field_validator("name")
    @classmethod
    def _is_repository(cls, name: str) -> str:
        owner, _, bare = name.partition("/")
        is_valid = PART.fullmatch(owner) and PART.fullmatch(bare) and len(bare) <= 96
        if not is_valid or "--" in name or ".." in name or name.endswith(".git"):
            raise ValueError("must be OWNER/NAME, each of letters, digits and single - . _")
        return name
