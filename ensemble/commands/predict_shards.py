"""`thera predict --shards`: labels any number of images in bounded memory. List, logits, decision, labels.

Several processes, also on several machines, may be given the same command: each shard is computed by one of them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble.commands.checks import check_compute
from ensemble.commands.fit_stacker import read_decisions
from ensemble.commands.predict import check_options
from ensemble.commands.shard_jobs import (
    LogitsRequest,
    MemberRequest,
    claimed,
    claimed_by_task,
    label_shard,
    labels_made_from,
    logits_made_from,
    plan_and_request,
    predict_shard,
)
from ensemble.commands.shard_labels import counted, decide, labels_request, write_bad_images, write_label_file
from ensemble.commands.shard_listing import planned
from ensemble.config import ComputeConfig
from ensemble.data.source import set_name
from ensemble.data.store import TRAITS, UPRIGHT
from ensemble.decision.class_decision import ClassDecision
from ensemble.decision.decision import Decision
from ensemble.errors import ConfigError, LockedError, ResourceError, printable
from ensemble.export_config import LabelledBy
from ensemble.extras import refuse_missing
from ensemble.predict_config import PredictConfig
from ensemble.prediction_results import ShardsResult
from ensemble.progress import Bar, Say, progress, silent
from ensemble.reports.prediction_tables import remarks
from ensemble.runs.files import refuse_differences
from ensemble.runs.label_files import LINES, TABLE, checked_path, incomplete, is_table
from ensemble.runs.locks import locked, marked
from ensemble.runs.run import Run, RunFacts
from ensemble.runs.shards import PartNote, Parts, ShardFolder, ShardPlan

if TYPE_CHECKING:
    from ensemble.members.parallel import Resources

OTHERS_S = 2.0
"""Seconds between two looks at shards that other processes compute."""

ATTEMPTS = 2
"""How often a shard is computed. A part that another process removes or damages is made again; where the second one is
not what was written either, the storage fails."""

VISIBLE_WITHIN_S = 60.0
"""How long a shared folder may hide the last part that another machine has written: an NFS client asks the server again
after at most so long."""


def predict_shards(
    by: LabelledBy, shards: Path, config: PredictConfig, compute: ComputeConfig | None = None, say: Say = silent
) -> ShardsResult:
    """Label any number of images in shards of 65,536, in Parquet files that are written one by one.

    Memory does not grow with the number of images. Given again, the command goes on: finished shards are verified, and
    missing or damaged ones are made again with the same bytes. Images are decoded once and their pixels kept nowhere.

    Parameters
    ----------
    by : LabelledBy
        The run that labels them; a model is refused.
    shards : Path
        A new folder, or that of the same prediction.
    config : PredictConfig
        Without `out`, no label file is written.
    compute : ComputeConfig, optional
    say : callable
        Receives notes and warnings, a line each.

    Raises
    ------
    ConfigError
        An option does not go with shards, or the folder holds something else.
    DataError
        Images cannot be used or listed.
    ArtifactError
        The folder was made by another run or from other images, or a file of the run is missing or damaged.
    """
    refuse_missing("train", "thera predict --shards")
    refuse_missing("parquet", "thera predict --shards")
    compute, started = compute or ComputeConfig(), time.time()
    run = _checked(by, config, compute)
    facts, decisions = run.read(), read_decisions(run, say)
    check_options(config, facts)
    check_compute(compute)
    decision = decisions.tta if config.tta else decisions.plain
    folder = ShardFolder(shards)
    folder.check()
    from ensemble.cluster.resources import resources_of

    resources = resources_of(compute, say)
    _refuse_unlike_gpus(resources)
    plan = planned(folder, config, facts, resources, say)
    out = config.out
    if out is not None:
        out = checked_path(run, out, LINES if plan.numbered else TABLE, config.force)
    request = _requested(folder, run, facts, decision, plan, config, resources)
    logits = _logits(folder, run, plan, request, config.on_bad, resources, say)
    _say_traits(logits, facts, say)
    with locked(folder.folder, wait=True, say=say):
        decided = decide(folder, run, plan, request, logits, config)
    labels = _labels(folder, run, plan, logits, decided, say)
    with locked(folder.folder, wait=True, say=say):
        decided = counted(folder, decided, logits, labels)
        bad = write_bad_images(folder, plan, logits)
        written = out is not None and (not bad or is_table(out) or config.bad_label is not None)
        if out is not None and written:
            count = write_label_file(folder, run, plan, out, facts.classes, config.bad_label)
            say(f"{count} labels written to {printable(out)}")
    say(f"{decided.images} labels are in {plan.shards} part{'s' * (plan.shards > 1)} in {printable(shards)}")
    run.record(f"predict --shards {shards}", started)
    for remark in remarks(set_name(config.images), decided):
        say(remark)
    left_out = None
    if bad:
        left_out = incomplete(plan.where, plan.n, bad, folder.bad_images, out, written, facts.class_count)
    return ShardsResult(set_name(config.images), shards, decided, plan.shards, out if written else None, left_out)


def _checked(by: LabelledBy, config: PredictConfig, compute: ComputeConfig) -> Run:
    """Return the run, if nothing is requested that shards do not have."""
    if by.run is None:
        raise ConfigError("--shards", "needs --run; a model labels one set of images at a time", "leave one out")
    if config.cascade is not None:
        raise ConfigError("--cascade", "is not for --shards", "leave one of them out")
    run = Run(by.run)
    run.refuse_targets()
    return run


def _refuse_unlike_gpus(resources: Resources) -> None:
    from ensemble.members.machine_facts import hardware_of

    models = {hardware_of(gpu)["GPU"]: gpu for gpu in reversed(resources.gpus)}
    if len(models) > 1:
        named = ", ".join(f"{gpu} is {printable(model)}" for model, gpu in models.items())
        problem = f"names GPUs of several models ({named}), whose logits differ in their last digits"
        raise ConfigError("--device", problem, f"give one, such as --device {resources.gpus[0]}")


def _requested(
    folder: ShardFolder,
    run: Run,
    facts: RunFacts,
    decision: Decision | ClassDecision,
    plan: ShardPlan,
    config: PredictConfig,
    resources: Resources,
) -> LogitsRequest:
    """Return what the logits are made from; the plans of the networks are chosen once, for all machines."""
    from ensemble.members.machine_facts import deciding_facts
    from ensemble.members.plans import Plan
    from ensemble.members.predictor import choose_spec

    device, names, passes, pool = resources.device, decision.stacker.members, plan.n * facts.folds, resources.pool()
    forced = {"precision": config.precision, "convolutions": config.convolutions}
    machine = pool.call(deciding_facts, device)

    def request(plans: Sequence[Plan]) -> LogitsRequest:
        members = tuple(
            MemberRequest(
                name,
                tuple(run.member(name).weights_sha256(fold) for fold in range(facts.folds)),
                plan.precision,
                plan.convolutions,
            )
            for name, plan in zip(names, plans, strict=True)
        )
        return LogitsRequest(
            run=str(run.folder),
            members=members,
            views=decision.views,
            size=(facts.size[0], facts.size[1]),
            resize=facts.resize,
            exif=facts.exif,
            classes=facts.class_count,
            **forced,
            device=device.type,
            machine=machine,
        )

    with locked(folder.folder, wait=True):
        stored = folder.read_request(LogitsRequest)
        if stored is not None and tuple(member.name for member in stored.members) == names:
            plans = [Plan(member.precision, member.convolutions) for member in stored.members]
        else:
            plans = []
            for name in names:
                member = run.member(name)
                member.check_config()
                of_member = member.read()
                config_of, as_trained = of_member.current_config, Plan(of_member.precision, of_member.convolutions)
                given = (config_of, as_trained, passes, 1, device, facts.size[0], facts.class_count, forced)
                plans.append(pool.call(choose_spec, *given).plan)
        now = request(plans)
        if stored is None:
            folder.write_request(now)
            return now
    before, after = ({**_plain(each), "run": ""} for each in (stored, now))
    refuse_differences(folder.folder, before, after, "give another folder as --shards")
    return stored


def _plain(request: LogitsRequest) -> dict[str, Any]:
    members = {f"member {each.name}": list(each.weights_sha256) for each in request.members}
    others = {name: getattr(request, name) for name in LogitsRequest.__dataclass_fields__}
    machine = others.pop("machine")
    del others["members"]
    return {**others, **machine, **members}


# --- the work ---------------------------------------------------------------------------------------------------------


def logits_done(folder: ShardFolder, index: int) -> bool:
    """Return whether the logits of a shard are there and unchanged."""
    plan, request = plan_and_request(folder)
    return folder.logits.note(index, logits_made_from(plan, request, index)) is not None


def _logits(
    folder: ShardFolder,
    run: Run,
    plan: ShardPlan,
    request: LogitsRequest,
    on_bad: str,
    resources: Resources,
    say: Say,
) -> list[PartNote]:
    """Compute the logits of all shards that are missing, and return the notes of all."""
    from ensemble.machine import available_cores
    from ensemble.members.inference import BATCH

    def note(index: int, tell: Say = silent) -> PartNote | None:
        return folder.logits.note(index, logits_made_from(plan, request, index), tell)

    passes = sum(len(member.weights_sha256) for member in request.members) * len(request.views)
    batches = plan.n * passes // BATCH // len(available_cores())

    def compute(indices: Sequence[int], bar: Bar) -> list[int]:
        arguments = (run.folder.absolute(), resources.device, on_bad)  # of a cluster, another process has another cwd
        with resources.pool() as pool, marked(folder.folder) as mark:
            common = (mark, predict_shard, logits_done, folder.folder.absolute())
            calls = [(*common, index, *arguments) for index in indices]
            done = dict(pool.run(claimed_by_task, calls, pool.slots(batches, resources.device, resources.jobs), bar))
        return [index for position, index in enumerate(indices) if not done[position]]

    return _all_done(folder, folder.logits, plan, "predict", "views", passes, note, compute, say)


def _labels(
    folder: ShardFolder, run: Run, plan: ShardPlan, logits: Sequence[PartNote], decided: Any, say: Say
) -> list[PartNote]:
    """Write the labels of all shards that are missing, and return the notes of all."""
    request = labels_request(decided)

    def note(index: int, tell: Say = silent) -> PartNote | None:
        return folder.labels.note(index, labels_made_from(logits[index], request), tell)

    def compute(indices: Sequence[int], bar: Bar) -> list[int]:
        left = []
        for index in indices:
            arguments = (run.folder, logits[index], request)
            is_done = claimed(label_shard, lambda _, at: note(at) is not None, folder.folder, index, *arguments)
            left += [] if is_done else [index]
            bar.advance(len(plan.images_in(index)))
        return left

    return _all_done(folder, folder.labels, plan, "label", "images", 1, note, compute, say)


def _all_done(
    folder: ShardFolder,
    parts: Parts,
    plan: ShardPlan,
    what: str,
    unit: str,
    passes: int,
    note: Callable[..., PartNote | None],
    compute: Callable[[Sequence[int], Bar], list[int]],
    say: Say,
) -> list[PartNote]:
    """Compute shards until all are done, by this process or by others, and return their notes.

    `note` returns the note of a finished shard, and `compute` the shards among some that others compute.

    Raises
    ------
    ResourceError
        A part was to be computed twice, and then it was missing or another file when it was read.
    """
    computed = Counter[int]()
    while True:
        notes = [note(index, say) for index in range(plan.shards)]
        missing = [index for index, of_shard in enumerate(notes) if of_shard is None]
        if not missing:
            return [of_shard for of_shard in notes if of_shard is not None]
        failed = [index for index in missing if computed[index] == ATTEMPTS]
        if failed and not _is_seen(failed, note):
            problem = f"is missing, or not what was written, after {ATTEMPTS} attempts"
            raise ResourceError(parts.path(failed[0]), problem, "check the storage; the same command goes on")
        with progress(plan.n * passes, what, unit) as bar:
            bar.skip(passes * (plan.n - sum(len(plan.images_in(index)) for index in missing)))
            _compute_missing(folder, missing, note, compute, bar)
        computed.update(missing)


def _is_seen(indices: Sequence[int], note: Callable[..., PartNote | None]) -> bool:
    """Return whether the parts of all these shards appear within `VISIBLE_WITHIN_S`."""
    until = time.monotonic() + VISIBLE_WITHIN_S
    while missing := [index for index in indices if note(index) is None]:
        if time.monotonic() > until:
            return False
        indices = missing
        time.sleep(OTHERS_S)
    return True


def _compute_missing(
    folder: ShardFolder,
    missing: Sequence[int],
    note: Callable[..., PartNote | None],
    compute: Callable[[Sequence[int], Bar], list[int]],
    bar: Bar,
) -> None:
    """Compute shards, and wait for those that other processes compute; their parts are not verified."""
    while missing:
        missing = compute(missing, bar)
        if missing:
            holders = (_holder(folder, index) for index in missing)
            holder = next((f": {each}" for each in holders if each is not None), "")
            what = f"{len(missing)} shard{'s' * (len(missing) > 1)}"
            bar.say(f"note: waiting for {what} that other processes compute{holder}")
        while missing:
            bar.advance(0)
            time.sleep(OTHERS_S)
            missing = [index for index in missing if note(index) is None]
            if any(_holder(folder, index) is None for index in missing):
                break  # their process has ended without finishing them


def _holder(folder: ShardFolder, index: int) -> LockedError | None:
    """Return which process works on a shard, and what to do if it has died; None where no process does."""
    try:
        with locked(folder.claim(index)):
            return None
    except LockedError as error:
        return error


def _say_traits(notes: Sequence[PartNote], facts: RunFacts, say: Say) -> None:
    """Say how many images have each trait of their files, such as grey ones."""
    for trait, what in (TRAITS | (UPRIGHT if facts.exif == "apply" else {})).items():
        if count := sum(note.traits.get(trait, 0) for note in notes):
            say(f"note: {count} {what}")
