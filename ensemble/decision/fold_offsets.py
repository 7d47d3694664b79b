"""Offsets between the logits of fold models: found on the OOF rows, and subtracted where they matter.

The folds are random parts of the same images, so the logits of the k models of a member have the same distribution in
expectation. A model whose training went another way may give all its logits higher or lower by a constant. Ranks within
its fold are as good as ever, but no threshold serves all folds: a rule that is fitted on the other folds is scored too
low on this one. The deployed rule averages the k models, and an offset then only moves all logits together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensemble.decision.comparison import paired_differences
from ensemble.decision.cross_fitting import OofLogits, cross_fit, member_logit, of_score
from ensemble.decision.rates import Floats

ALARM = 0.01
"""The significance level at which a fold of a member has an offset, for all folds and members together."""


@dataclass(frozen=True)
class FoldOffset:
    """A member whose fold models differ by an offset.

    Attributes
    ----------
    member : str
    offsets : tuple of k floats
        In logits, one for each fold in ascending order; their sum is 0, so the mean over the fold models stays as it
        is.
    spread : float
        The standard deviation of the aligned logits within a class.
    """

    member: str
    offsets: tuple[float, ...]
    spread: float

    @property
    def message(self) -> str:
        """The offset in a sentence."""
        largest = max(range(len(self.offsets)), key=lambda fold: abs(self.offsets[fold]))
        direction = "above" if self.offsets[largest] > 0 else "below"
        return (
            f"the fold models of {self.member} differ by an offset: those of fold {largest} lie "
            f"{abs(self.offsets[largest]):.3g} {direction} the mean of the folds, with a spread of {self.spread:.3g} "
            "within a class. The offsets are subtracted from its logits; train it longer, so that its folds agree"
        )


def find_fold_offsets(oof: OofLogits) -> tuple[FoldOffset, ...]:
    """Return the members whose fold models differ by an offset that costs errors, with the offsets.

    Two conditions must hold: the offset is beyond chance, and without it the member alone has a lower nested HTER,
    beyond chance as well (with the predictions kept, `comparison.paired_differences`).

    Of more than two classes, no offsets are looked for: a fold model may then differ by an offset in each class.

    The location of a fold is the mean logit of each class, weighted by the class shares of all rows. It is compared
    with that of the other folds by a z-test at `ALARM`, corrected for the number of folds and members (Bonferroni).

    Parameters
    ----------
    oof : OofLogits
        The logits as the fold models gave them.

    Examples
    --------
    >>> from ensemble.data.folds import FoldTable
    >>> rng, labels, fold_of = np.random.default_rng(0), np.arange(400) % 2, np.arange(400) // 2 % 4
    >>> logits = 2.0 * labels + rng.normal(size=400) + 3.0 * (fold_of == 1)
    >>> oof = OofLogits(FoldTable(np.arange(400), labels, fold_of), ("a",), logits[:, None])
    >>> [[round(offset) for offset in each.offsets] for each in find_fold_offsets(oof)]
    [[-1, 2, -1, -1]]
    """
    from scipy.stats import norm

    if oof.classes > 2:
        return ()
    shares = np.bincount(oof.labels, minlength=2) / oof.labels.size
    k, m = len(oof.folds), len(oof.members)
    limit = norm.isf(ALARM / (2 * k * m))
    cell = np.searchsorted(oof.folds, oof.fold_of) * 2 + oof.labels  # fold and class of each row
    counts = np.bincount(cell, minlength=2 * k).reshape(k, 2)
    found = []
    for name, logits in zip(oof.members, oof.logits.T, strict=True):
        means = (np.bincount(cell, logits, 2 * k) / counts.ravel()).reshape(k, 2)
        squares = np.bincount(cell, (logits - means.ravel()[cell]) ** 2, 2 * k).reshape(k, 2)
        variances = squares.sum(axis=0) / np.maximum(counts.sum(axis=0) - k, 1)  # within class and fold
        spread = float(np.sqrt(shares @ variances))
        offsets = means @ shares
        offsets -= offsets.mean()
        others = counts.sum(axis=0) - counts
        errors = np.sqrt((shares**2 * variances * (1 / counts + 1 / others)).sum(axis=1))
        # A fold's distance from the mean of the others is k / (k - 1) times its distance from the mean of all folds.
        distances = np.abs(offsets) * k / (k - 1)
        offset = FoldOffset(name, tuple(offsets.tolist()), spread)
        if (distances > limit * errors).any() and _costs_errors(offset, OofLogits(oof.table, (name,), logits[:, None])):
            found.append(offset)
    return tuple(found)


def _costs_errors(offset: FoldOffset, oof: OofLogits) -> bool:
    """Return whether the member alone has a lower nested HTER without the offset, beyond chance."""
    rule = of_score(member_logit(0))
    as_given, without = (cross_fit(rows.rows, rule).y_pred for rows in (oof, aligned(oof, (offset,))))
    return paired_differences(oof.labels, as_given, without)[2].interval.high < 0


def offsets_of(members: tuple[str, ...], found: tuple[FoldOffset, ...], k: int) -> Floats:
    """Return the offsets (m, k) of members, 0 where none were found."""
    by_name = {each.member: each.offsets for each in found}
    return np.array([by_name.get(name, (0.0,) * k) for name in members])


def aligned(oof: OofLogits, found: tuple[FoldOffset, ...]) -> OofLogits:
    """Return the OOF logits less the offsets of their folds."""
    if not found:
        return oof
    offsets = offsets_of(oof.members, found, len(oof.folds))
    return OofLogits(oof.table, oof.members, oof.logits - offsets.T[np.searchsorted(oof.folds, oof.fold_of)])
