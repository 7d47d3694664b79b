"""The config model of `thera clean`: which labels to show, and what to do with the wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import model_validator

from ensemble.config_fields import RUN, TRAINING, Frozen, option


class CleanConfig(Frozen):
    """What `thera clean` does with the doubtful labels of a run."""

    review: Annotated[bool, option(RUN, "Write the page on which the doubtful labels are reviewed.")] = True
    limit: Annotated[int, option(RUN, "Show this many images on the page, the most doubtful ones.", ge=1, le=5000)] = (
        600
    )
    apply: Annotated[
        Path | None, option(RUN, "Apply the decisions of this table, which the page has saved.", unset="none")
    ] = None
    auto: Annotated[
        Literal["drop", "flip", "weight"] | None,
        option(TRAINING, "Write an overlay for all doubtful labels without a review.", unset="none"),
    ] = None
    out: Annotated[
        Path | None,
        option(
            RUN,
            "Write the reviewed labels to this new file.",
            unset="label_issues/labels.txt or .csv in the run's folder",
        ),
    ] = None

    @model_validator(mode="after")
    def _one_source_of_decisions(self) -> CleanConfig:
        if self.apply is not None and self.auto is not None:
            raise ValueError("apply takes the decisions of a review and auto makes them without one: leave one out")
        if self.out is not None and self.apply is None:
            raise ValueError("out is the file of reviewed labels: give apply with it, or leave it out")
        return self
