"""The same labels for less: which members and views an image needs until its label is as good as settled.

The stack is linear in the logits of the m members under the v views, its m · v cells. They are evaluated one at a time,
cheap and telling ones first. After each, the missing cells are imputed from those at hand, and the stack of them all is
the predicted stacked logit; an image on which it is far enough from the threshold is evaluated no further.
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
"""Margins that are tried, in spreads of what the prediction misses by; the widest first."""

LEARNING = 1 / 3
"""Share of the rows that all but the scale is learnt from. A half gave the same cost within 3 %."""

MOST_ORDERS = 720
"""That are searched; of more, one is built greedily."""

CONFIDENCE = 0.95

Mask = NDArray[np.bool_]
Cell = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Cascade:
    """An order of the cells, and when to stop: stage j, of m · v, is the evaluation of cell `order[j]`.

    The shares are those of the rows that the margins were tested on.
    """

    members: tuple[str, ...]
    order: tuple[Cell, ...]  # (member, view), places in `members` and in the views
    margins: tuple[float, ...]  # a stage, in logits: distance from the threshold to stop at; inf: never, 0: always
    imputation: tuple[Floats, ...]  # a stage (1 + j + 1, m · v - j - 1): constant and slopes, a column a missing cell
    probability: float  # with which a label is to be the one that all cells give
    changed: float  # share of the rows whose label is another
    changed_upper: float  # its upper bound, one-sided, 95 % (Clopper and Pearson 1934)
    reached: tuple[float, ...]  # share of the rows on which a stage is evaluated
    cost_share: float  # of the cost of all cells
    tested: int  # rows

    def stops(self, stage: int, predicted: ArrayLike, threshold: float) -> Mask:
        """Return whether an image needs no further stage (n,).

        Its label is ``predicted >= threshold``, at a stop as at the end.

        Parameters
        ----------
        stage : int
            The last that was evaluated.
        predicted : float64 array (n,)
            The stack of the imputed logits, averaged over the views.
        threshold : float
            Of the stacked logit; it may be another than the one that the cascade was fitted at.
        """
        x = np.asarray(predicted, np.float64)
        return np.asarray((x >= threshold + self.margins[stage]) | (x < threshold - self.margins[stage]))

    def impute(self, stage: int, logits: ArrayLike) -> Floats:
        """Return logits (n, m, v) with the cells that come after `stage` filled, the others untouched.

        What the former are given as does not matter. It is linear in the logits, so that the mean of imputed fold
        models is the imputed mean; and a row's value does not depend on the batch that it came in.

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
    """Return the cheapest cascade found that keeps the label of an image with a probability.

    The margin of a stage is a scale times the spread of what its prediction misses by: the scale, one for all stages,
    is the number of standard errors at which a label is taken for settled. A third of the rows is learnt from: the
    imputation (least squares), the spreads, and the order that costs least at a scale that changes no more than
    ``1 - probability`` of their labels. A member's views keep their order; of at most `MOST_ORDERS` orders all are
    tried, of more the one that is built from the least cost for an image stopped (Wang, Gupta and You 2018, Quit when
    you can).

    The scale is set on the other rows. From the widest on, `SCALES` are tested until the first at which the upper bound
    of the share of changed labels is above ``1 - probability``; the one before is taken. The tests come in an order
    that was fixed beforehand, so that they need no correction, whatever was chosen on the other rows: of 100 cascades
    at most 5 change more than ``1 - probability`` of the labels of new rows (Angelopoulos et al. 2021, Learn then
    test). Too few rows pass no test, and nothing ever stops: for 0.999 at least 2,995 must be tested, of 4,493.

    Parameters
    ----------
    views : float64 array (n, m, v)
        OOF logits of each member under each view, finite.
    stacker : Stacker
        Of the m members; applied to the mean over the views.
    threshold : float
        Of the stacked logit.
    cost : array (m,)
        What a member costs on one image under one view, in any unit, above 0.
    probability : float
        In (0.5, 1): the share of images that are to keep their label, at least.
    groups : int64 array (n,), optional
        Rows of one group are not split over the two parts; beyond that, rows are taken as independent.
    seed : int
        Of the parting of the rows.

    Raises
    ------
    DataError
        Shapes differ, a logit is not finite, a cost is not positive, the probability is not in (0.5, 1), or there is
        one row or group alone.

    Notes
    -----
    An OOF logit comes from one fold model. Their mean, which is what prediction sees, misses by less, so that fewer
    labels change as a rule: at 0.999, of 20,000 images of the real set, 11 to 20 of a single fold model, 3 of the mean.

    Neither margins of their own for the two sides, nor a budget of changes shared out over the stages, nor margins
    optimised stage by stage cost less than one scale on the real rows and in simulation, beyond chance.

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
    """Takes images through a cascade: says which cell to evaluate next on which images, and settles their labels.

    Parameters
    ----------
    cascade : Cascade
    stacker : Stacker
    n, folds : int
        Images, and fold models of each member.
    threshold : float, optional
        Of the stacked logit; without one no image stops early.

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
        """The images that are evaluated next, (r,); none at the end."""
        self.stopped = np.full(n, len(cascade.order) - 1)
        """The last stage of each image (n,)."""

    @property
    def cell(self) -> Cell:
        """The member and the view to evaluate next, as places in `cascade.members` and in the views."""
        return self._cascade.order[self._stage]

    def add(self, logits: Floats) -> int:
        """Take the logits (r, folds) of the present cell on `rows`; return how many images stop after it."""
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
    """Return logits (n, m, v) with the cells that come after each image's last stage (n,) imputed."""
    filled = logits.copy()
    for stage in np.unique(stopped).tolist():
        filled[stopped == stage] = cascade.impute(stage, logits[stopped == stage])
    return filled


def changed_labels(cascade: Cascade, stacker: Stacker, logits: Floats, threshold: float) -> int:
    """Return how many labels a cascade would have changed on images whose logits (n, m, v) are all known."""
    stopped = np.full(len(logits), len(cascade.order) - 1)
    for stage in reversed(range(len(cascade.order) - 1)):
        predicted = stacker.apply(cascade.impute(stage, logits).mean(axis=2))
        stopped[cascade.stops(stage, predicted, threshold)] = stage
    early = stacker.apply(impute_after(cascade, logits, stopped).mean(axis=2))
    exact = stacker.apply(logits.mean(axis=2))
    return int(np.count_nonzero((early >= threshold) != (exact >= threshold)))


def upper_bound(count: int, n: int) -> float:
    """Return the upper bound of a share of which `count` of `n` were seen, one-sided, 95 % (Clopper and Pearson 1934).

    >>> round(upper_bound(0, 2995), 6), upper_bound(3, 3)
    (0.001, 1.0)
    """
    from scipy.special import betaincinv

    return 1.0 if count >= n else float(betaincinv(count + 1, n - count, CONFIDENCE))


@dataclass(frozen=True, eq=False)
class _Stage:
    """What is learnt of the stack's prediction from some of the cells."""

    seen: tuple[Cell, ...]
    missing: tuple[Cell, ...]
    imputation: Floats  # (1 + seen, missing)
    spread: float = 0.0  # root mean square of what it misses by


@dataclass(frozen=True, eq=False)
class _Outcome:
    """Rows at a stage, each (n,): distance from the threshold in spreads, and whether a stop changes the label."""

    stage: _Stage
    certainty: Floats
    changes: Mask


@dataclass(frozen=True, eq=False)
class _Path:
    """The beginning of an order, as rows walk it: who goes on (n,), what was paid, how many labels have changed."""

    order: tuple[Cell, ...]
    alive: Mask
    paid: float
    changed: int


def _impute(logits: Floats, seen: Sequence[Cell], missing: Sequence[Cell], imputation: Floats) -> Floats:
    filled = logits.copy()
    for (member, view), (constant, *slopes) in zip(missing, imputation.T, strict=True):
        values = np.full(len(logits), constant)
        for slope, (i, j) in zip(slopes, seen, strict=True):
            values += slope * logits[:, i, j]
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
    """Return the last scale before the first that fails, inf if that is the widest, and where rows stop at it (n,)."""
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
    """What is learnt from rows: the stages, and the order."""

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
        """Return the stages of the order that costs least with no more than a share of the labels changed."""
        n = len(self._logits)
        best = _Path(tuple(self._cells), np.zeros(n, np.bool_), math.inf, 0)
        for scale in SCALES[::-4].tolist():  # the cheapest first: what costs more need not be followed to its end
            best = self._search(_Path((), np.ones(n, np.bool_), 0.0, 0), scale, allowed * n, best)
        order = best.order
        return [self._stage(order[: j + 1], order[j + 1 :]) for j in range(len(order))]

    def _search(self, path: _Path, scale: float, most: float, best: _Path) -> _Path:
        """Return the cheapest of `best` and of all orders that begin with `path`, or of the greedy one."""
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
        """Return what an image that the added cell stops costs; of cells that stop none, the most telling is best."""
        stopped = int(np.count_nonzero(path.alive)) - int(np.count_nonzero(longer.alive))
        price = (longer.paid - path.paid) / stopped if stopped else math.inf
        return price, self._after(longer.order).stage.spread

    def _after(self, seen: tuple[Cell, ...]) -> _Outcome:
        """Return the rows after some cells, in whatever order."""
        key = frozenset(seen)
        if key not in self._by_cells:
            stage = self._stage(seen, tuple(cell for cell in self._cells if cell not in key))
            self._by_cells[key] = _outcome(stage, self._logits, self._stacker, self._threshold)
        return self._by_cells[key]

    def _stage(self, seen: tuple[Cell, ...], missing: tuple[Cell, ...]) -> _Stage:
        at, to = ([self._cells.index(cell) for cell in cells] for cells in (seen, missing))
        inverse = np.linalg.pinv(self._covariance[np.ix_(at, at)], rcond=1e-12, hermitian=True)
        slopes = inverse @ self._covariance[np.ix_(at, to)]
        stage = _Stage(seen, missing, np.vstack([self._mean[to] - self._mean[at] @ slopes, slopes]))
        missed = self._exact - _predict(stage, self._logits, self._stacker)
        return replace(stage, spread=float(np.sqrt(np.mean(missed**2))))


def _part(n: int, groups: ArrayLike | None, seed: int) -> Mask:
    """Return whether a row is learnt from (n,)."""
    groups = np.arange(n) if groups is None else np.asarray(groups)
    if groups.shape != (n,):
        raise DataError("cannot fit the cascade", f"groups must have shape ({n},); got {groups.shape}")
    names, group_of = np.unique(groups, return_inverse=True)
    if names.size < 2:
        raise DataError("cannot fit the cascade", f"needs two rows that may be parted; got {names.size}")
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
