"""The memory of a GPU: what its errors mean for a training, and how the memory of a failed computation is freed."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

import torch

from ensemble.errors import OUT_OF_DEVICE_MEMORY, OutOfDeviceMemory, is_out_of_device_memory
from ensemble.members.fold_job import FoldJob

LEAST_MICRO_BATCH = 8
"""The least number of images in a micro-batch. Batch norm takes its statistics from a micro-batch, and its error grows
rapidly in small ones (Wu and He 2018, Group Normalization)."""


@contextlib.contextmanager
def memory_errors(job: FoldJob) -> Iterator[None]:
    """Raise an `OutOfDeviceMemory` that names the fold where the block exhausts the memory of a GPU.

    Raises
    ------
    OutOfDeviceMemory
    """
    try:
        yield
    except OutOfDeviceMemory:
        raise
    except Exception as error:
        if not is_out_of_device_memory(error):
            raise
        remedy = (
            "end other programs on the GPU, or use --jobs 1, and give the same command again to go on; "
            "or train with a smaller --batch-size under another --name"
        )
        where = f"training {job.config.name} fold {job.fold}"
        raise OutOfDeviceMemory(where, OUT_OF_DEVICE_MEMORY, remedy) from error


def release_frames(error: BaseException) -> None:
    """Drop the variables of an error's traceback, so that they do not keep images and activations in memory."""
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__


def release_cache(device: torch.device) -> None:
    """Return the memory that torch keeps for later to the device, where it is whole again."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
