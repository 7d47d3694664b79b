"""The results of probes in the user's cache folder, and what they hold for: machine, libraries and compilers."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch

from ensemble.errors import ResourceError
from ensemble.machine import cache_folder, cpu_model
from ensemble.runs import files


def machine() -> tuple[str, ...]:
    """Return the names of this machine and the versions of torch and timm."""
    return platform.node(), cpu_model(), f"torch {torch.__version__}", f"timm {timm.__version__}"


def compiler() -> str:
    """Return what torch.compile finds here: the path of a C++ compiler, which Triton needs too, and Triton itself."""
    paths = (os.environ.get("CXX"), *map(shutil.which, ("g++", "clang++", "cl")))
    path = next(filter(None, paths), "no compiler")
    return f"{path}, {'Triton' if importlib.util.find_spec('triton') else 'no Triton'}"


def cache_file() -> Path:
    return cache_folder() / "thera" / "probes.json"


def read_cache() -> dict[str, Any]:
    """Return the cache, or an empty one if it cannot be read, because everything can be measured again."""
    try:
        stored = json.loads(cache_file().read_text())
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def write_cache(results: dict[str, Any]) -> None:
    """Write the cache. If that is not possible, nothing is lost: the next command measures again."""
    with suppress(OSError, ResourceError):
        files.write_whole(cache_file(), json.dumps(results, indent=2, sort_keys=True).encode())
