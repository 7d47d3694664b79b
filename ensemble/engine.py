"""What computes logits for prediction: all of them, or in a cascade those that can still change a label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble import runs
from ensemble.config import MemberConfig, PredictConfig, seed_sequence
from ensemble.decision.cascade import Cascade, fit_cascade
from ensemble.decision.decision import Decision
from ensemble.decision.rates import call
from ensemble.decision.rules import OofLogits
from ensemble.errors import TheraError
from ensemble.prediction import FoldLogits, deployed_threshold
from ensemble.progress import Bar, Say, progress

if TYPE_CHECKING:
    from ensemble.data.source import Dataset
    from ensemble.members.inference import Models
    from ensemble.members.plans import Plan
    from ensemble.members.processes import MappedPixels, Workers

PILOT = 2000
"""Images that a cascade evaluates in full: the threshold is corrected on them, and the rest is held against it."""


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
        self, models: Sequence[tuple[runs.MemberFolder, int]], views: Sequence[str], dataset: Dataset, bar: Bar
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
        self, run: runs.Run, decision: Decision, oof: OofLogits, views: np.ndarray, dataset: Dataset, say: Say
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

    def model(self, member: runs.MemberFolder, dataset: Dataset, threads: int) -> Models:
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


def _check_finite(logits: np.ndarray, member: runs.MemberFolder, fold: int, how: str) -> None:
    if not np.isfinite(logits).all():
        found = f"{np.count_nonzero(~np.isfinite(logits))} logits of fold {fold} are not finite in {how}"
        raise TheraError(f"member {member.name}", found, "use --precision fp32")


def predict_part(
    member: runs.MemberFolder,
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


# --- the cascade ------------------------------------------------------------------------------------------------------


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

    run = runs.Run(folder)
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
            logits[alive, column, view, fold] = seen[:, 0].round(runs.LOGIT_DECIMALS)
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
