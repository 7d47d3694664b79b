"""Checks of a command's options that need no heavy library, so that a mistake is refused within a second."""

from __future__ import annotations

import difflib
import os
import re
import shutil
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ensemble.commands.starting_weights import is_member_folder
from ensemble.config import WITHOUT_WEIGHTS, ComputeConfig, MemberConfig
from ensemble.config_fields import DEVICE_PATTERN, DEVICES
from ensemble.data.dataset import Source
from ensemble.data.folds import refuse_small_classes
from ensemble.data.overlay import read_overlay
from ensemble.data.source import open_unlabelled
from ensemble.errors import ArtifactError, ConfigError, DataError, printable
from ensemble.extras import refuse_missing
from ensemble.predict_config import PredictConfig
from ensemble.progress import Say
from ensemble.runs.label_files import checked_target
from ensemble.runs.run import Run

REGISTERED = re.compile(r"^@register_model\b.*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
"""Finds the architectures that a source file of timm registers."""

DEPRECATED = re.compile(r"^register_model_deprecations\((.*?)^}", re.MULTILINE | re.DOTALL)
"""Finds the table of former names in a source file of timm: `'former': 'present'` a line."""


def check_compute(compute: ComputeConfig) -> None:
    """Refuse a device that does not exist, as far as that is known without torch, and packages that are missing.

    Raises
    ------
    ConfigError
        As `check_device`; or a card of a cluster is named, or a core count without a cluster.
    ResourceError
        The package of the tracker or of the cluster is missing.
    """
    if compute.log is not None:
        refuse_missing(compute.log, f"--log {compute.log}")
    if compute.cluster is None:
        if compute.task_cores is not None:
            raise ConfigError("--task-cores", "is for the tasks of a cluster", "give --cluster, too, or leave it out")
        check_device(compute.device)
        return
    refuse_missing("cluster", f"--cluster {printable(compute.cluster)}")
    if compute.device not in ("auto", "cpu", "cuda"):
        problem = f"must be auto, cpu or cuda with --cluster; got {printable(compute.device)}"
        raise ConfigError("--device", problem, "the cluster chooses the card of each task")


def check_device(device: str) -> None:
    """Refuse a device that does not exist, as far as that is known without torch.

    Raises
    ------
    ConfigError
        It is no name of a device, or CUDA is requested on Linux without an NVIDIA driver, or MPS on no Mac.
    """
    if not re.fullmatch(DEVICE_PATTERN, device):
        raise ConfigError("--device", f"must be {DEVICES}; got {device}")
    if device == "mps" and sys.platform != "darwin":
        raise ConfigError("--device", "mps is not there: it is the GPU of a Mac", "use --device cpu")
    # Under WSL the driver has no /dev/nvidiactl but /dev/dxg; an AMD card of a ROCm build of torch has /dev/kfd.
    drivers = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
    installed = any(map(os.path.exists, drivers)) or shutil.which("nvidia-smi") is not None
    if device.startswith("cuda") and sys.platform == "linux" and not installed:
        raise ConfigError("--device", f"{device} is not there: this machine has no CUDA driver", "use --device cpu")


def check_architecture(name: str) -> None:
    """Refuse an architecture that timm does not know.

    Raises
    ------
    ConfigError
        Similar names are suggested.
    """
    bare = name.partition(".")[0]
    if "timm" not in sys.modules and bare not in timm_names():  # timm itself knows what Python code registered
        near = difflib.get_close_matches(bare, sorted(timm_names()), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "see timm.list_models()"
        raise ConfigError(f"architecture {printable(name)}", "is not known to timm", hint)


def check_prediction(run: Run, config: PredictConfig, classes: int = 2) -> None:
    """Refuse images to label that cannot be listed, and a label file that may not be written.

    `classes` is the number of classes of the run.

    Raises
    ------
    DataError, ConfigError, ResourceError
        As `data.source.open_unlabelled` and `runs.label_files.checked_target`.
    """
    source = open_unlabelled(config, classes)
    checked_target(run, config.out, source.ids, config.force)


def check_members(members: Sequence[MemberConfig]) -> None:
    """Refuse an unknown architecture, and weights that cannot be read.

    Raises
    ------
    ConfigError
        timm does not know the architecture; similar names are suggested.
    ArtifactError
        The weights file is missing or cannot be read.
    """
    for member in members:
        if not member.from_hub:
            check_architecture(member.timm_name)
        if member.weights is None or is_member_folder(member.weights):
            continue
        if not (member.weights.is_file() and os.access(member.weights, os.R_OK)):
            remedy = "give a safetensors file, or the folder of a member"
            raise ArtifactError(printable(member.weights), "is no file that can be read", remedy)


def check_overlays(members: Sequence[MemberConfig], source: Source | None) -> None:
    """Refuse overlays that do not fit the labelled images, as far as these are known already.

    Raises
    ------
    ConfigError
        A member has both an overlay and `clean`.
    DataError
        An overlay cannot be read, or a line of it is not valid.
    """
    for member in members:
        if member.overlay is None:
            continue
        if member.clean:
            problem = "has clean and an overlay, which both change training rows"
            raise ConfigError(f"member {member.name}", problem, "leave one of them out")
        if source is not None and source.labels is not None:
            read_overlay(member.overlay, source.ids, source.labels, source.classes)


@cache
def timm_names() -> frozenset[str]:
    """Return the architectures of the installed timm, read off its source: to import it takes seconds."""
    spec = find_spec("timm")
    assert spec is not None and spec.origin is not None
    names = set(WITHOUT_WEIGHTS)  # ensemble/members/small_cnns.py adds them to those of timm
    for path in (Path(spec.origin).parent / "models").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        names.update(REGISTERED.findall(text))
        for table in DEPRECATED.findall(text):
            names.update(re.findall(r"['\"](\w+)['\"]\s*:", table))
    return frozenset(names)


def check_labels(source: Source, folds: int) -> None:
    """Refuse labels that cannot be split into folds.

    Raises
    ------
    DataError
        There are no labels, a class is absent, or has fewer images than there are folds.
    """
    if source.labels is None:
        is_table = source.where.lower().endswith((".csv", ".parquet"))
        raise DataError(
            source.where, "has no labels", "give --label-column or --labels" if is_table else "give --labels"
        )
    where = source.labels_where or source.where
    refuse_small_classes(source.labels, np.arange(len(source)), folds, where, source.classes)


def announce(source: Source, say: Say) -> None:
    """Say what is read first: the command prints nothing else for some seconds."""
    say(f"reading {len(source)} images from {source.where}")
