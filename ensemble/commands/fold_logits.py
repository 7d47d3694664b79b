"""Returns the logits of the fold models on a set of images: reads kept ones, computes missing ones, or runs a cascade.

Reading kept logits needs neither the weights nor torch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ensemble.config import ComputeConfig, seed_sequence
from ensemble.decision.cascade import CascadeWalk, changed_labels, fit_cascade
from ensemble.decision.class_decision import ClassDecision
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import Decision
from ensemble.decision.deploy import corrected
from ensemble.errors import ArtifactError, printable
from ensemble.predict_config import PredictOptions
from ensemble.prediction_results import CascadeFacts
from ensemble.progress import Bar, Say, progress
from ensemble.runs.files import LOGIT_DECIMALS, remove_temporary_files
from ensemble.runs.member import MemberFolder
from ensemble.runs.predictions import KeptLogits
from ensemble.runs.run import Run, RunFacts

if TYPE_CHECKING:
    from ensemble.data.dataset import Dataset
    from ensemble.members.predictor import FoldModel, Predictor

PILOT = 2000
"""Images that a cascade evaluates with all members and views, to correct the threshold and to check the cascade."""


@dataclass(frozen=True)
class FoldLogits:
    """Logits of each member and fold model, averaged over the views.

    Attributes
    ----------
    members : tuple of m str
    by_fold : float64 array (n, m, k[, C])
    known : bool array (n, m)
        Whether a member was evaluated on an image; where not, a cascade imputed its logits.
    cascade : CascadeFacts or None
    """

    members: tuple[str, ...]
    by_fold: np.ndarray
    known: np.ndarray
    cascade: CascadeFacts | None = None

    @property
    def mean(self) -> np.ndarray:
        """The mean over the fold models (n, m[, C]), rounded as it is stored."""
        return np.asarray(self.by_fold.mean(axis=2).round(LOGIT_DECIMALS))


@dataclass(frozen=True)
class _Prediction:
    """The images and options of a prediction by members of a run, each under some views."""

    run: Run
    names: tuple[str, ...]
    views: tuple[str, ...]
    dataset: Dataset
    options: PredictOptions
    compute: ComputeConfig

    @functools.cached_property
    def members(self) -> list[MemberFolder]:
        return [self.run.member(name) for name in self.names]

    @functools.cached_property
    def facts(self) -> RunFacts:
        return self.run.read()

    @property
    def folds(self) -> int:
        return self.facts.folds

    def empty_logits(self) -> np.ndarray:
        """Return an array for the logits (n, m, k[, C]) of the members and fold models."""
        shape = (len(self.dataset), len(self.members), self.folds)
        return np.empty(shape if self.facts.class_count == 2 else (*shape, self.facts.class_count))


def fold_logits(
    run: Run,
    decision: Decision | ClassDecision,
    oof: OofLogits,
    by_view: np.ndarray,
    dataset: Dataset,
    folders: Sequence[Path],
    options: PredictOptions,
    compute: ComputeConfig,
    say: Say,
) -> FoldLogits:
    """Return the logits of each member and fold model of a decision on a set of images.

    The logits of each fold model are written as soon as they are computed. All are returned rounded, as in the files,
    so that kept and new logits are the same. With `options.cascade`, and no kept logits, those that cannot change a
    label are imputed.

    Parameters
    ----------
    run : Run
    decision : Decision or ClassDecision
    oof : OofLogits
        OOF logits of the stacked members, averaged over the views of the decision.
    by_view : float64 array (n_oof, m, v[, C])
        OOF logits of the stacked members, by view.
    dataset : Dataset
    folders : sequence of Path
        `predictions/<set>`. The first is written; the others may hold logits of the same images.
    options : PredictOptions
    compute : ComputeConfig
    say : callable

    Raises
    ------
    ArtifactError
        Logits and the weights to compute them are missing or damaged.
    """
    images = _Prediction(run, decision.stacker.members, decision.views, dataset, options, compute)
    remove_temporary_files(folders[0])
    kept = [KeptLogits(folder / "logits", dataset.ids, dataset.fingerprint) for folder in dict.fromkeys(folders)]
    logits, missing = images.empty_logits(), []
    shape = logits.shape
    for column, fold in product(range(shape[1]), range(shape[2])):
        stored = _load(kept, images, images.members[column], fold, say)
        if stored is None:
            missing.append((column, fold))
        else:
            logits[:, column, fold] = stored.mean(axis=1)
    if options.cascade is not None and len(missing) == shape[1] * shape[2]:
        return _cascade(images, decision, oof, by_view, options.cascade, say)
    steps = len(dataset) * len(images.views)
    with progress(shape[1] * shape[2] * steps, "predict", "views") as bar:
        bar.skip((shape[1] * shape[2] - len(missing)) * steps)
        if missing:
            _compute(images, missing, kept[0], logits, bar)
    return FoldLogits(images.names, logits, np.ones(shape[:2], bool))


def unkept_fold_logits(
    run: Run,
    members: Sequence[str],
    views: Sequence[str],
    dataset: Dataset,
    options: PredictOptions,
    compute: ComputeConfig,
    folds: Sequence[int] | None = None,
) -> FoldLogits:
    """Compute the logits of each member and fold model, as `fold_logits` does without a cascade; write nothing.

    Parameters
    ----------
    run : Run
    members, views : sequence of str
        Names of members of the run, and of the views from `config.VIEWS` that are averaged.
    dataset : Dataset
    options : PredictOptions
    compute : ComputeConfig
    folds : sequence of int, optional
        The fold models; by default, all.

    Raises
    ------
    ArtifactError
        Weights are missing or damaged.
    """
    images = _Prediction(run, tuple(members), tuple(views), dataset, options, compute)
    folds, logits = range(images.folds) if folds is None else folds, images.empty_logits()
    every = list(product(range(len(members)), folds))
    with progress(len(every) * len(dataset) * len(images.views), "predict", "views") as bar:
        _compute(images, every, None, logits, bar)
    return FoldLogits(images.names, logits[:, :, list(folds)], np.ones(logits.shape[:2], bool))


def kept_fold_logits(run: Run, members: Sequence[str], views: Sequence[str], dataset: Dataset) -> np.ndarray:
    """Return the logits (n, m, k[, C]) that the run's predictions on these images keep, averaged over the views.

    No weights are read.

    Raises
    ------
    ArtifactError
        The run keeps no logits of a fold model on these images under these views, or a file of them is damaged.
    """
    folders = [path.parent for path in sorted((run.folder / "predictions").glob("*/logits/made_from.json"))]
    kept = [KeptLogits(folder, dataset.ids, dataset.fingerprint) for folder in folders]
    facts, logits = run.read(), []
    for name, fold in product(members, range(facts.folds)):
        stored = (each.load(run.member(name), fold, views) for each in kept)
        of_model = next((each for each in stored if each is not None), None)
        if of_model is None:
            problem = f"keeps no logits of {name}, fold {fold}, on these images with the views {', '.join(views)}"
            raise ArtifactError(printable(run.folder), problem, "label them with thera predict --tta first")
        logits.append(of_model.mean(axis=1))
    shape = (len(members), facts.folds)
    return np.stack(logits, axis=1).reshape(len(dataset), *shape, *logits[0].shape[1:])


def _compute(
    images: _Prediction, missing: Sequence[tuple[int, int]], kept: KeptLogits | None, logits: np.ndarray, bar: Bar
) -> None:
    """Compute the missing fold models (member, fold), store the means over the views in `logits`, and write to `kept`.

    The logits are rounded in the same way whether they are written or not.
    """
    with _predictor(images, len(missing) * len(images.views), bar.say) as predictor:
        models = _fold_models(images, predictor, missing)
        for index, by_view, plan in predictor.predict(models, images.views, bar):
            column, fold = missing[index]
            if kept is None:
                logits[:, column, fold] = by_view.round(LOGIT_DECIMALS).mean(axis=1)
                continue
            facts = {**asdict(plan), "device": str(models[index].spec.device), "forced": predictor.requested}
            stored = kept.save(images.members[column], fold, images.views, by_view, **facts)
            logits[:, column, fold] = stored.mean(axis=1)


def _predictor(images: _Prediction, passes: int, say: Say) -> Predictor:
    from ensemble.cluster.resources import resources_of
    from ensemble.members.predictor import Predictor

    options = images.options
    resources = resources_of(images.compute, say)
    return Predictor(images.dataset.pixels, passes, resources, options.precision, options.convolutions)


def _fold_models(images: _Prediction, predictor: Predictor, models: Sequence[tuple[int, int]]) -> list[FoldModel]:
    """Return the fold models (member, fold) for the predictor; the plan of a member is chosen once."""
    from ensemble.members.plans import Plan
    from ensemble.members.predictor import FoldModel

    specs = {}
    for column in dict.fromkeys(column for column, _ in models):
        images.members[column].check_config()
        facts = images.members[column].read()
        as_trained = Plan(facts.precision, facts.convolutions)
        specs[column] = predictor.spec(facts.current_config, as_trained, len(facts.folds), images.facts.class_count)
    return [
        FoldModel(
            images.members[column].name,
            fold,
            specs[column],
            functools.partial(images.members[column].read_weights, fold),
        )
        for column, fold in models
    ]


def _load(
    kept: Sequence[KeptLogits], images: _Prediction, member: MemberFolder, fold: int, say: Say
) -> np.ndarray | None:
    """Return the kept logits (n, views[, C]) of a fold model; None where there are none and they can be computed."""
    damage = None
    for folder in kept:
        try:
            logits = folder.load(member, fold, images.views, images.options.precision, images.options.convolutions)
        except ArtifactError as error:
            damage = error
        else:
            if logits is not None:
                return logits
    try:
        member.weights(fold)
    except ArtifactError:
        if damage is None:
            raise
        problem = f"{damage.found}, and the weights that computed it are missing"
        raise ArtifactError(damage.where, problem, "restore one of the two") from None
    if damage is not None:
        say(f"warning: {damage.where}: {damage.found}; it is computed again")
    return None


# --- the cascade ------------------------------------------------------------------------------------------------------


def _cascade(
    images: _Prediction,
    decision: Decision | ClassDecision,
    oof: OofLogits,
    by_view: np.ndarray,
    probability: float,
    say: Say,
) -> FoldLogits:
    """Return logits; those that cannot change a label are imputed.

    `PILOT` images, drawn with the seed of the run, are evaluated by all members and views. They give the threshold that
    the cascade is fitted at, and show its effect on the labels. An interrupted cascade leaves no files.
    """
    assert isinstance(decision, Decision), "commands.predict refuses a cascade of more classes"
    seed, n = images.run.read().seed, len(images.dataset)
    every = list(product(range(len(images.members)), range(images.folds)))
    with _predictor(images, len(every) * len(images.views), say) as predictor:
        models = _fold_models(images, predictor, every)
        costs = np.array([predictor.cost_per_image(model.spec) for model in models[:: images.folds]])
        fit = functools.partial(
            fit_cascade, by_view, decision.stacker, cost=costs, probability=probability, groups=oof.groups, seed=seed
        )
        cascade = fit(threshold=decision.threshold)
        order = np.random.default_rng(seed_sequence(seed, "pilot")).permutation(n)
        pilot, rest = np.sort(order[:PILOT]), np.sort(order[PILOT:])
        logits = np.empty((n, len(images.members), len(images.views), images.folds))
        stopped = np.full(n, len(cascade.order) - 1)

        def walk(rows: np.ndarray, threshold: float | None, bar: Bar) -> None:
            steps = CascadeWalk(cascade, decision.stacker, len(rows), images.folds, threshold)
            while steps.rows.size:
                member, view = steps.cell
                of_member = models[member * images.folds : (member + 1) * images.folds]
                of_cell = np.empty((steps.rows.size, images.folds))
                for fold, by_view_of_fold, _ in predictor.predict(
                    of_member, [images.views[view]], bar, rows[steps.rows]
                ):
                    of_cell[:, fold] = by_view_of_fold[:, 0].round(LOGIT_DECIMALS)
                skipped = len(cascade.order) - 1 - cascade.order.index((member, view))
                bar.skip(steps.add(of_cell) * skipped * images.folds)
            logits[rows], stopped[rows] = steps.logits(), steps.stopped

        with progress(n * len(cascade.order) * images.folds, "predict", "views") as bar:
            walk(pilot, None, bar)
            options = images.options
            of_pilot, is_new = logits[pilot].mean(axis=2), images.run.is_new(images.dataset.digests[pilot])
            threshold = corrected(decision, oof, of_pilot, options.correction, options.prior, seed, is_new)[3]
            cascade = fit(threshold=threshold)
            share = f"{100 * cascade.cost_share:.0f} % of the computing"
            changed = f"{100 * cascade.changed_upper:.2g} % of the labels changed at one threshold"
            say(f"cascade {probability}: {share}, at most {changed}, measured on {cascade.tested} OOF rows")
            walk(rest, threshold, bar)
    last = np.array([max(j for j, (i, _) in enumerate(cascade.order) if i == m) for m in range(len(images.members))])
    facts = CascadeFacts(
        probability=cascade.probability,
        order=tuple((images.members[i].name, images.views[j]) for i, j in cascade.order),
        oof_changed=cascade.changed,
        oof_changed_upper=cascade.changed_upper,
        oof_cost_share=cascade.cost_share,
        images_in_full=int(np.count_nonzero(stopped == len(cascade.order) - 1)),
        evaluated_share=float(np.mean(stopped + 1) / len(cascade.order)),
        pilot=len(pilot),
        pilot_changed=changed_labels(cascade, decision.stacker, logits[pilot].mean(axis=3), threshold),
    )
    return FoldLogits(decision.stacker.members, logits.mean(axis=2), stopped[:, None] >= last, facts)
