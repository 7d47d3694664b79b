"""The config model of `thera serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ensemble.config_fields import DATA, RUN, SPEED, Frozen, option


class ServeConfig(Frozen):
    """What is served, at which address, and within which limits."""

    model: Annotated[Path, option(RUN, "Serve this .onnx file of thera export.")]
    host: Annotated[
        str, option(RUN, "Listen at this address; 0.0.0.0 is all of them, which lets other machines in.")
    ] = "127.0.0.1"
    port: Annotated[int, option(RUN, "Listen at this port; 0 takes a free one.", ge=0, le=65535)] = 8000
    max_images: Annotated[int, option(DATA, "Refuse requests of more images.", ge=1, le=10_000)] = 64
    max_megabytes: Annotated[float, option(DATA, "Refuse requests of more megabytes.", gt=0, le=1000)] = 32
    max_megapixels: Annotated[float, option(DATA, "Refuse images of more megapixels.", gt=0, le=180)] = 50
    timeout: Annotated[float, option(SPEED, "Give up a request after this many seconds.", gt=0, le=3600)] = 30
    batch_size: Annotated[
        int, option(SPEED, "Compute at most this many images of waiting requests together.", ge=1, le=1024)
    ] = 32
    queue: Annotated[
        int, option(SPEED, "Refuse requests while this many images wait, so that memory is bounded.", ge=1, le=100_000)
    ] = 512
    threads: Annotated[
        int | None, option(SPEED, "Compute with this many threads.", unset="one for each core", ge=1, le=1024)
    ] = None
