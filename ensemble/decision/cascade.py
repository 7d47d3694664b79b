"""The cascade: fewer members and views for images whose label is clear early.

The stack is linear in the logits of the m members under the v views, its m · v cells. The cells are
evaluated one after another, cheap and informative ones first. After each cell, the missing ones are imputed from those
that are known, and the stack of all of them is the predicted stacked logit. If it is far enough from the threshold, the
image is evaluated no further.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.config import seed_sequence
from ensemble.decision.rates import Floats
from ensemble.decision.stacker import Stacker
from ensemble.errors import DataError

SCALES = np.geomspace(100, 0.01, 400)
"""The stopping margins that are tested, as multiples of the root mean square imputation error (full stacked logit minus
imputed one); the widest comes first."""

LEARNING = 1 / 3
"""The share of the rows on which everything but the scale is fitted. A half gave the same cost within 3 %."""

MOST_ORDERS = 720
"""The largest number of orders that are searched completely; with more, one order is built greedily."""

CONFIDENCE = 0.95
"""The one-sided confidence of the bound on changed labels."""

Mask = NDArray[np.bool_]
Cell = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Cascade:
    """An order of the cells, and when to stop: stage j, of m · v, is the evaluation of cell `order[j]`.

    The shares refer to the rows on which the margins were tested.
    """

    members: tuple[str, ...]
    order: tuple[Cell, ...]  # (member, view), indices into `members` and the views
    margins: tuple[
        float, ...
    ]  # per stage, in logits: the distance from the threshold at which an image stops; inf: never, 0: always
    imputation: tuple[
        Floats, ...
    ]  # per stage (1 + j + 1, m · v - j - 1): constant and coefficients, one column per missing cell
    probability: float  # the requested probability that a label equals the label from all cells
    changed: float  # the share of the rows whose label changes
    changed_upper: float  # its upper bound, one-sided, 95 % (Clopper and Pearson 1934)
    reached: tuple[float, ...]  # the share of the rows on which a stage is evaluated
    cost_share: float  # as a share of the cost of all cells
    tested: int  # the number of rows on which the margins were tested

    def stops(self, stage: int, predicted: ArrayLike, threshold: float) -> Mask:
        """Return whether an image needs no further stage (n,).

        Its label is ``predicted >= threshold``, at an early stop and at the end.

        Parameters
        ----------
        stage : int
            The last stage that was evaluated.
        predicted : float64 array (n,)
            The stack of the imputed logits, averaged over the views.
        threshold : float
            The threshold of the stacked logit; it may differ from the one at which the cascade was fitted.
        """
        x = np.asarray(predicted, np.float64)
        return np.asarray((x >= threshold + self.margins[stage]) | (x < threshold - self.margins[stage]))

    def impute(self, stage: int, logits: ArrayLike) -> Floats:
        """Return logits (n, m, v) in which the cells after `stage` are imputed and the others unchanged.

        The values of the later cells are ignored. The imputation is linear in the logits, so the mean of imputed fold
        models equals the imputed mean, and the result of a row does not depend on the other rows of the batch.

        Raises
        ------
        DataError
            The shape is not (n, m, v).
        """
        x, expected = np.asarray(logits, np.float64), (len(self.members), len(self.order) // len(self.members))
        if x.ndim != 3 or x.shape[1:] != expected:
            raise DataError("cascade", f"needs logits of shape (n, {expected[0]}, {expected[1]}); got {x.shape}")
        return _impute(x, self.order[: stage + 1], self.order[stage + 1 :], self.imputation[stage])


def fit_cascade(
    views: ArrayLike,
    stacker: Stacker,
    threshold: float,
    cost: ArrayLike,
    probability: float = 0.999,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> Cascade:
    """Return the cheapest cascade of those searched that keeps an image's label with a given probability.

    The margin of a stage is a scale times the root mean square error of the stage's prediction. All stages share the
    scale, the number of standard errors at which a label counts as clear. A third of the rows fits the imputation
    (least squares), the errors, and the order that costs least at a scale that changes at most ``1 - probability`` of
    these rows' labels. The views of a member keep their order. If there are at most `MOST_ORDERS` orders, all are
    searched; otherwise the order is built greedily from the cell with the least cost per stopped image (Wang, Gupta and
    You 2018, Quit when you can).

    The other rows set the scale. `SCALES` are tested from the widest on, up to the first at which the upper bound of
    the share of changed labels exceeds ``1 - probability``; the scale before it is used. The sequence of tests is fixed
    in advance, so no correction for multiple tests is needed: at most 5 of 100 cascades change more than
    ``1 - probability`` of the labels of new rows (Angelopoulos et al. 2021, Learn then test). With too few rows no test
    passes and no image ever stops: 0.999 needs at least 2,995 rows in the tests, 4,493 in all.

    Parameters
    ----------
    views : float64 array (n, m, v)
        OOF logits of each member under each view, finite.
    stacker : Stacker
        The stacker of the m members; it is applied to the mean over the views.
    threshold : float
        The threshold of the stacked logit.
    cost : array (m,)
        The cost of a member on one image under one view, in any unit, above 0.
    probability : float
        In (0.5, 1): the least share of images that keep their label.
    groups : int64 array (n,), optional
        Rows of one group stay in the same part; the tests treat rows as independent.
    seed : int
        Seed of the split of the rows.

    Raises
    ------
    DataError
        Shapes differ, a logit is not finite, a cost is not positive, the probability is not in (0.5, 1), or there is
        one row or group alone.

    Notes
    -----
    An OOF logit comes from one fold model. Prediction uses the mean of fold models, whose error is smaller, so fewer
    labels change: at 0.999, among 20,000 images of the real set, 11 to 20 with a single fold model and 3 with the mean.

    Three alternatives were not cheaper beyond chance, on the real rows and in simulation: separate margins for the two
    sides, a budget of changes divided among the stages, and margins optimised stage by stage.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> logits = rng.normal(size=(20_000, 1, 1)) + 0.5 * rng.normal(size=(20_000, 2, 1))
    >>> stacker = Stacker(("a", "b"), (0.5, 0.5), 0.0)
    >>> cascade = fit_cascade(logits, stacker, 0.0, [1.0, 5.0], 0.99)
    >>> cascade.order, 0.3 < cascade.cost_share < 0.5, cascade.changed_upper <= 0.01
    (((0, 0), (1, 0)), True, True)
    """
    x, costs = _checked(views, stacker, cost, probability)
    learning = _part(len(x), groups, seed)
    stages = _Learner(x[learning], stacker, threshold, costs).stages(1 - probability)
    outcomes = [_outcome(stage, x[~learning], stacker, threshold) for stage in stages]
    scale, stopped = _cheapest_scale(outcomes, 1 - probability)
    changed, tested = _changed(outcomes, stopped), stopped.size
    order = stages[-1].seen
    reached = np.array([np.count_nonzero(stopped >= j) for j in range(len(order))]) / tested
    prices = costs[[member for member, _ in order]]
    return Cascade(
        members=stacker.members,
        order=order,
        margins=(*(math.inf if scale == math.inf else scale * stage.spread for stage in stages[:-1]), 0.0),
        imputation=tuple(stage.imputation for stage in stages),
        probability=probability,
        changed=changed / tested,
        changed_upper=0.0 if scale == math.inf else upper_bound(changed, tested),
        reached=tuple(reached.tolist()),
        cost_share=float(prices @ reached / prices.sum()),
        tested=tested,
    )


class CascadeWalk:
    """State of the images in a cascade: which cell to evaluate next, and on which images.

    Parameters
    ----------
    cascade : Cascade
    stacker : Stacker
    n, folds : int
        The number of images, and of fold models of each member.
    threshold : float, optional
        The threshold of the stacked logit; without it no image stops early.

    Examples
    --------
    >>> walk = CascadeWalk(cascade, stacker, n=4, folds=3, threshold=0.0)  # doctest: +SKIP
    >>> while walk.rows.size:  # doctest: +SKIP
    ...     member, view = walk.cell
    ...     walk.add(evaluate(member, view, walk.rows))
    """

    def __init__(self, cascade: Cascade, stacker: Stacker, n: int, folds: int, threshold: float | None = None) -> None:
        self._cascade, self._stacker, self._threshold = cascade, stacker, threshold
        members = len(cascade.members)
        self._logits = np.zeros((n, members, len(cascade.order) // members, folds))
        self._stage = 0
        self.rows = np.arange(n)
        """Indices (r,) of the images to evaluate next; empty at the end."""
        self.stopped = np.full(n, len(cascade.order) - 1)
        """The last stage of each image (n,)."""

    @property
    def cell(self) -> Cell:
        """The member and the view to evaluate next, as indices into `cascade.members` and the views."""
        return self._cascade.order[self._stage]

    def add(self, logits: Floats) -> int:
        """Store the logits (r, folds) of the current cell on `rows`; return how many images stop after it."""
        member, view = self.cell
        self._logits[self.rows, member, view] = logits
        stage, last = self._stage, len(self._cascade.order) - 1
        self._stage += 1
        if stage == last:
            self.rows = self.rows[:0]
        elif self._threshold is not None:
            filled = self._cascade.impute(stage, self._logits[self.rows].mean(axis=3))
            stops = self._cascade.stops(stage, self._stacker.apply(filled.mean(axis=2)), self._threshold)
            self.stopped[self.rows[stops]], self.rows = stage, self.rows[~stops]
            return int(np.count_nonzero(stops))
        return 0

    def logits(self) -> Floats:
        """Return the logits (n, m, v, folds), imputed where they were not needed."""
        filled = [impute_after(self._cascade, of_fold, self.stopped) for of_fold in np.moveaxis(self._logits, 3, 0)]
        return np.stack(filled, axis=3)


def impute_after(cascade: Cascade, logits: Floats, stopped: NDArray[np.int64]) -> Floats:
    """Return logits (n, m, v) in which the cells after each image's last stage (n,) are imputed."""
    filled = logits.copy()
    for stage in np.unique(stopped).tolist():
        filled[stopped == stage] = cascade.impute(stage, logits[stopped == stage])
    return filled


def changed_labels(cascade: Cascade, stacker: Stacker, logits: Floats, threshold: float) -> int:
    """Return how many labels a cascade changes on images whose logits (n, m, v) are all known."""
    stopped = np.full(len(logits), len(cascade.order) - 1)
    for stage in reversed(range(len(cascade.order) - 1)):
        predicted = stacker.apply(cascade.impute(stage, logits).mean(axis=2))
        stopped[cascade.stops(stage, predicted, threshold)] = stage
    early = stacker.apply(impute_after(cascade, logits, stopped).mean(axis=2))
    exact = stacker.apply(logits.mean(axis=2))
    return int(np.count_nonzero((early >= threshold) != (exact >= threshold)))


def upper_bound(count: int, n: int) -> float:
    """Return the one-sided 95 % upper bound of a share, given `count` of `n` (Clopper and Pearson 1934).

    >>> round(upper_bound(0, 2995), 6), upper_bound(3, 3)
    (0.001, 1.0)
    """
    from scipy.special import betaincinv

    return 1.0 if count >= n else float(betaincinv(count + 1, n - count, CONFIDENCE))


@dataclass(frozen=True, eq=False)
class _Stage:
    """The prediction of the stacked logit from some of the cells."""

    seen: tuple[Cell, ...]
    missing: tuple[Cell, ...]
    imputation: Floats  # (1 + seen, missing)
    spread: float = 0.0  # root mean square imputation error of the stacked logit


@dataclass(frozen=True, eq=False)
class _Outcome:
    """Rows at a stage, each (n,): distance from the threshold in units of `spread`; does a stop change the label?"""

    stage: _Stage
    certainty: Floats
    changes: Mask


@dataclass(frozen=True, eq=False)
class _Path:
    """The first cells of an order: which rows have not stopped (n,), the cost so far, and how many labels changed."""

    order: tuple[Cell, ...]
    alive: Mask
    paid: float
    changed: int


def _impute(logits: Floats, seen: Sequence[Cell], missing: Sequence[Cell], imputation: Floats) -> Floats:
    filled = logits.copy()
    for (member, view), (constant, *coefficients) in zip(missing, imputation.T, strict=True):
        values = np.full(len(logits), constant)
        for coefficient, (i, j) in zip(coefficients, seen, strict=True):
            values += coefficient * logits[:, i, j]
        filled[:, member, view] = values
    return filled


def _predict(stage: _Stage, logits: Floats, stacker: Stacker) -> Floats:
    return stacker.apply(_impute(logits, stage.seen, stage.missing, stage.imputation).mean(axis=2))


def _outcome(stage: _Stage, logits: Floats, stacker: Stacker, threshold: float) -> _Outcome:
    predicted, exact = _predict(stage, logits, stacker), stacker.apply(logits.mean(axis=2))
    distance = np.abs(predicted - threshold)
    certainty = distance / stage.spread if stage.spread > 0 else np.full(len(logits), np.inf)
    return _Outcome(stage, certainty, (predicted >= threshold) != (exact >= threshold))


def _cheapest_scale(outcomes: Sequence[_Outcome], allowed: float) -> tuple[float, NDArray[np.intp]]:
    """Return the last scale before the first failure (inf if the widest fails), and the stage (n,) where rows stop."""
    n = len(outcomes[0].changes)
    scale, stopped = math.inf, np.full(n, len(outcomes) - 1)
    for tried in SCALES.tolist():
        at = np.full(n, len(outcomes) - 1)
        for j in reversed(range(len(outcomes) - 1)):
            at[outcomes[j].certainty >= tried] = j
        if upper_bound(_changed(outcomes, at), n) > allowed:
            break
        scale, stopped = tried, at
    return scale, stopped


def _changed(outcomes: Sequence[_Outcome], stopped: NDArray[np.intp]) -> int:
    return sum(int(np.count_nonzero(each.changes & (stopped == j))) for j, each in enumerate(outcomes))


class _Learner:
    """Fits the stages and the order on the rows that are not used for the tests."""

    def __init__(self, logits: Floats, stacker: Stacker, threshold: float, costs: Floats) -> None:
        self._logits, self._stacker, self._threshold, self._costs = logits, stacker, threshold, costs
        self._exact = stacker.apply(logits.mean(axis=2))
        flat = logits.reshape(len(logits), -1)
        self._mean = flat.mean(axis=0)
        self._covariance = (flat - self._mean).T @ (flat - self._mean)
        self._by_cells: dict[frozenset[Cell], _Outcome] = {}
        members, self._views = logits.shape[1:]
        self._cells: list[Cell] = [(i, j) for i in range(members) for j in range(self._views)]
        orders = math.factorial(len(self._cells)) // math.factorial(self._views) ** members
        self._greedy = orders > MOST_ORDERS

    def stages(self, allowed: float) -> list[_Stage]:
        """Return the stages of the cheapest order that changes at most the share `allowed` of the labels."""
        n = len(self._logits)
        best = _Path(tuple(self._cells), np.zeros(n, np.bool_), math.inf, 0)
        for scale in SCALES[::-4].tolist():  # the cheapest first, so that dearer orders are abandoned early
            best = self._search(_Path((), np.ones(n, np.bool_), 0.0, 0), scale, allowed * n, best)
        order = best.order
        return [self._stage(order[: j + 1], order[j + 1 :]) for j in range(len(order))]

    def _search(self, path: _Path, scale: float, most: float, best: _Path) -> _Path:
        """Return the cheapest of `best` and the orders that begin with `path`, or with too many, the greedy one."""
        if path.changed > most or path.paid >= best.paid:
            return best
        views = [sum(member == i for member, _ in path.order) for i in range(len(self._costs))]
        longer = [self._add(path, (i, view), scale) for i, view in enumerate(views) if view < self._views]
        if not longer:
            return path
        if self._greedy:
            longer = [min(longer, key=lambda each: self._price(path, each))]
        for each in longer:
            best = self._search(each, scale, most, best)
        return best

    def _add(self, path: _Path, cell: Cell, scale: float) -> _Path:
        order = (*path.order, cell)
        outcomes = self._after(order)
        stops = path.alive & (outcomes.certainty >= scale)
        paid = float(self._costs[cell[0]]) * int(np.count_nonzero(path.alive))
        changed = int(np.count_nonzero(stops & outcomes.changes))
        return _Path(order, path.alive & ~stops, path.paid + paid, path.changed + changed)

    def _price(self, path: _Path, longer: _Path) -> tuple[float, float]:
        """Return the cost per image that the added cell stops, then the error, which ranks cells that stop none."""
        stopped = int(np.count_nonzero(path.alive)) - int(np.count_nonzero(longer.alive))
        price = (longer.paid - path.paid) / stopped if stopped else math.inf
        return price, self._after(longer.order).stage.spread

    def _after(self, seen: tuple[Cell, ...]) -> _Outcome:
        """Return the outcome after these cells; their order does not matter."""
        key = frozenset(seen)
        if key not in self._by_cells:
            stage = self._stage(seen, tuple(cell for cell in self._cells if cell not in key))
            self._by_cells[key] = _outcome(stage, self._logits, self._stacker, self._threshold)
        return self._by_cells[key]

    def _stage(self, seen: tuple[Cell, ...], missing: tuple[Cell, ...]) -> _Stage:
        at, to = ([self._cells.index(cell) for cell in cells] for cells in (seen, missing))
        inverse = np.linalg.pinv(self._covariance[np.ix_(at, at)], rcond=1e-12, hermitian=True)
        coefficients = inverse @ self._covariance[np.ix_(at, to)]
        constants = self._mean[to] - self._mean[at] @ coefficients
        stage = _Stage(seen, missing, np.vstack([constants, coefficients]))
        errors = self._exact - _predict(stage, self._logits, self._stacker)
        return replace(stage, spread=float(np.sqrt(np.mean(errors**2))))


def _part(n: int, groups: ArrayLike | None, seed: int) -> Mask:
    """Return which rows (n,) fit the stages and the order; the others are for the tests."""
    groups = np.arange(n) if groups is None else np.asarray(groups)
    if groups.shape != (n,):
        raise DataError("cannot fit the cascade", f"groups must have shape ({n},); got {groups.shape}")
    names, group_of = np.unique(groups, return_inverse=True)
    if names.size < 2:
        raise DataError("cannot fit the cascade", f"needs at least two rows or groups to split; got {names.size}")
    rank = np.random.default_rng(seed_sequence(seed, "cascade")).permutation(names.size)
    return np.asarray(rank[group_of] < LEARNING * names.size)


def _checked(views: ArrayLike, stacker: Stacker, cost: ArrayLike, probability: float) -> tuple[Floats, Floats]:
    task, m = "cannot fit the cascade", len(stacker.members)
    x, costs = np.asarray(views, np.float64), np.asarray(cost, np.float64)
    if x.ndim != 3 or x.shape[1] != m or not x.shape[2]:
        raise DataError(task, f"needs logits of shape (n, {m}, v); got {x.shape}")
    if not np.isfinite(x).all():
        raise DataError(
            task, f"logits must be finite; got {np.count_nonzero(~np.isfinite(x))} of {x.size} that are not"
        )
    if costs.shape != (m,) or not (np.isfinite(costs) & (costs > 0)).all():
        raise DataError(task, f"needs a finite cost above 0 for each of {stacker.members}; got {costs.tolist()}")
    if not 0.5 < probability < 1:
        raise DataError(task, f"probability must be in (0.5, 1); got {probability}")
    return x, costs
