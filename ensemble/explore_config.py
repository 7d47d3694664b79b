"""The config model of `thera explore`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import field_validator

from ensemble.config_fields import (
    DATA,
    RUN,
    Classes,
    Exif,
    FollowLinks,
    Frozen,
    ImageColumn,
    Images,
    LabelColumn,
    LabelFile,
    Positive,
    Resize,
    one_or_several,
    option,
)


class ExploreConfig(Frozen):
    """The images to look at, and where the page is written."""

    images: Images
    labels: LabelFile = None
    against: Annotated[
        tuple[Path, ...] | None,
        option(
            DATA, "Read other images, such as those to label, and list the ones that are in both sets.", unset="none"
        ),
    ] = None
    classes: Classes = None
    positive: Positive = None
    image_column: ImageColumn = None
    label_column: LabelColumn = None
    follow_links: FollowLinks = False
    exif: Exif = "ignore"
    resize: Resize = None
    out: Annotated[
        Path | None,
        option(
            DATA,
            "Write the page to this file, and the table beside it with the suffix .csv.",
            unset="explore.html in the run's folder, or in the current folder",
        ),
    ] = None
    force: Annotated[bool, option(DATA, "Replace files although thera explore did not write them.")] = False
    run: Annotated[
        Path | None,
        option(
            RUN,
            "Write into the folder of this run, and keep the decoded images there for its training.",
            unset="the images are decoded into a temporary folder",
        ),
    ] = None

    _paths = field_validator("against", mode="before")(one_or_several)
