"""The list of a prediction in shards. Tars are listed by several processes, because each image's header is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ensemble.data.files import reading
from ensemble.data.shard_lists import list_images, tars_of
from ensemble.data.source import set_name
from ensemble.data.tars import TarImage, images_of_tar
from ensemble.errors import printable
from ensemble.predict_config import PredictConfig
from ensemble.progress import Say, progress
from ensemble.runs.files import refuse_differences
from ensemble.runs.locks import locked, refuse_unshared
from ensemble.runs.run import RunFacts
from ensemble.runs.shards import ShardFolder, ShardPlan, read_tar_list, write_tar_list

if TYPE_CHECKING:
    from ensemble.members.parallel import Resources
    from ensemble.members.processes import Progress

PROCESSES_PAY = 2**31
"""Bytes of tars from which several processes list them. With images of 3 KB, one process takes 20 s for so many, and
other processes some seconds to start."""


def planned(folder: ShardFolder, config: PredictConfig, facts: RunFacts, resources: Resources, say: Say) -> ShardPlan:
    """Return the plan of the folder; list the images where there is none yet."""
    images = tuple(os.path.abspath(path) for path in config.images)
    with locked(folder.folder, wait=True, say=say):
        folder.remove_orphans()
        plan = folder.plan()
        if plan is None:
            say(f"listing the images of {', '.join(map(printable, config.images[:3]))}")
            lists = _list_tars(folder, config, resources)

            def images_of(tar: Path) -> Iterator[TarImage]:
                return read_tar_list(lists[tar]) if tar in lists else images_of_tar(tar)

            listed = list_images(config, facts.class_count, images_of)
            with progress(0, "list") as bar:
                plan = folder.write_plan(images, listed, config.follow_links, bar)
    given = {"images": list(images), "follow-links": config.follow_links}
    stored = {"images": list(plan.images), "follow-links": plan.follow_links}
    refuse_differences(folder.folder, stored, given, "give another folder as --shards")
    for note in plan.notes:
        say(f"note: {plan.where}: {note}")
    say(f"{plan.n} images in {plan.shards} shard{'s' * (plan.shards > 1)} from {plan.where}")
    return plan


def _list_tars(folder: ShardFolder, config: PredictConfig, resources: Resources) -> dict[Path, Path]:
    """List each tar in a file of its own, in parallel, where that saves time; return the lists by their tars.

    A list that a killed process has finished is kept.
    """
    from ensemble.members.devices import CPU
    from ensemble.members.processes import PROCESS_PAYS

    tars = tars_of(config)
    with reading(printable(set_name(config.images))):
        if len(tars) < 2 or sum(tar.stat().st_size for tar in tars) < PROCESSES_PAY:
            return {}
        lists = {tar: folder.tar_list(tar).absolute() for tar in tars}
    calls = [(tar.absolute(), path) for tar, path in lists.items() if not path.exists()]
    with resources.pool() as pool, progress(0, "read tars") as bar:
        for _ in pool.run(list_tar, calls, pool.slots(PROCESS_PAYS, CPU, resources.jobs), bar):
            pass
    return lists


def list_tar(tar: Path, path: Path, bar: Progress) -> None:
    """Write the images of a tar to a file.

    Parameters
    ----------
    tar, path : Path
    bar : Progress
        Advanced by one for each image.

    Raises
    ------
    DataError
        As `images_of_tar`.
    """
    refuse_unshared(path.parents[2])  # the command holds that folder while images are listed
    write_tar_list(path, images_of_tar(tar), bar.advance)
