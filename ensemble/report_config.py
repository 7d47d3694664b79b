"""The config model of `thera report`."""

from __future__ import annotations

from typing import Annotated

from ensemble.config_fields import RUN, Device, Frozen, option


class ReportConfig(Frozen):
    """What `thera report` computes beside the tables."""

    maps: Annotated[
        bool,
        option(
            RUN,
            "Compute what the members look at: the change of their logits where a square of an image is covered; it "
            "needs their weights and the images.",
        ),
    ] = False
    map_images: Annotated[int, option(RUN, "Average the maps over this many images of each class.", ge=2)] = 200
    device: Device = "auto"
