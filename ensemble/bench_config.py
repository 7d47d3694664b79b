"""The config model of `thera bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from ensemble.config import SHORT_NAMES
from ensemble.config_fields import DATA, RUN, Device, Frozen, LabelFile, option


class BenchConfig(Frozen):
    """What `thera bench` measures."""

    subjects: Annotated[tuple[Literal["train", "predict", "decide", "load"], ...], option(RUN, "Measure these.")] = (
        "train",
        "predict",
        "decide",
        "load",
    )
    arch: Annotated[tuple[str, ...], option(RUN, "Measure this architecture; repeat the option for more.")] = tuple(
        SHORT_NAMES
    )
    images: Annotated[Path | None, option(DATA, "Use this folder of image files.", unset="generated images")] = None
    labels: LabelFile = None
    limit: Annotated[int, option(DATA, "Use this many images.", ge=256)] = 2048
    rounds: Annotated[int, option(RUN, "Repeat each measurement this many times.", ge=1)] = 5
    device: Device = "auto"
