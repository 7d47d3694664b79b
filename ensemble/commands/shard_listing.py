"""The list of a prediction in shards. Tars are listed by several processes, because each image's header is read."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ensemble.data.input_files import LIST_WHEN_COMPLETE, InputFile
from ensemble.data.shard_lists import ListedArchive, first_added, found_in, list_images
from ensemble.data.tars import TarImage, images_of_tar
from ensemble.errors import ArtifactError, printable
from ensemble.predict_config import PredictConfig
from ensemble.progress import Say, progress
from ensemble.runs.files import refuse_differences
from ensemble.runs.locks import locked, refuse_unshared
from ensemble.runs.run import RunFacts
from ensemble.runs.shards import ShardFolder, ShardPlan
from ensemble.runs.tar_lists import has_tar_list, read_tar_list, write_tar_list

if TYPE_CHECKING:
    from ensemble.members.parallel import Resources
    from ensemble.members.processes import Progress

PROCESSES_PAY = 2**31
"""Bytes of tars from which several processes list them. With images of 3 KB, one process takes 20 s for so many, and
other processes some seconds to start."""


def planned(folder: ShardFolder, config: PredictConfig, facts: RunFacts, resources: Resources, say: Say) -> ShardPlan:
    """Return the plan of the folder; list the images where there is none yet.

    Raises
    ------
    ArtifactError
        The plan is of other images, or an archive or the manifest was changed, removed or added since it was made.
    """
    images = tuple(os.path.abspath(path) for path in config.images)
    with locked(folder.folder, wait=True, say=say):
        folder.remove_orphans()
        plan = folder.plan()
        is_new = plan is None
        if plan is None:
            say(f"listing the images of {', '.join(map(printable, config.images[:3]))}")
            lists = _list_tars(folder, config, resources)
            listed = list_images(config, facts.class_count, partial(_images_of, folder, lists, say))
            with progress(0, "list") as bar:
                plan = folder.write_plan(images, listed, config.follow_links, bar)
        folder.remove_tar_lists()
    given = {"images": list(images), "follow-links": config.follow_links}
    stored = {"images": list(plan.images), "follow-links": plan.follow_links}
    refuse_differences(folder.folder, stored, given, "give another folder as --shards")
    if not is_new:
        _refuse_changed_inputs(folder, plan, config)
        is_searched_once = plan.plain_files and not plan.from_manifest
        later = "; files that were added later are not in the list" if is_searched_once else ""
        say(f"note: the images were listed at {folder.listed_at()}{later}")
    for note in plan.notes:
        say(f"note: {plan.where}: {note}")
    say(f"{plan.n} images in {plan.shards} shard{'s' * (plan.shards > 1)} from {plan.where}")
    return plan


def _refuse_changed_inputs(folder: ShardFolder, plan: ShardPlan, config: PredictConfig) -> None:
    """Raise `ArtifactError` unless the archives and the manifest are those of the plan.

    Archives that were added are looked for where all images are in archives: to search a tree of plain files again
    would take as long as to list it.
    """
    inputs = folder.read_inputs(plan)
    if inputs:
        with progress(len(inputs), "check", "files") as bar:
            for file in inputs:
                file.check()
                bar.advance()
    if not plan.plain_files and (added := first_added(config, {file.path for file in inputs})):
        problem = f"was added after the images of {printable(folder.folder)} were listed"
        raise ArtifactError(printable(added), problem, "move it elsewhere, or give another folder as --shards")


def _images_of(folder: ShardFolder, lists: Collection[Path], say: Say, tar: ListedArchive) -> Iterator[TarImage]:
    """Return the images of a tar from its list, or from the tar where there is none or where it is damaged."""
    path = folder.tar_list(tar.file).absolute()
    if path in lists:
        try:
            return read_tar_list(path)
        except ArtifactError as error:
            say(f"warning: {printable(error.where)} {error.found}; {printable(tar.path)} is listed again")
    return images_of_tar(tar.path)


def _list_tars(folder: ShardFolder, config: PredictConfig, resources: Resources) -> set[Path]:
    """List each tar in a file of its own, in parallel, where that saves time; return the paths of the lists.

    A list that a killed process has finished is kept.
    """
    from ensemble.members.devices import CPU
    from ensemble.members.processes import PROCESS_PAYS

    found = found_in(config, [])
    if found is None:
        return set()
    tars = dict[Path, InputFile]()
    with progress(0, "search", "files") as bar:
        for each in found:
            bar.advance()
            if isinstance(each, ListedArchive) and not each.is_zip:
                tars[folder.tar_list(each.file).absolute()] = each.file
    if len(tars) < 2 or sum(tar.size for tar in tars.values()) < PROCESSES_PAY:
        return set()
    calls = [(tar, path) for path, tar in tars.items() if not has_tar_list(path)]
    with resources.pool() as pool, progress(0, "read tars") as bar:
        for _ in pool.run(list_tar, calls, pool.slots(PROCESS_PAYS, CPU, resources.jobs), bar):
            pass
    return set(tars)


def list_tar(tar: InputFile, path: Path, bar: Progress) -> None:
    """Write the images of a tar to a file.

    Parameters
    ----------
    tar : InputFile
    path : Path
    bar : Progress
        Advanced by one for each image.

    Raises
    ------
    DataError
        As `images_of_tar`.
    ArtifactError
        The tar is changed while it is listed. Nothing is written, because `path` stands for the tar as it was.
    """
    refuse_unshared(path.parents[2])  # the command holds that folder while images are listed

    def images() -> Iterator[TarImage]:
        yield from images_of_tar(Path(tar.path))
        tar.check(LIST_WHEN_COMPLETE)

    write_tar_list(path, images(), bar.advance)
