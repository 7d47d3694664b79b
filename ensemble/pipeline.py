"""The verbs that train, decide, predict and report, from files to files."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble import prediction, runs, storage
from ensemble.config import VIEWS, DataConfig, DecisionConfig, MemberConfig, PredictConfig, RunConfig
from ensemble.decision.assessment import Assessment, member_report
from ensemble.decision.decision import Decision, fit_decision
from ensemble.decision.rules import OofLogits
from ensemble.decision.threshold import Objective
from ensemble.engine import Engine
from ensemble.errors import ArtifactError, ConfigError, DataError, printable
from ensemble.progress import Say
from ensemble.reports.comparison_tables import trial_table
from ensemble.reports.tables import (
    Table,
    decision_tables,
    explained,
    member_table,
    prediction_table,
    report_json,
    report_markdown,
    summary_table,
)
from ensemble.trainer import Machine, train_folds

if TYPE_CHECKING:
    from ensemble.data.source import Dataset

VIEW_SETS = {"plain": VIEWS[:1], "tta": VIEWS}
"""The views that plain prediction and `--tta` average; each has a stacker and a threshold of its own."""


# --- training ---------------------------------------------------------------------------------------------------------


def train_member(
    folder: Path, member: MemberConfig, data: DataConfig, folds: int, seed: int, machine: Machine, say: Say
) -> Table:
    """Train one member on every fold that is not finished yet, and return the table of its OOF report.

    Raises
    ------
    ArtifactError
        The run, or this member, was begun with other data, folds, seed or config.
    """
    return train_members(folder, (member,), data, folds, seed, machine, say)[0]


def train_members(
    folder: Path, members: Sequence[MemberConfig], data: DataConfig, folds: int, seed: int, machine: Machine, say: Say
) -> list[Table]:
    """Train several as `train_member` does one, their folds side by side."""
    started, run, tables = time.time(), runs.Run(folder), []
    with _trained(run, members, data, folds, seed, machine, say) as (own, table):
        for member in own:
            oof = _assess_member(member, table, seed)
            member.update(oof=oof.to_json())
            (shown,) = explained([member_table(oof, VIEWS, _origin(member))], deployed=False)
            storage.write_whole(member.folder / "report.md", report_markdown(f"Member {member.name}", [shown]).encode())
            tables.append(shown)
    run.record(f"train-member {' '.join(member.name for member in own)}", started)
    return tables


@contextlib.contextmanager
def _trained(
    run: runs.Run,
    members: Sequence[MemberConfig],
    data: DataConfig,
    folds: int,
    seed: int,
    machine: Machine,
    say: Say,
    only: int | None = None,
) -> Iterator[tuple[list[runs.MemberFolder], runs.FoldTable]]:
    """Train what is not finished, `only` one fold where it is given; hold the members' folders meanwhile."""
    from ensemble.members.inference import choose_device

    own = [run.member(member.name) for member in members]
    choose_device(machine.device)  # a wrong one is said before the images are read
    with contextlib.ExitStack() as locks:
        for member in own:
            locks.enter_context(storage.locked(member.folder))
        dataset = _labelled(data, run, say)
        table = _begin(run, dataset, data, folds, seed)
        train_folds(list(zip(own, members, strict=True)), dataset, table, seed, machine, say, only)
        yield own, table


def trial(config: RunConfig, fold: int, machine: Machine, say: Say) -> Table:
    """Train one fold of every member, and return the table that compares them on the rows of that fold.

    What is chosen by it has seen that fold's labels: the other folds have not had a say. `run_config` goes on from it.

    Raises
    ------
    ConfigError
        There is no such fold.
    """
    if not 0 <= fold < config.folds:
        raise ConfigError("--fold", f"must be 0 to {config.folds - 1}; got {fold}")
    started, run = time.time(), runs.Run(config.run)
    with _trained(run, config.members, config.data, config.folds, config.seed, machine, say, fold) as (own, table):
        labels = table.labels[table.fold_of == fold]
        logits = {member.name: member.read_oof(fold, VIEWS)[1].mean(axis=1) for member in own}
        facts = {member.name: member.read()["folds"][str(fold)] for member in own}
    run.record(f"trial of fold {fold}: {' '.join(logits)}", started)
    groups = None if table.groups is None else table.groups[table.fold_of == fold]
    shown = trial_table(fold, logits, labels, groups, config.seed, facts, VIEWS)
    storage.write_whole(config.run / f"trial-{fold}.md", report_markdown(f"Trial of fold {fold}", [shown]).encode())
    return shown


def _labelled(data: DataConfig, run: runs.Run, say: Say) -> Dataset:
    dataset = load_images(data.images, data.labels, data.resize, run, say)
    if dataset.labels is None:
        raise DataError(data.images, "has no labels", "give --labels")
    return dataset


def load_images(images: Path, labels: Path | None, resize: int | None, run: runs.Run, say: Say) -> Dataset:
    from ensemble.data.source import open_source
    from ensemble.data.store import load_dataset

    dataset = load_dataset(open_source(images, labels), run.pixels, resize)
    for note in dataset.notes:
        say(f"note: {images}: {note}")
    return dataset


def _begin(run: runs.Run, dataset: Dataset, data: DataConfig, folds: int, seed: int) -> runs.FoldTable:
    """Start the run, or make sure that it is the same one; return its folds, which are assigned once.

    Raises
    ------
    ArtifactError
        The run was begun with another seed, other folds or other data.
    """
    from ensemble.data.folds import assign_folds, together

    assert dataset.labels is not None
    identity = {
        "seed": seed,
        "folds": folds,
        "n": len(dataset),
        "size": list(dataset.size),
        "resize": data.resize,
    }
    facts = {
        "fingerprint": dataset.fingerprint,
        "images": str(data.images),
        "labels": str(data.labels or data.images),
        "notes": list(dataset.notes),
    }
    if (run.folder / "folds.csv").exists():
        run.begin(identity, facts)
    else:  # nothing is begun before the folds are possible
        units = together(dataset.digests, dataset.groups)
        fold_of = assign_folds(dataset.labels, units, folds, seed).fold_of
        run.begin(identity, facts)
        alone = dataset.groups is None and np.unique(units).size == units.size
        run.write_folds(runs.FoldTable(dataset.ids, dataset.labels, fold_of, None if alone else units))
    table = run.read_folds()
    if changed := _changed_since(table, run.read()["fingerprint"], dataset):
        raise ArtifactError(run.folder, f"was begun with other data: {changed}", "restore them, or use another --run")
    return table


def _changed_since(table: runs.FoldTable, fingerprint: str, dataset: Dataset) -> str:
    """Return what differs between the data that a run was begun with and the data at hand; nothing if nothing does."""
    if not np.array_equal(table.ids, dataset.ids):
        only = sorted(set(dataset.ids.tolist()) ^ set(table.ids.tolist()))
        return f"{len(only)} images are in one of the two only ({some(only)})" if only else "the images' order"
    assert dataset.labels is not None
    relabelled = table.ids[table.labels != dataset.labels].tolist()
    if relabelled:
        return f"{len(relabelled)} labels changed ({some(relabelled)})"
    return "" if fingerprint == dataset.fingerprint else "image files or groups changed"


def some(ids: list[str]) -> str:
    """Return the first five ids, for a message."""
    return ", ".join(map(printable, ids[:5])) + (" …" if ids[5:] else "")


# --- the decision -----------------------------------------------------------------------------------------------------


def all_oof_logits(run: runs.Run, table: runs.FoldTable, members: Sequence[str]) -> np.ndarray:
    """Return the OOF logits of several members, (n, m, views)."""
    return np.stack([oof_logits(run.member(name), table) for name in members], axis=1)


def averaged_oof(run: runs.Run, members: Sequence[str], views: Sequence[str]) -> OofLogits:
    """Return the OOF logits of several members, averaged over views."""
    table = run.read_folds()
    return _averaged(table, members, all_oof_logits(run, table, members), views)


def _averaged(table: runs.FoldTable, members: Sequence[str], logits: np.ndarray, views: Sequence[str]) -> OofLogits:
    mean = logits[:, :, : len(views)].mean(axis=2)
    return OofLogits(table.ids, table.labels, table.fold_of, tuple(members), mean, table.groups)


def oof_logits(member: runs.MemberFolder, table: runs.FoldTable) -> np.ndarray:
    """Return a member's OOF logits (n, views), in the order of the fold table.

    Raises
    ------
    ArtifactError
        A fold is missing, or its ids are not those of the table.
    """
    logits = np.full((len(table.ids), len(VIEWS)), np.nan)
    for fold in range(table.k):
        ids, values = member.read_oof(fold, VIEWS)
        rows = np.flatnonzero(table.fold_of == fold)
        if not np.array_equal(ids, table.ids[rows]):
            found = f"OOF ids of fold {fold} are not those of folds.csv ({len(ids)} rows for {len(rows)})"
            raise ArtifactError(f"member {member.name}", found, runs.TRAIN_AGAIN)
        logits[rows] = values
    return logits


def _assess_member(member: runs.MemberFolder, table: runs.FoldTable, seed: int) -> Assessment:
    logits = oof_logits(member, table).mean(axis=1)
    return member_report(member.name, table.ids, logits, table.labels, table.fold_of, table.groups, seed)


def _origin(member: runs.MemberFolder) -> tuple[str, ...]:
    """Return what a reader of a member's figures must know of how it was trained."""
    facts, notes = member.read(), []
    if facts.get("started_from") == runs.FROM_SCRATCH:
        notes.append("Trained from scratch: its config asks for pretrained weights, and none could be had.")
    if left_out := facts.get("left_out"):
        rows = ", ".join(str(left_out[fold]["rows"]) for fold in sorted(left_out, key=int))
        notes.append(f"Of the training rows of each fold, so many were left out for doubtful labels: {rows}.")
    return tuple(notes)


def fit_stacker(folder: Path, wanted: DecisionConfig, say: Say) -> dict[str, Decision]:
    """Fit stacker and threshold on the members' OOF logits, plain and with TTA, and write the decision.

    Raises
    ------
    ConfigError
        The objective has none of the known forms.
    ArtifactError
        A member lacks a fold, or its OOF logits are not those that training wrote.
    """
    started, run, objective = time.time(), runs.Run(folder), Objective.parse(wanted.objective)
    table, seed = run.read_folds(), run.read()["seed"]
    names = tuple(member.name for member in run.members() if member.has_begun)  # of the others there is nothing
    if not names:
        raise ArtifactError(folder, "has no members", "train one: thera train-member --help")
    logits = all_oof_logits(run, table, names)
    decisions = {}
    for key, views in VIEW_SETS.items():
        oof = _averaged(table, names, logits, views)
        decisions[key] = fit_decision(oof, views, seed, objective, wanted.stacker, wanted.repeats)
    for note in sorted({note for decision in decisions.values() for note in decision.notes}):
        say(f"warning: {note}")
    with storage.locked(run.decision.parent):
        stored = {key: decision.to_json() for key, decision in decisions.items()}
        storage.write_json(run.decision, {"schema": storage.SCHEMA, "parents": _parents(run, names), **stored})
    run.record("fit-stacker", started)
    return decisions


def _parents(run: runs.Run, members: tuple[str, ...]) -> dict[str, Any]:
    """Return the hashes of the OOF logits that a decision rests on."""
    folds = {name: run.member(name).read()["folds"] for name in members}
    return {name: {fold: facts["oof_sha256"] for fold, facts in found.items()} for name, found in folds.items()}


def read_decisions(run: runs.Run, say: Say) -> dict[str, Decision]:
    """Return the run's decisions, plain and with TTA, once their parents' hashes are verified.

    Raises
    ------
    ArtifactError
        There is none, or the members' OOF logits have changed since.
    """
    remedy = f"run: thera fit-stacker --run {run.folder}"
    stored = storage.read_json(run.decision, remedy)
    if stored.get("parents") != _parents(run, tuple(stored.get("parents", ()))):
        raise ArtifactError(run.decision, "was fitted on other OOF logits than the members have now", remedy)
    for member in run.members():
        if member.name not in stored["parents"]:
            say(f"warning: member {member.name} is not in the decision; {remedy}")
    return {key: Decision.from_json(stored.get(key, {})) for key in VIEW_SETS}


# --- prediction -------------------------------------------------------------------------------------------------------


def predict(folder: Path, wanted: PredictConfig, machine: Machine, say: Say) -> Table:
    """Label a set of images; return the table of what to expect of its label file.

    The logits of each member are averaged over its fold models and the views, stacked, and held against the threshold.
    A set that was predicted already, with the same decision, is not computed again; nor, with another decision, are the
    logits that are kept of it.
    """
    started, run = time.time(), runs.Run(folder)
    decision = read_decisions(run, say)["tta" if wanted.tta else "plain"]
    identity = run.read()
    dataset = load_images(wanted.images, None, identity["resize"], run, say)
    if list(dataset.size) != identity["size"]:
        found = f"images are {dataset.size[0]} × {dataset.size[1]} pixels; the members know {identity['size']}"
        raise DataError(wanted.images, found, "bring them to that size, or train with --resize")
    place = run.predictions(wanted.images, dataset.fingerprint, wanted.tta)
    made_from = {
        "schema": storage.SCHEMA,
        "fingerprint": dataset.fingerprint,
        "decision_sha256": storage.file_sha256(run.decision),
        "views": list(decision.views),
        "correction_asked": wanted.correction,
        "prior": wanted.prior,
        "combine": wanted.combine,
        "cascade_asked": wanted.cascade,
        "precision_asked": wanted.precision,
        "convolutions_asked": wanted.convolutions,
    }
    with storage.locked(place):
        if not prediction.is_predicted(place, made_from):
            table, members = run.read_folds(), decision.stacker.members
            by_view = all_oof_logits(run, table, members)[:, :, : len(decision.views)]
            oof = _averaged(table, members, by_view, decision.views)
            with_tta = run.predictions(wanted.images, dataset.fingerprint, tta=True)  # its logits serve both
            engine = Engine(wanted, machine.device, machine.jobs)
            in_cascade = None
            if wanted.cascade is not None:
                in_cascade = partial(engine.cascade, run, decision, oof, by_view, dataset, say)
            places = [place, with_tta]
            logits = prediction.fold_logits(run, decision, dataset, places, wanted, engine.compute, say, in_cascade)
            prediction.write_set(decision, oof, dataset.ids, logits, wanted, identity["seed"], place, made_from)
        text = (place / "label_val.txt").read_bytes()
        prediction.verify(text, len(dataset), place / "label_val.txt")
        storage.write_whole(wanted.out, text)
    run.record(f"predict {place.name}", started)
    say(f"{len(dataset)} labels written to {wanted.out}; logits and votes are in {place / 'predictions.csv'}")
    facts = storage.read_json(place / "predictions.json", "run: thera predict")
    if facts["share_check"]["shifted"]:
        say(f"warning: {place.name}: {facts['share_check']['told']}")
    return prediction_table({place.name: facts})


# --- the report -------------------------------------------------------------------------------------------------------


def report(folder: Path, say: Say) -> list[Table]:
    """Return the run's tables, and write them as `report.md` and `report.json` beside `run.json`.

    A run whose stacker is not fitted yet is reported by its finished members alone.
    """
    run = runs.Run(folder)
    identity, table = run.read(), run.read_folds()
    complete = [member for member in run.members() if all(map(member.has_oof, range(table.k)))]
    members = [_assess_member(member, table, identity["seed"]) for member in complete]
    decisions = read_decisions(run, say) if run.decision.exists() else {}
    predicted = _predicted(run, say)
    tables = [summary_table(decisions["tta"], predicted)] if decisions else []
    tables += [member_table(member, VIEWS, _origin(run.member(member.name))) for member in members]
    if decisions:
        tables += decision_tables(decisions["plain"], decisions["tta"])
    if not tables:
        raise ArtifactError(folder, "has no finished member", "train one: thera train-member --help")
    tables = explained(tables, deployed=bool(decisions))
    if predicted:
        tables += [prediction_table(predicted)]
    text = report_markdown(f"Run {printable(folder.name)}: {identity['n']} images, {table.k} folds", tables)
    text += "".join(f"\nData: {printable(note)}\n" for note in identity["notes"])
    storage.write_whole(folder / "report.md", text.encode())
    storage.write_json(
        folder / "report.json", report_json(members, decisions, predicted) | {"data_notes": identity["notes"]}
    )
    return tables


def _predicted(run: runs.Run, say: Say) -> dict[str, Any]:
    """Return what is known of the label files that the decision of now has made, by the name of their set."""
    if not run.decision.exists():
        return {}
    found = {path.parent.name: path for path in sorted(run.folder.glob("predictions/*/predictions.json"))}
    stored = {name: storage.read_json(path, "run: thera predict") for name, path in found.items()}
    now = storage.file_sha256(run.decision)
    for name in [name for name, facts in stored.items() if facts.get("decision_sha256") != now]:
        say(f"note: {printable(name)} was labelled by another decision; to label it by this one, run: thera predict")
        del stored[name]
    return stored


# --- everything in order ----------------------------------------------------------------------------------------------


def run_config(config: RunConfig, machine: Machine, say: Say) -> list[Table]:
    """Train every member, fit the stacker, predict and report; what is done already is not done again."""
    Objective.parse(config.decision.objective)  # a wrong one is said before anything is trained
    train_members(config.run, config.members, config.data, config.folds, config.seed, machine, say)
    fit_stacker(config.run, config.decision, say)
    if config.predict is not None:
        predict(config.run, config.predict, machine, say)
    return report(config.run, say)
