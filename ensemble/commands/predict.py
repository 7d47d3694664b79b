"""`thera predict`: compute logits, decide, write the label file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ensemble.commands.fit_stacker import _averaged, all_oof_logits, read_decisions
from ensemble.commands.train import load_images
from ensemble.config import (
    ComputeConfig,
    MemberConfig,
    PredictConfig,
    seed_sequence,
)
from ensemble.decision.cascade import Cascade, fit_cascade
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import Decision
from ensemble.decision.deploy import (
    FoldLogits,
    deployed_threshold,
    expectations,
    majority_of_folds,
    probability,
    share_check,
    singles,
)
from ensemble.decision.rates import call
from ensemble.decision.shift import at_prior
from ensemble.errors import ArtifactError, DataError, TheraError
from ensemble.progress import Bar, Say, progress
from ensemble.reports.tables import (
    Table,
    prediction_table,
)
from ensemble.runs import files
from ensemble.runs.files import LOGIT_DECIMALS
from ensemble.runs.member import MemberFolder
from ensemble.runs.predictions import KeptLogits, is_predicted, verify
from ensemble.runs.run import Run

if TYPE_CHECKING:
    from ensemble.data.source import Dataset
    from ensemble.members.inference import Models
    from ensemble.members.plans import Plan
    from ensemble.members.processes import MappedPixels, Workers


PILOT = 2000
"""Images that a cascade evaluates in full: the threshold is corrected on them, and the rest is held against it."""


def predict(folder: Path, wanted: PredictConfig, compute: ComputeConfig, say: Say) -> Table:
    """Label a set of images; return the table of what to expect of its label file.

    The logits of each member are averaged over its fold models and the views, stacked, and held against the threshold.
    A set that was predicted already, with the same decision, is not computed again; nor, with another decision, are the
    logits that are kept of it.
    """
    started, run = time.time(), Run(folder)
    decision = read_decisions(run, say)["tta" if wanted.tta else "plain"]
    identity = run.read()
    dataset = load_images(wanted.images, None, identity["resize"], run, say)
    if list(dataset.size) != identity["size"]:
        found = f"images are {dataset.size[0]} × {dataset.size[1]} pixels; the members know {identity['size']}"
        raise DataError(wanted.images, found, "bring them to that size, or train with --resize")
    place = run.predictions(wanted.images, dataset.fingerprint, wanted.tta)
    made_from = {
        "schema": files.SCHEMA,
        "fingerprint": dataset.fingerprint,
        "decision_sha256": files.file_sha256(run.decision),
        "views": list(decision.views),
        "correction_asked": wanted.correction,
        "prior": wanted.prior,
        "combine": wanted.combine,
        "cascade_asked": wanted.cascade,
        "precision_asked": wanted.precision,
        "convolutions_asked": wanted.convolutions,
    }
    with files.locked(place):
        if not is_predicted(place, made_from):
            table, members = run.read_folds(), decision.stacker.members
            by_view = all_oof_logits(run, table, members)[:, :, : len(decision.views)]
            oof = _averaged(table, members, by_view, decision.views)
            with_tta = run.predictions(wanted.images, dataset.fingerprint, tta=True)  # its logits serve both
            engine = Engine(wanted, compute.device, compute.jobs)
            in_cascade = None
            if wanted.cascade is not None:
                in_cascade = partial(engine.cascade, run, decision, oof, by_view, dataset, say)
            places = [place, with_tta]
            logits = fold_logits(run, decision, dataset, places, wanted, engine.compute, say, in_cascade)
            write_set(decision, oof, dataset.ids, logits, wanted, identity["seed"], place, made_from)
        text = (place / "label_val.txt").read_bytes()
        verify(text, len(dataset), place / "label_val.txt")
        files.write_whole(wanted.out, text)
    run.record(f"predict {place.name}", started)
    say(f"{len(dataset)} labels written to {wanted.out}; logits and votes are in {place / 'predictions.csv'}")
    facts = files.read_json(place / "predictions.json", "run: thera predict")
    if facts["share_check"]["shifted"]:
        say(f"warning: {place.name}: {facts['share_check']['told']}")
    return prediction_table({place.name: facts})


Compute: TypeAlias = Callable[
    [Sequence[tuple[MemberFolder, int]], Sequence[str], "Dataset", Bar],
    Iterator[tuple[int, np.ndarray, dict[str, Any]]],
]
"""`Engine.compute`."""


def fold_logits(
    run: Run,
    decision: Decision,
    dataset: Dataset,
    places: Sequence[Path],
    wanted: PredictConfig,
    compute: Compute,
    say: Say,
    cascade: Callable[[], FoldLogits] | None = None,
) -> FoldLogits:
    """Return the logits of each member and fold model, averaged over the decision's views.

    What is kept is read, without the weights and without torch; the rest is computed, and kept as soon as a fold model
    is done. The logits are those of the files, rounded, so that it makes no difference which were computed when.

    Parameters
    ----------
    places : sequence of Path
        The set's folder, into which is written, and others that may hold logits of the same images.
    wanted : PredictConfig
        Kept logits that were computed otherwise than it forces are not taken.
    compute : callable
        Gives the logits of fold models, as `Engine.compute`.
    cascade : callable, optional
        What to call instead where everything has to be computed.

    Raises
    ------
    ArtifactError
        Logits are missing or damaged, and the weights to compute them are, too.
    """
    for left_by_a_kill in places[0].rglob(".*.tmp"):
        left_by_a_kill.unlink(missing_ok=True)
    members, folds = [run.member(name) for name in decision.stacker.members], run.read()["folds"]
    kept = [KeptLogits(place / "logits", dataset) for place in dict.fromkeys(places)]
    logits = np.empty((len(dataset), len(members), folds))
    steps, missing = len(dataset) * len(decision.views), []
    for column, fold in product(range(len(members)), range(folds)):
        found = _load(kept, members[column], fold, decision.views, wanted, say)
        if found is None:
            missing.append((column, fold))
        else:
            logits[:, column, fold] = found.mean(axis=1)
    if cascade is not None and len(missing) == logits[0].size:
        return cascade()
    with progress(len(members) * folds * steps, "predict", "views") as bar:
        bar.skip(logits[0].size * steps - len(missing) * steps)
        models = [(members[column], fold) for column, fold in missing]
        for index, views, facts in compute(models, decision.views, dataset, bar):
            column, fold = missing[index]
            logits[:, column, fold] = kept[0].save(members[column], fold, decision.views, views, **facts).mean(axis=1)
    return FoldLogits(logits)


def _load(
    kept: Sequence[KeptLogits],
    member: MemberFolder,
    fold: int,
    views: Sequence[str],
    wanted: PredictConfig,
    say: Say,
) -> np.ndarray | None:
    """Return a fold model's logits (n, views) from the first folder that has them; None where they can be computed."""
    damaged = None
    for folder in kept:
        try:
            logits = folder.load(member, fold, views, wanted)
        except ArtifactError as error:
            damaged = error
        else:
            if logits is not None:
                return logits
    try:
        member.weights(fold)
    except ArtifactError:
        if damaged is None:
            raise
        found = f"{damaged.found}, and the weights that made it are gone"
        raise ArtifactError(damaged.where, found, "restore one of the two") from None
    if damaged is not None:
        say(f"warning: {damaged.where}: {damaged.found}; it is computed again")
    return None


@dataclass(frozen=True)
class Engine:
    """The networks of a run on a device.

    Parameters
    ----------
    wanted : PredictConfig
        Its precision and convolutions limit how they are computed.
    device : str
        Of `--device`.
    jobs : int, optional
        How many networks are computed at once; by default as many as pay.
    """

    wanted: PredictConfig
    device: str = "auto"
    jobs: int | None = None

    def compute(
        self, models: Sequence[tuple[MemberFolder, int]], views: Sequence[str], dataset: Dataset, bar: Bar
    ) -> Iterator[tuple[int, np.ndarray, dict[str, Any]]]:
        """Yield, for some fold models of members, its index, its logits (n, views), and how they were computed.

        Raises
        ------
        TheraError
            A logit is not finite.
        """
        if not models:
            return
        from ensemble.members.processes import MappedPixels, Workers

        pixels, parts, cores = self._parts(dataset, len(models) * len(views))
        mapped, calls, of_call = MappedPixels(pixels), [], []
        configs = {member.name: self.model(member, dataset, len(cores[0])) for member, _ in models}
        for member, fold in models:
            calls += [(member, fold, configs[member.name], mapped, rows, views) for rows in parts]
            of_call += cores
        found: dict[int, dict[int, np.ndarray]] = {}
        forced = {"precision": self.wanted.precision, "convolutions": self.wanted.convolutions}
        with Workers() as processes:
            for place, (logits, plan) in processes.run(predict_part, calls, of_call, bar):
                index, part = divmod(place, len(parts))
                found.setdefault(index, {})[part] = logits
                if len(found[index]) == len(parts):
                    whole = np.concatenate([found[index][i] for i in range(len(parts))])
                    _check_finite(whole, *models[index], str(plan))
                    how = {**asdict(plan), "device": str(configs[models[index][0].name][3]), "forced": forced}
                    yield index, whole, how
                    del found[index]

    def cascade(
        self, run: Run, decision: Decision, oof: OofLogits, views: np.ndarray, dataset: Dataset, say: Say
    ) -> FoldLogits:
        """Return logits of which those that settle no label are imputed.

        `PILOT` images, drawn from the run's seed, are evaluated in full: the threshold that the cascade is fitted at is
        taken from them, and what it does is held against them. Nothing is kept of a cascade that is stopped.

        Parameters
        ----------
        oof : OofLogits
            Averaged over the views.
        views : float64 array (n, m, v)
            The same, by view.
        """
        from ensemble.members.inference import cost_per_image
        from ensemble.members.processes import MappedPixels, Workers

        assert self.wanted.cascade is not None
        seed, folds, n = run.read()["seed"], run.read()["folds"], len(dataset)
        members = [run.member(name) for name in decision.stacker.members]
        pixels, parts, cores = self._parts(dataset, len(members) * folds * len(decision.views))
        models = [self.model(member, dataset, len(cores[0])) for member in members]
        cost = np.array([cost_per_image(model, len(cores[0])) for model in models])
        fit = partial(
            fit_cascade,
            views,
            decision.stacker,
            cost=cost,
            probability=self.wanted.cascade,
            groups=oof.groups,
            seed=seed,
        )
        fitted = fit(threshold=decision.threshold)
        order = np.random.default_rng(seed_sequence(seed, "pilot")).permutation(n)
        pilot, rest = np.sort(order[:PILOT]), np.sort(order[PILOT:])
        logits = np.empty((n, len(members), len(decision.views), folds))
        stopped = np.full(n, len(fitted.order) - 1)

        def walk(rows: np.ndarray, threshold: float | None, processes: Workers, bar: Bar) -> None:
            own = [part for part in np.array_split(rows, len(parts)) if part.size]
            calls = [
                (run.folder, models, folds, fitted, decision, threshold, MappedPixels(pixels), part) for part in own
            ]
            for index, found in processes.run(walk_cascade, calls, cores[: len(own)], bar):
                logits[own[index]], stopped[own[index]] = found

        with progress(n * len(fitted.order) * folds, "predict", "views") as bar, Workers() as processes:
            walk(pilot, None, processes, bar)
            threshold = deployed_threshold(decision, oof, logits[pilot].mean(axis=2), self.wanted, seed)[3]
            fitted = fit(threshold=threshold)
            told = f"{100 * fitted.cost_share:.0f} % of the computing, and at one threshold at most"
            share = f"{100 * fitted.changed_upper:.2g} % of the labels changed"
            say(f"cascade {self.wanted.cascade}: {told} {share}, measured on {fitted.tested} OOF rows")
            walk(rest, threshold, processes, bar)
        exact = logits[pilot].mean(axis=3)
        early = _stops(fitted, decision, exact, threshold)
        differ = call(decision.stacker.apply(_imputed(fitted, exact, early).mean(axis=2)), threshold) != call(
            decision.stacker.apply(exact.mean(axis=2)), threshold
        )
        last = np.array([max(j for j, (i, _) in enumerate(fitted.order) if i == m) for m in range(len(members))])
        facts = {
            "probability": fitted.probability,
            "order": [[members[i].name, decision.views[j]] for i, j in fitted.order],
            "oof_changed": fitted.changed,
            "oof_changed_upper": fitted.changed_upper,
            "oof_cost_share": fitted.cost_share,
            "images_in_full": int(np.count_nonzero(stopped == len(fitted.order) - 1)),
            "evaluated_share": float(np.mean(stopped + 1) / len(fitted.order)),
            "pilot": len(pilot),
            "pilot_changed": int(np.count_nonzero(differ)),
        }
        return FoldLogits(logits.mean(axis=2), stopped[:, None] >= last, facts)

    def _parts(self, dataset: Dataset, passes: int) -> tuple[np.ndarray, list[np.ndarray], list[list[int]]]:
        """Return the pixels, the rows in as many parts as are computed at once, and the cores of each."""
        from ensemble.members.inference import BATCH, choose_device
        from ensemble.members.processes import at_once, cores, shares

        n = len(dataset)
        batches = passes * n // BATCH // len(cores())
        side_by_side = at_once(len(cores()), batches, choose_device(self.device), self.jobs)
        return dataset.pixels, np.array_split(np.arange(n), side_by_side), shares(side_by_side, side_by_side)

    def model(self, member: MemberFolder, dataset: Dataset, threads: int) -> Models:
        """Return what `FoldModels` is made of: a member's config, the images' size, the plan and the device."""
        from ensemble.members.inference import BATCH, choose_device
        from ensemble.members.plans import PROBE_PAYS, Plan, choose_plan, possible_plans

        device, stored, size = choose_device(self.device), member.read(), dataset.size[0]
        config = MemberConfig.model_validate(stored["config"] | {"pretrained": False, "weights": None})
        precision, convolutions = self.wanted.precision, self.wanted.convolutions
        config = config.model_copy(update={"precision": precision, "convolutions": convolutions})
        possible = possible_plans(precision, convolutions, device, config.input_size or size, "predict")
        as_trained = Plan(stored["precision"], stored.get("convolutions", "native"))
        batches = len(dataset) * len(stored["folds"]) // BATCH
        if batches < PROBE_PAYS and as_trained in possible:
            return config, size, as_trained, device
        return config, size, choose_plan(config, device, size, "predict", batches, threads), device


def _check_finite(logits: np.ndarray, member: MemberFolder, fold: int, how: str) -> None:
    if not np.isfinite(logits).all():
        found = f"{np.count_nonzero(~np.isfinite(logits))} logits of fold {fold} are not finite in {how}"
        raise TheraError(f"member {member.name}", found, "use --precision fp32")


def predict_part(
    member: MemberFolder,
    fold: int,
    models: Models,
    mapped: MappedPixels,
    rows: np.ndarray,
    views: Sequence[str],
    bar: Any,
) -> tuple[np.ndarray, Plan]:
    """Return the logits (r, views) of a fold model on some images, in whatever process, and how they were computed."""
    from ensemble.members.inference import FoldModels

    return FoldModels(*models).predict(member.read_weights(fold), mapped.array, rows, views, bar)


def walk_cascade(
    folder: Path,
    models: Sequence[Models],
    folds: int,
    cascade: Cascade,
    decision: Decision,
    threshold: float | None,
    mapped: MappedPixels,
    rows: np.ndarray,
    bar: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Evaluate the stages of a cascade on some images, each with all fold models, until each image's label is settled.

    Parameters
    ----------
    folder : Path
        Of the run.
    models : sequence of tuple
        What `FoldModels` is made of, by member.
    threshold : float, optional
        Of the stacked logit; without one, nothing stops.
    mapped : MappedPixels
    rows : int array (r,)

    Returns
    -------
    logits : float64 array (r, m, v, k)
        Imputed where they were not needed.
    stopped : int array (r,)
        The last stage of each image.
    """
    from ensemble.members.inference import FoldModels

    run = Run(folder)
    shape = (len(rows), len(models), len(decision.views), folds)
    logits, stopped = np.zeros(shape), np.full(len(rows), len(cascade.order) - 1)
    alive = np.arange(len(rows))
    for stage, (column, view) in enumerate(cascade.order):
        if not alive.size:
            break
        member = run.member(cascade.members[column])
        networks = FoldModels(*models[column])
        for fold in range(folds):
            weights = member.read_weights(fold)
            seen, plan = networks.predict(weights, mapped.array, rows[alive], [decision.views[view]], bar)
            _check_finite(seen, member, fold, str(plan))
            logits[alive, column, view, fold] = seen[:, 0].round(LOGIT_DECIMALS)
        if threshold is not None and stage + 1 < len(cascade.order):
            predicted = decision.stacker.apply(cascade.impute(stage, logits[alive].mean(axis=3)).mean(axis=2))
            stops = cascade.stops(stage, predicted, threshold)
            stopped[alive[stops]], alive = stage, alive[~stops]
            bar.skip(int(np.count_nonzero(stops)) * (len(cascade.order) - stage - 1) * folds)
    for fold in range(folds):
        logits[..., fold] = _imputed(cascade, logits[..., fold], stopped)
    return logits, stopped


def _imputed(cascade: Cascade, logits: np.ndarray, stopped: np.ndarray) -> np.ndarray:
    """Return logits (n, m, v) with the cells that come after each image's last stage (n,) imputed."""
    filled = logits.copy()
    for stage in np.unique(stopped).tolist():
        filled[stopped == stage] = cascade.impute(stage, logits[stopped == stage])
    return filled


def _stops(cascade: Cascade, decision: Decision, logits: np.ndarray, threshold: float) -> np.ndarray:
    """Return the stage (n,) at which images whose logits (n, m, v) are all known would have stopped."""
    stopped = np.full(len(logits), len(cascade.order) - 1)
    for stage in reversed(range(len(cascade.order) - 1)):
        predicted = decision.stacker.apply(cascade.impute(stage, logits).mean(axis=2))
        stopped[cascade.stops(stage, predicted, threshold)] = stage
    return stopped


def write_set(
    decision: Decision,
    oof: OofLogits,
    ids: np.ndarray,
    found: FoldLogits,
    wanted: PredictConfig,
    seed: int,
    place: Path,
    made_from: Mapping[str, Any],
) -> None:
    """Decide, and write label file, table and facts.

    Parameters
    ----------
    oof : OofLogits
        Of the members of the stack, averaged over the decision's views.
    ids : str array (n,)
    found : FoldLogits
        Of these images.
    wanted : PredictConfig
        Its correction and prior.
    seed : int
        Of the bootstrap.
    place : Path
        `predictions/<set>`.
    made_from : mapping
        What to know the prediction by, see `is_predicted`.
    """
    logits = found.logits.mean(axis=2).round(LOGIT_DECIMALS)
    stacked = decision.stacker.apply(logits)
    mix, foreseen, threshold = None, None, decision.threshold
    if wanted.combine == "vote":
        check = share_check(decision, oof, singles(decision, found.logits))
        labels, of_folds = majority_of_folds(decision, found.logits)
    else:
        check, mix, foreseen, threshold = deployed_threshold(decision, oof, found.logits, wanted, seed)
        labels, of_folds = call(stacked, threshold), np.empty((len(ids), 0), np.int8)
    votes, majority = decision.votes(logits)
    text = "".join(f"{label}\n" for label in labels.tolist()).encode()
    verify(text, len(ids), place / "label_val.txt")
    names, shift = decision.stacker.members, 0.0
    if wanted.prior is not None:
        shift = at_prior(decision.nested, wanted.prior).logit_shift
    columns = [
        "id",
        *(f"logit_{name}" for name in names),
        "stacked_logit",
        "probability",
        "label",
        *(f"vote_{name}" for name in names),
        "majority",
        *(f"vote_fold-{fold}" for fold in range(of_folds.shape[1])),
    ]
    known = np.ones(logits.shape, bool) if found.known is None else found.known
    rows = (
        (
            id_,
            *(f"{x:.{LOGIT_DECIMALS}f}" if there else "" for x, there in zip(own, has, strict=True)),
            f"{x:.{LOGIT_DECIMALS}f}",
            f"{p:.5f}",
            y,
            *(vote if there else "" for vote, there in zip(v, has, strict=True)),
            m if has.all() else "",
            *w,
        )
        for id_, own, has, x, p, y, v, m, w in zip(
            ids,
            logits,
            known,
            stacked,
            probability(stacked + shift),
            labels,
            votes.tolist(),
            majority,
            of_folds.tolist(),
            strict=True,
        )
    )
    written = {
        "label_val.txt": files.write_whole(place / "label_val.txt", text),
        "predictions.csv": files.write_table(place / "predictions.csv", columns, rows),
    }
    files.write_json(
        place / "predictions.json",
        {
            **made_from,
            "images": len(ids),
            "objective": decision.objective.text,
            "threshold": threshold,
            "share_of_label_0": float(np.mean(labels == 0)),
            "nested_hter": decision.nested.hter,
            "taken_share_of_label_0": mix,
            "cascade": found.facts,
            **expectations(decision, foreseen, len(ids), wanted.prior, seed),
            "share_check": check.to_json() | {"told": check.told},
            "files": written,
        },
    )
