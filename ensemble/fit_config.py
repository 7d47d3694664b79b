"""The config model of `thera fit`: a run whose members and epochs thera chooses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import field_validator, model_validator

from ensemble.config import DataConfig
from ensemble.config_fields import DATA, RUN, TRAINING, BadLabel, Force, OutFile, Seed, one_or_several, option


class FitConfig(DataConfig):
    """The images, the time and the options from which `thera fit` makes a whole run."""

    predict: Annotated[
        tuple[Path, ...] | None,
        option(DATA, "Label these images, which may be given as to `thera predict`.", unset="none"),
    ] = None
    out: OutFile = None
    bad_label: BadLabel = None
    force: Force = False
    run: Annotated[
        Path | None,
        option(RUN, "Use this folder for the run.", unset="a new folder in checkpoints/, named after the images"),
    ] = None
    seed: Seed = 0
    folds: Annotated[
        int | None,
        option(RUN, "Cross-validate with this many folds.", unset="5; 3 for many images on a CPU", ge=2, le=100),
    ] = None
    time: Annotated[
        str | None,
        option(
            RUN,
            "Take this time for everything, such as 30m, 2h or 1h30m; it chooses members and epochs.",
            unset="no limit",
        ),
    ] = None
    epochs: Annotated[
        int | None,
        option(TRAINING, "Train every member for this many epochs.", unset="chosen by the number of images", ge=1),
    ] = None

    _paths = field_validator("predict", mode="before")(one_or_several)

    @field_validator("time")
    @classmethod
    def _is_a_duration(cls, value: str | None) -> str | None:
        if value is not None and not _seconds(value):
            raise ValueError(f"must be a duration such as 30m, 2h or 1h30m; got {value[:80]}")
        return value

    @model_validator(mode="after")
    def _one_choice_of_epochs(self) -> Self:
        if self.time is not None and self.epochs is not None:
            raise ValueError("time chooses the epochs: leave out time or epochs")
        if self.out is not None and self.predict is None:
            raise ValueError("out needs images to label: give predict, too")
        return self

    @property
    def seconds(self) -> int | None:
        """The time in seconds."""
        return None if self.time is None else _seconds(self.time)


def _seconds(duration: str) -> int:
    """Return the seconds of a duration such as 1h30m; 0 where the text is none.

    >>> _seconds("1h30m"), _seconds("90s"), _seconds("2")
    (5400, 90, 0)
    """
    parts = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,5})m)?(?:(\d{1,6})s)?", duration.strip())
    hours, minutes, seconds = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0)
    return 3600 * hours + 60 * minutes + seconds
