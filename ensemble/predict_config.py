"""The config models of `thera predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import field_validator, model_validator

from ensemble.config_fields import (
    DATA,
    DECISION,
    SPEED,
    BadLabel,
    FollowLinks,
    Force,
    Frozen,
    ImageColumn,
    OnBad,
    OutFile,
    ToLabel,
    one_or_several,
    option,
)

Correction = Literal["posterior", "none"]
CORRECTIONS: tuple[Correction, ...] = get_args(Correction)
"""How the threshold of one fold model becomes that of their mean (decision/averaging.py); the default first."""

Precision = Literal["auto", "fp32", "bf16", "fp16"]


class PredictOptions(Frozen):
    """How a set of images is labelled."""

    tta: Annotated[bool, option(DECISION, "Average the logits of the image and its mirror image.")] = True
    combine: Annotated[
        Literal["mean", "vote"],
        option(DECISION, "Combine the fold models by the mean of their logits, or by the majority of their labels."),
    ] = "mean"
    correction: Annotated[Correction, option(DECISION, "Correct the threshold for averaging the fold models.")] = (
        "posterior"
    )
    prior: Annotated[
        float | None,
        option(DECISION, "Assume this share of label 0, if it is known to differ.", unset="as in training", gt=0, lt=1),
    ] = None
    cascade: Annotated[
        float | None,
        option(
            SPEED,
            "Skip members and views that settle no label; at one threshold this share of the labels is as without.",
            unset="off",
            gt=0.5,
            lt=1,
        ),
    ] = None
    precision: Annotated[Precision, option(SPEED, "Compute in this number format; auto measures the fastest.")] = "auto"
    convolutions: Annotated[
        Literal["auto", "native", "lowered", "fused"],
        option(SPEED, "Compute convolutions natively, as matrix products or fused; auto measures the fastest."),
    ] = "auto"

    @model_validator(mode="after")
    def _all_vote(self) -> Self:
        if self.combine == "vote" and self.cascade is not None:
            raise ValueError("cascade skips fold models, but with combine: vote all of them vote: leave one out")
        if self.combine == "vote" and self.prior is not None:
            raise ValueError("prior moves the threshold of a mean, and combine: vote has none: leave one out")
        return self


class ShardConfig(Frozen):
    """Where a prediction in shards is written."""

    shards: Annotated[
        Path | None,
        option(
            DATA,
            "Write Parquet files of 65,536 labels each into this folder, from any number of images in bounded memory.",
            unset="no shards",
        ),
    ] = None


class PredictConfig(PredictOptions):
    """A set of images to label, and the label file to write."""

    images: ToLabel
    image_column: ImageColumn = None
    follow_links: FollowLinks = False
    on_bad: OnBad = "error"
    bad_label: BadLabel = None
    out: OutFile = None
    force: Force = False

    _paths = field_validator("images", mode="before")(one_or_several)
