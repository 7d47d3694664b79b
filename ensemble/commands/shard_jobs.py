"""The work on one shard: `predict_shard` writes the logits of its images, `label_shard` their labels.

Both are functions of a shared folder and an index, so that a task system can call them on any machine. What they write
is a function of the shard's list, the run and the request alone.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble.data.shard_lists import Entry, EntryReader
from ensemble.errors import ArtifactError, DataError, LockedError, TheraError, printable
from ensemble.runs.files import LOGIT_DECIMALS, refuse_differences
from ensemble.runs.locks import locked, refuse_unshared
from ensemble.runs.run import Run, RunFacts
from ensemble.runs.shards import PartNote, ShardFolder, ShardPlan, content_sha256

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
    import torch

    from ensemble.data.form import Form
    from ensemble.members.inference import NetworkSpec
    from ensemble.members.processes import Progress

CHUNK_BYTES = 2**28
"""Pixels of a shard that are in memory at a time. The fold models of a member take turns on them: with fewer pixels,
loading and checking a model would take longer than computing it."""


@dataclass(frozen=True)
class MemberRequest:
    """A member of the stack: its name, the hashes of its weights by fold, and the plan that computes it."""

    name: str
    weights_sha256: tuple[str, ...]
    precision: str
    convolutions: str


@dataclass(frozen=True)
class LogitsRequest:
    """`_plan/request.json`: everything beside the images that the logits are a function of.

    Attributes
    ----------
    run : str
        The folder of the run, for people.
    members : tuple of MemberRequest
    views : tuple of str
    size : (int, int)
        Height and width of the images.
    resize, exif
        As in `RunFacts`.
    classes : int
    precision, convolutions : str
        As in `PredictOptions`; the plans are those of the members.
    device : str
        cpu or cuda.
    machine : mapping of str to str
        What `members.machine_facts.deciding_facts` says of each machine that computes.
    """

    run: str
    members: tuple[MemberRequest, ...]
    views: tuple[str, ...]
    size: tuple[int, int]
    resize: int | None
    exif: str
    classes: int
    precision: str
    convolutions: str
    device: str
    machine: Mapping[str, str]

    @property
    def sha256(self) -> str:
        """The hash of all fields but `run`, which may be another path on another machine."""
        return content_sha256({**asdict(self), "run": ""})


def claimed(
    job: Callable[..., PartNote],
    is_done: Callable[[ShardFolder, int], bool],
    shards: Path,
    index: int,
    *arguments: Any,
) -> bool:
    """Compute a shard unless another process computes it now; return whether it is done.

    Parameters
    ----------
    job : callable
        `predict_shard` or `label_shard`, called with `shards`, `index` and `arguments`.
    is_done : callable
        Whether another process has done it already.
    """
    folder = ShardFolder(shards)
    try:
        with locked(folder.claim(index)):
            if not is_done(folder, index):
                job(shards, index, *arguments)
    except LockedError:
        return False
    return True


def claimed_by_task(mark: Path, job: Callable[..., PartNote], is_done: Any, shards: Path, *arguments: Any) -> bool:
    """Return what `claimed` returns, on a machine that sees the folder of the shards.

    Parameters
    ----------
    mark : Path
        A file in the folder that its process has made for this call (`runs.locks.marked`).
    job, is_done, shards, *arguments
        As in `claimed`.

    Raises
    ------
    ResourceError
        This machine does not see the mark. Nothing is written then.
    """
    refuse_unshared(shards, mark)
    return claimed(job, is_done, shards, *arguments)


# --- logits -----------------------------------------------------------------------------------------------------------


def logits_made_from(plan: ShardPlan, request: LogitsRequest, index: int) -> str:
    """Return the hash of everything that the logits of a shard are a function of."""
    return content_sha256(plan.lists[index], plan.root, plan.from_manifest, plan.follow_links, request.sha256)


def plan_and_request(folder: ShardFolder) -> tuple[ShardPlan, LogitsRequest]:
    """Return what the command has written before shards are computed, or raise an ArtifactError where it is missing."""
    plan, request = folder.plan(), folder.read_request(LogitsRequest)
    if plan is None or request is None:
        raise ArtifactError(folder.folder, "holds no plan of thera predict --shards", "give the folder of that command")
    return plan, request


def predict_shard(shards: Path, index: int, run: Path, device: torch.device, on_bad: str, bar: Progress) -> PartNote:
    """Write the logits of every fold model on the images of a shard, and return the note of the part.

    Parameters
    ----------
    shards : Path
        A folder with a plan and a request.
    index : int
        The number of the shard.
    run : Path
        The folder of the run.
    device : torch.device
        Of the kind in the request. A CPU computes with one thread, so that no result depends on
        the number of its cores.
    on_bad : {"error", "skip"}
        What to do with images that cannot be used: raise an error, or leave them out and list them in the note.
    bar : Progress
        Advanced by one for each image, view and fold model.

    Raises
    ------
    DataError
        Images cannot be used, with "error".
    ArtifactError
        The list or the weights are missing or damaged, or this machine has other packages, another CPU or another GPU
        than the request names.
    """
    from ensemble.data.form import Form
    from ensemble.data.store import TRAITS
    from ensemble.machine import available_cores
    from ensemble.members.inference import FoldModels
    from ensemble.members.machine_facts import deciding_facts
    from ensemble.members.processes import torch_threads

    folder, members = ShardFolder(shards), Run(run)
    plan, request = plan_and_request(folder)
    here, remedy = f"{shards} on {socket.gethostname()}", "use machines of one kind, or another folder as --shards"
    refuse_differences(here, request.machine, deciding_facts(device), remedy)
    facts, entries = members.read(), folder.read_list(plan, index)
    form, threads = Form(facts.resize, facts.exif == "apply"), 1 if device.type == "cpu" else len(available_cores())
    models = [FoldModels(_spec(members, member, request, device)) for member in request.members]
    passes = sum(len(member.weights_sha256) for member in request.members) * len(request.views)
    step = max(1, CHUNK_BYTES // (request.size[0] * request.size[1] * 3))
    parts, bad, traits = list[dict[str, Any]](), dict[int, str](), np.zeros(len(TRAITS), np.int64)
    with EntryReader(plan.root, plan.from_manifest, plan.follow_links) as reader, torch_threads(threads):
        for start in range(0, len(entries), step):
            chunk, first = entries[start : start + step], plan.images_in(index).start + start
            decoded = _decode(chunk, reader, form, request.size, threads, on_bad)
            bad |= {first + row: reason for row, reason in decoded.bad.items()}
            traits += decoded.traits.sum(axis=0)
            bar.skip(passes * len(decoded.bad))
            if not decoded.rows.size:
                continue
            logits = np.empty((decoded.rows.size, len(models), facts.folds, *_last_axis(facts)))
            for column, member in enumerate(request.members):
                for fold in range(facts.folds):
                    of_fold = members.member(member.name).read_weights(fold)
                    every = np.arange(len(decoded.pixels))
                    by_view, _ = models[column].predict(of_fold, decoded.pixels, every, request.views, bar)
                    _check_finite(by_view, member.name, fold)
                    logits[:, column, fold] = by_view.round(LOGIT_DECIMALS).mean(axis=1)
            parts.append(
                {
                    "row": first + decoded.rows,
                    "id": np.array([chunk[row].id for row in decoded.rows.tolist()], object),
                    "digest": decoded.digests,
                    "logits": logits,
                }
            )
    columns = _joined(parts, members, request, facts)
    counts = {name: int(count) for name, count in zip(TRAITS, traits, strict=True) if count}
    made_from, seen = logits_made_from(plan, request, index), int(columns["seen"].sum())
    return folder.logits.write(index, columns, made_from, bad=bad, traits=counts, seen=seen)


@dataclass(frozen=True)
class _Decoded:
    """The images of a chunk that can be used: their rows in it, pixels, digests and traits; and the bad rows."""

    rows: np.ndarray
    pixels: np.ndarray
    digests: np.ndarray
    traits: np.ndarray
    bad: dict[int, str]


def _decode(
    chunk: Sequence[Entry], reader: EntryReader, form: Form, size: tuple[int, int], threads: int, on_bad: str
) -> _Decoded:
    """Read and decode images. Each file is read once, and its pixels are kept nowhere."""
    from ensemble.data.store import TRAITS, traits_of

    reads, bad = reader.prepare(chunk), dict[int, str]()
    pixels = np.empty((len(chunk), *size, 3), np.uint8)
    digests, traits = np.empty(len(chunk), "S64"), np.zeros((len(chunk), len(TRAITS)), bool)

    def decode(row: int) -> None:
        try:
            data = reads[row]()
            digests[row] = hashlib.sha256(data).hexdigest()
            pixels[row], header = form.pixels(data, printable(chunk[row].id), size, "the training images")
            traits[row] = traits_of(pixels[row], header, form.resize)
        except DataError as error:
            bad[row] = error.found + (f" ({error.remedy})" if error.remedy else "")

    if threads == 1:
        for row in range(len(chunk)):
            decode(row)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(decode, range(len(chunk)), chunksize=64))
    if bad and on_bad == "error":
        named = ", ".join(f"{printable(chunk[row].id)} {bad[row]}" for row in sorted(bad)[:5])
        found = f"{len(bad)} of {len(chunk)} images cannot be used: {named}{' …' if len(bad) > 5 else ''}"
        raise DataError("a shard", found, "replace them, or leave them out with --on-bad skip")
    rows = np.array([row for row in range(len(chunk)) if row not in bad], np.int64)
    if bad:
        pixels, digests, traits = pixels[rows], digests[rows], traits[rows]
    return _Decoded(rows, pixels, digests, traits, bad)


def _spec(run: Run, member: MemberRequest, request: LogitsRequest, device: torch.device) -> NetworkSpec:
    from ensemble.config import MemberConfig
    from ensemble.members.inference import NetworkSpec
    from ensemble.members.plans import Plan

    folder = run.member(member.name)
    folder.check_config()
    config = MemberConfig.model_validate({**folder.read().current_config, "pretrained": False, "weights": None})
    plan = Plan(member.precision, member.convolutions)
    return NetworkSpec(config, request.size[0], plan, device, request.classes)


def _last_axis(facts: RunFacts) -> tuple[int, ...]:
    return () if facts.class_count == 2 else (facts.class_count,)


def _check_finite(logits: np.ndarray, member: str, fold: int) -> None:
    if not np.isfinite(logits).all():
        problem = f"{np.count_nonzero(~np.isfinite(logits))} logits of fold {fold} are not finite"
        raise TheraError(f"member {member}", problem, "use --precision fp32")


def _joined(
    parts: Sequence[Mapping[str, Any]], run: Run, request: LogitsRequest, facts: RunFacts
) -> dict[str, np.ndarray]:
    """Return the columns of a part of logits: row, id, seen, and the logit of each fold model (and class)."""

    def joined(name: str, empty: np.ndarray) -> np.ndarray:
        return np.concatenate([part[name] for part in parts]) if parts else empty

    logits = joined("logits", np.empty((0, len(request.members), facts.folds, *_last_axis(facts))))
    flat = logits.reshape(len(logits), int(np.prod(logits.shape[1:])))
    columns = {
        "row": joined("row", np.empty(0, np.int64)),
        "id": joined("id", np.empty(0, object)),
        "seen": ~run.is_new(joined("digest", np.empty(0, "S64"))),
    }
    return columns | dict(zip(logit_columns(request, facts), flat.T, strict=True))


def logit_columns(request: LogitsRequest, facts: RunFacts) -> list[str]:
    """Return the names of the columns of logits: the fold models of each member, and of many classes each class."""
    models = [f"logit_{member.name}_fold-{fold}" for member in request.members for fold in range(facts.folds)]
    return models if facts.class_count == 2 else [f"{model}_{c}" for model in models for c in range(facts.class_count)]


def logits_of(table: pa.Table, request: LogitsRequest, facts: RunFacts) -> np.ndarray:
    """Return the logits (n, m, k[, C]) of a part by member and fold model."""
    columns = [table.column(name).to_numpy() for name in logit_columns(request, facts)]
    shape = (len(table), len(request.members), facts.folds, *_last_axis(facts))
    return np.stack(columns, axis=1).reshape(shape)


def member_means(by_fold: np.ndarray) -> np.ndarray:
    """Return the mean over the fold models (n, m[, C]), rounded as `FoldLogits.mean`."""
    return np.asarray(by_fold.mean(axis=2).round(LOGIT_DECIMALS))


# --- labels -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelsRequest:
    """What the labels are a function of, beside the logits: the decision, and the options of `thera predict`."""

    decision_sha256: str
    views: tuple[str, ...]
    cut: float | tuple[float, ...]
    combine: str
    prior: float | None


def labels_made_from(logits: PartNote, request: LabelsRequest) -> str:
    """Return the hash of everything that the labels of a shard are a function of."""
    return content_sha256(logits.sha256, request)


def label_shard(shards: Path, index: int, run: Path, logits: PartNote, labels: LabelsRequest) -> PartNote:
    """Write the labels of a shard from its logits, and return the note of the part.

    Parameters
    ----------
    shards : Path
    index : int
    run : Path
        The folder of the run.
    logits : PartNote
        The note of the shard's logits.
    labels : LabelsRequest
    """
    from ensemble.commands.fit_stacker import read_decisions
    from ensemble.decision.class_decision import ClassDecision
    from ensemble.decision.class_deploy import class_label, class_probabilities
    from ensemble.decision.deploy import label

    folder, members = ShardFolder(shards), Run(run)
    facts, request, decisions = members.read(), folder.read_request(LogitsRequest), read_decisions(members)
    assert request is not None, "the logits were made from it"
    decision = decisions.tta if labels.views == decisions.tta.views else decisions.plain
    table = folder.logits.read(index)
    by_fold = logits_of(table, request, facts)
    mean = member_means(by_fold)
    if isinstance(decision, ClassDecision):
        y_pred, stacked, _ = class_label(decision, by_fold, mean, labels.combine)
        probabilities = class_probabilities(stacked)
    else:
        assert isinstance(labels.cut, float)
        labelled = label(decision, by_fold, mean, labels.cut, labels.combine, labels.prior)
        y_pred, stacked, probabilities = labelled.y_pred, labelled.stacked_logits, labelled.probabilities
    columns: dict[str, Any] = {"row": table.column("row"), "id": table.column("id"), "label": y_pred}
    for name, values in (("probability", probabilities), ("stacked_logit", stacked)):
        values = values.astype(np.float32)
        columns |= {name: values} if values.ndim == 1 else {f"{name}_{c}": v for c, v in enumerate(values.T)}
    counts = tuple(np.bincount(y_pred, minlength=facts.class_count).tolist())
    return folder.labels.write(index, columns, labels_made_from(logits, labels), labels=counts)
