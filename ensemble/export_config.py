"""The config model of `thera export`, and what `thera predict` labels images with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import field_validator, model_validator

from ensemble.config_fields import DATA, DECISION, RUN, FollowLinks, Frozen, one_or_several, option


class ExportConfig(Frozen):
    """What is exported of a run, and into which file."""

    out: Annotated[
        Path | None,
        option(
            RUN,
            "Write the model to this file, with the suffix .onnx, and its facts beside it with the suffix .json.",
            unset="export/NAME.onnx in the run's folder, where NAME is that of the folder",
        ),
    ] = None
    fold: Annotated[
        int | None,
        option(
            RUN,
            "Write only the fold model of this fold; the expected error is that of one fold model, out of fold.",
            ge=0,
            unset="the mean of all fold models",
        ),
    ] = None
    half: Annotated[bool, option(RUN, "Save the weights in half precision, in half of the bytes.")] = False
    openvino: Annotated[
        bool,
        option(RUN, "Write the model for OpenVINO too, as NAME.xml and NAME.bin, checked in the same way."),
    ] = False
    views: Annotated[
        Literal["auto", "plain", "tta"],
        option(
            DECISION,
            "Average the logits of the image alone, or with its mirror image; auto does as the run's predictions.",
        ),
    ] = "auto"
    corrected_on: Annotated[
        str | None,
        option(
            DECISION,
            "Take the threshold, as it was corrected for averaging, from this folder of the run's predictions.",
            unset="the one with the most images",
        ),
    ] = None
    images: Annotated[
        tuple[Path, ...] | None,
        option(
            DATA,
            "Compare the labels of torch and of the model on these images.",
            unset="those that the run keeps decoded",
        ),
    ] = None
    follow_links: FollowLinks = False
    force: Annotated[bool, option(RUN, "Replace the file although thera export did not write it.")] = False

    _paths = field_validator("images", mode="before")(one_or_several)

    @model_validator(mode="after")
    def _fold_alone(self) -> Self:
        if self.fold is not None and self.corrected_on is not None:
            raise ValueError("one fold model needs no correction for averaging: give fold or corrected_on, not both")
        return self


class LabelledBy(Frozen):
    """What `thera predict` labels images with: a run, or a model that was exported from one."""

    run: Annotated[Path | None, option(RUN, "Label with the run in this folder.", unset="none")] = None
    model: Annotated[
        Path | None,
        option(RUN, "Label with this .onnx file of thera export, without torch and without the run.", unset="none"),
    ] = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.run is None) == (self.model is None):
            raise ValueError("give --run or --model" + (", not both" if self.run is not None else ""))
        return self
