"""Thresholds that are refitted in one bootstrap replicate at a time, by trying every cut on all rows."""

import numpy as np

from ensemble.decision.cuts import Cuts


def weighted_rates(y_pred, y, weights):
    """Return the FPR and FNR of predictions (..., n) of weighted rows; 0 for a class without weight."""
    wrong = (y_pred != y) * weights
    return tuple(wrong[..., y == label].sum(axis=-1) / max(weights[y == label].sum(), 1) for label in (0, 1))


def best_by_trying_all(x, y, weights, objective):
    """Return the threshold that `Cuts.best` promises, from the rates of every cut, each computed on all rows."""
    thresholds = Cuts(x, y).thresholds
    y_pred = x >= thresholds[:, None]
    fpr, fnr = weighted_rates(y_pred, y, weights)
    loss = np.where(objective.admits(fpr - 1e-12, fnr - 1e-12), objective.loss(fpr, fnr), np.inf)
    tie = np.where(loss <= loss.min() + 1e-12, objective.tie(fpr, fnr), np.inf)
    first = int(np.flatnonzero(tie <= tie.min() + 1e-12)[0])
    same = (y_pred[:, weights > 0] == y_pred[first, weights > 0]).all(axis=1)  # for the rows that were drawn
    equal = [cut for cut in np.flatnonzero(same) if cut >= first]
    return thresholds[(equal[0] + equal[-1]) // 2]


def refitted_by_hand(scores, y, splits, weights, objective):
    """Return the deployed threshold and the nested FPR and FNR, with thresholds fitted one by one."""
    y_pred = np.empty(y.size, np.int8)
    for split in splits:
        out = ~split.inside
        at = best_by_trying_all(split.scores[out], y[out], weights[out], objective)
        y_pred[split.inside] = split.scores[split.inside] >= at
    return best_by_trying_all(scores, y, weights, objective), weighted_rates(y_pred, y, weights)
