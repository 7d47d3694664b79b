"""The labels of a prediction in shards: the threshold from a pilot of the images, the counts, and the label file.

The corrected threshold depends on the logits of unlabelled images. They are those of all images up to `PILOT`, as in
`thera predict`, and of so many drawn ones where there are more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ensemble.commands.fit_stacker import averaged_oof, read_decisions
from ensemble.commands.prediction_files import prediction_facts
from ensemble.commands.shard_jobs import LabelsRequest, LogitsRequest, logits_of, member_means
from ensemble.config import seed_sequence
from ensemble.decision.class_decision import ClassDecision
from ensemble.decision.class_deploy import ClassDeployment, class_deploy
from ensemble.decision.deploy import Deployment, deploy
from ensemble.errors import DataError
from ensemble.predict_config import PredictOptions
from ensemble.prediction_results import ClassPredictionFacts, PredictionFacts, PredictionRequest
from ensemble.runs import files
from ensemble.runs.distilled import caveats
from ensemble.runs.label_files import is_table, label_file
from ensemble.runs.run import Run, bad_images_table
from ensemble.runs.shards import PartNote, ShardFolder, ShardPlan

PILOT = 100_000
"""Images whose logits give the corrected threshold, the expected rates and the share check. The standard error of a
share among so many is at most 0.0016."""

Facts = PredictionFacts | ClassPredictionFacts


def decide(
    folder: ShardFolder,
    run: Run,
    plan: ShardPlan,
    request: LogitsRequest,
    notes: Sequence[PartNote],
    options: PredictOptions,
) -> Facts:
    """Return what is decided about a set of images whose logits are all there, and the rates to expect of the labels.

    It is stored, and read again for the same logits, decision and options. Until `counted` replaces them, the counts of
    labels and of images seen in training are those of the pilot.

    Raises
    ------
    DataError
        No image can be used.
    """
    facts, decisions = run.read(), read_decisions(run)
    decision = decisions.tta if options.tta else decisions.plain
    made_for = PredictionRequest(
        fingerprint=hashlib.sha256("".join(note.sha256 for note in notes).encode()).hexdigest(),
        decision_sha256=files.file_sha256(run.decision),
        views=decision.views,
        correction=options.correction,
        prior=options.prior,
        combine=options.combine,
        cascade=None,
        precision=options.precision,
        convolutions=options.convolutions,
    )
    type_: type[Facts] = ClassPredictionFacts if facts.class_count > 2 else PredictionFacts
    stored = folder.read_facts(type_)
    if stored is not None and stored.request == made_for:
        return stored
    by_fold, seen = _pilot(folder, run, plan, request)
    if not len(by_fold):
        raise DataError(plan.where, f"none of {plan.n} images can be used", "replace them")
    mean, images = member_means(by_fold), sum(note.rows for note in notes)
    oof = averaged_oof(run, decision.stacker.members, decision.views)
    combine, correction, prior = options.combine, options.correction, options.prior
    deployment: Deployment | ClassDeployment
    if isinstance(decision, ClassDecision):
        deployment = class_deploy(decision, oof, by_fold, mean, combine, correction, prior, ~seen)
    else:
        by_view = run.oof_logits(decision.stacker.members, oof.table)[:, :, : len(decision.views)]
        deployment = deploy(decision, oof, by_fold, mean, combine, correction, prior, facts.seed, ~seen, by_view)
    learned = caveats([run.member(name) for name in decision.stacker.members])
    decided = prediction_facts(facts, decision, deployment, made_for, images, int(seen.sum()), learned)
    folder.write_facts(decided)
    return decided


def _pilot(folder: ShardFolder, run: Run, plan: ShardPlan, request: LogitsRequest) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits (p, m, k[, C]) of the pilot's images, and which of them (p,) were seen in training.

    The images are drawn with the seed of the run; those that cannot be used are missing.
    """
    facts, logits, seen = run.read(), list[np.ndarray](), list[np.ndarray]()
    rows = pilot_rows(plan.n, facts.seed)
    for index in range(plan.shards):
        of_shard = plan.images_in(index)
        first, last = np.searchsorted(rows, [of_shard.start, of_shard.stop])
        if first < last:
            table = folder.logits.read(index)
            chosen = np.isin(table.column("row").to_numpy(), rows[first:last])
            logits.append(logits_of(table, request, facts)[chosen])
            seen.append(table.column("seen").to_numpy()[chosen])
    return np.concatenate(logits), np.concatenate(seen)


def pilot_rows(n: int, seed: int) -> np.ndarray:
    """Return the rows of the pilot among n images, in ascending order: all rows up to `PILOT`, or so many drawn ones.

    Memory does not grow with n: numpy draws by Floyd's algorithm where it permutes no array of n numbers, which it does
    only below 50 numbers for each drawn one.
    """
    if n <= PILOT:
        return np.arange(n)
    rng = np.random.default_rng(seed_sequence(seed, "shards"))
    return np.sort(rng.choice(n, PILOT, replace=False))


def labels_request(facts: Facts) -> LabelsRequest:
    """Return what the labels of each shard are a function of."""
    cut = facts.threshold if isinstance(facts, PredictionFacts) else facts.offsets
    request = facts.request
    return LabelsRequest(request.decision_sha256, request.views, cut, request.combine, request.prior)


def counted(folder: ShardFolder, facts: Facts, logits: Sequence[PartNote], labels: Sequence[PartNote]) -> Facts:
    """Return the facts with the shares of all labels and the count of all images seen in training, and store them.

    Parameters
    ----------
    folder : ShardFolder
    facts : PredictionFacts or ClassPredictionFacts
    logits, labels : sequence of PartNote
        The notes of all parts.
    """
    counts = np.sum([note.labels for note in labels], axis=0)
    shares = (counts / counts.sum()).tolist()
    seen = sum(note.seen or 0 for note in logits)
    if isinstance(facts, PredictionFacts):
        facts = replace(facts, share_of_label_0=shares[0], seen_in_training=seen)
    else:
        facts = replace(facts, shares=tuple(shares), seen_in_training=seen)
    folder.write_facts(facts)
    return facts


# --- the label file ---------------------------------------------------------------------------------------------------


def write_label_file(
    folder: ShardFolder, run: Run, plan: ShardPlan, out: Path, classes: tuple[str, ...] | None, bad_label: int | None
) -> int:
    """Write the label file, one shard in memory at a time, and return the number of its labels.

    Parameters
    ----------
    folder : ShardFolder
    run : Run
        It records the hash of the file, so that it may replace it later.
    plan : ShardPlan
    out : Path
        With the suffix .csv, a table, in which images that were left out have no row.
    classes : tuple of C str, or None
    bad_label : int, optional
        The label of images that were left out, in a file with a line for each image.
    """
    digest, count = hashlib.sha256(), 0
    with files.replacing(out) as temporary:
        with open(temporary, "wb") as file:
            for lines, rows in _label_lines(folder, plan, out, classes, bad_label):
                file.write(lines)
                digest.update(lines)
                count += rows
        run.record_label_file(out, digest.hexdigest())
    return count


def _label_lines(
    folder: ShardFolder, plan: ShardPlan, out: Path, classes: tuple[str, ...] | None, bad_label: int | None
) -> Iterator[tuple[bytes, int]]:
    for index in range(plan.shards):
        table = folder.labels.read(index, ["row", "id", "label"])
        ids, y_pred = np.array(table.column("id").to_pylist(), object), table.column("label").to_numpy()
        if is_table(out):
            content = label_file(out.name, ids, y_pred, classes)
            yield content if index == 0 else content.partition(b"\n")[2], len(ids)
            continue
        rows = plan.images_in(index)
        every = np.full(len(rows), -1 if bad_label is None else bad_label, np.int8)
        every[table.column("row").to_numpy() - rows.start] = y_pred
        yield label_file(out.name, ids, every, classes), len(rows)


def write_bad_images(folder: ShardFolder, plan: ShardPlan, notes: Sequence[PartNote]) -> int:
    """Write the names of the images that were left out, with the reasons, and return their number."""
    from ensemble.data.dataset import BadImage

    count = sum(len(note.bad) for note in notes)
    if not count:
        folder.bad_images.unlink(missing_ok=True)
        return 0
    with files.replacing(folder.bad_images) as temporary, open(temporary, "wb") as file:
        file.write(bad_images_table([]))
        for index, note in enumerate(notes):
            if note.bad:
                entries, first = folder.read_list(plan, index), plan.images_in(index).start
                bad = [BadImage(entries[row - first].id, reason) for row, reason in sorted(note.bad.items())]
                file.write(bad_images_table(bad).partition(b"\n")[2])
    return count
