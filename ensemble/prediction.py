"""Labels for a set of images: what lies below `predictions/<set>/`, and how it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ensemble import runs, storage
from ensemble.config import PredictConfig
from ensemble.decision.averaging import LEAST_IMAGES, Corrected, Foreseen, foresee
from ensemble.decision.decision import Decision, stack_replicates
from ensemble.decision.rates import ErrorRates, call, error_rates
from ensemble.decision.rules import OofLogits
from ensemble.decision.shift import ShareCheck, at_prior, check_share
from ensemble.errors import ArtifactError
from ensemble.progress import Bar, Say, progress

if TYPE_CHECKING:
    from ensemble.data.source import Dataset

REPLICATES = 400
"""Of the bootstrap behind the expected HTER; each fits the effect of averaging anew, about a hundredth of a second."""

Compute: TypeAlias = Callable[
    [Sequence[tuple[runs.MemberFolder, int]], Sequence[str], "Dataset", Bar],
    Iterator[tuple[int, np.ndarray, dict[str, Any]]],
]
"""`Engine.compute`."""

LEAST_SHARE = 0.001
"""Of a class, that an estimate of the class mix is taken for: from a class that is not there nothing can be fitted."""


class KeptLogits:
    """A folder of fold models' logits, `<member>/fold-<k>.csv`, and `made_from.json`, which says what made them.

    Parameters
    ----------
    folder : Path
        `predictions/<set>/logits`.
    dataset : Dataset
        The images; logits of others are not theirs.

    Raises
    ------
    ArtifactError
        What is said of them is damaged, or of a newer schema.
    """

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self._folder, self._note, self._dataset = folder, folder / "made_from.json", dataset
        self._files: dict[str, dict[str, Any]] = {}
        if not self._note.exists():
            return
        remedy = f"remove {folder}; its logits are then computed again"
        stored = storage.read_json(self._note, remedy)
        files = stored.get("files")
        if not isinstance(files, dict) or not all(isinstance(facts, dict) for facts in files.values()):
            raise ArtifactError(self._note, "is damaged", remedy)
        if stored.get("fingerprint") == dataset.fingerprint:
            self._files = files

    def load(
        self, member: runs.MemberFolder, fold: int, views: Sequence[str], wanted: PredictConfig
    ) -> np.ndarray | None:
        """Return the logits (n, views) of a fold model, or None where these weights, views and forced plan have none.

        Raises
        ------
        ArtifactError
            The file is not as it was written.
        """
        path, facts = self._folder / _name(member, fold), self._files.get(_name(member, fold), {})
        seen = facts.get("views")
        if not isinstance(seen, list) or not all(view in seen for view in views):
            return None
        if facts.get("weights_sha256") != member.weights_sha256(fold) or not path.exists():
            return None
        forced = {"precision": wanted.precision, "convolutions": wanted.convolutions}
        as_forced = all(value in ("auto", facts.get(key, "native")) for key, value in forced.items())
        if not as_forced and facts.get("forced") != forced:
            return None
        ids, logits = runs.read_logits(path, seen, str(facts.get("sha256")), "restore it")
        if not np.array_equal(ids, self._dataset.ids):
            raise ArtifactError(path, "has other ids than the images", "restore it")
        return logits[:, [seen.index(view) for view in views]]

    def save(
        self, member: runs.MemberFolder, fold: int, views: Sequence[str], logits: np.ndarray, **facts: Any
    ) -> np.ndarray:
        """Write the logits (n, views) of a fold model and what made them; return them as written, rounded."""
        path = self._folder / _name(member, fold)
        sha256 = runs.write_logits(path, self._dataset.ids, logits, views)
        made_from = {"sha256": sha256, "weights_sha256": member.weights_sha256(fold), "views": list(views)}
        self._files[_name(member, fold)] = made_from | facts
        stored = {"schema": storage.SCHEMA, "fingerprint": self._dataset.fingerprint, "files": self._files}
        storage.write_json(self._note, stored)
        return runs.read_logits(path, views, sha256, "")[1]


def _name(member: runs.MemberFolder, fold: int) -> str:
    return f"{member.name}/fold-{fold}.csv"


@dataclass(frozen=True)
class FoldLogits:
    """Logits (n, m, k) of each member and fold model, averaged over the views.

    A cascade has `known` (n, m), where a member was evaluated and not imputed, and `facts` about itself.
    """

    logits: np.ndarray
    known: np.ndarray | None = None
    facts: Mapping[str, Any] | None = None


def fold_logits(
    run: runs.Run,
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
    member: runs.MemberFolder,
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


# --- the label file ---------------------------------------------------------------------------------------------------


def is_predicted(place: Path, made_from: Mapping[str, Any]) -> bool:
    """Return whether the files of a prediction are there as they were written, and were made from this."""
    try:
        stored = storage.read_json(place / "predictions.json", "")
        files = {name: storage.file_sha256(place / name) for name in ("label_val.txt", "predictions.csv")}
    except (ArtifactError, OSError):
        return False
    stored = {"combine": "mean"} | stored  # what one of before there was a choice does not say
    return all(stored.get(key) == value for key, value in made_from.items()) and stored.get("files") == files


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
    logits = found.logits.mean(axis=2).round(runs.LOGIT_DECIMALS)
    stacked = decision.stacker.apply(logits)
    mix, foreseen, threshold = None, None, decision.threshold
    if wanted.combine == "vote":
        check = _check(decision, oof, _singles(decision, found.logits))
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
            *(f"{x:.{runs.LOGIT_DECIMALS}f}" if there else "" for x, there in zip(own, has, strict=True)),
            f"{x:.{runs.LOGIT_DECIMALS}f}",
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
            _probability(stacked + shift),
            labels,
            votes.tolist(),
            majority,
            of_folds.tolist(),
            strict=True,
        )
    )
    files = {
        "label_val.txt": storage.write_whole(place / "label_val.txt", text),
        "predictions.csv": storage.write_table(place / "predictions.csv", columns, rows),
    }
    storage.write_json(
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
            **_expectations(decision, foreseen, len(ids), wanted.prior, seed),
            "share_check": check.to_json() | {"told": check.told},
            "files": files,
        },
    )


def deployed_threshold(
    decision: Decision, oof: OofLogits, fold_logits: np.ndarray, wanted: PredictConfig, seed: int
) -> tuple[ShareCheck, float | None, Foreseen | None, float]:
    """Return what the images (n, m, k) say of their class mix, the mix that is taken, what to expect, the threshold."""
    singles = _singles(decision, fold_logits)
    check = _check(decision, oof, singles)
    mix = wanted.prior
    if mix is None and check.shifted:
        mix = float(np.clip(check.prior, LEAST_SHARE, 1 - LEAST_SHARE))
    unknown = wanted.prior is None and check.shifted  # what has changed is not known: the threshold stays
    foreseen = _foresee(decision, oof, singles, "none" if unknown else wanted.correction, mix, seed)
    return check, mix, foreseen, decision.threshold if foreseen is None else foreseen.chosen.threshold


def _singles(decision: Decision, fold_logits: np.ndarray) -> np.ndarray:
    """Return the stacked logits (n, k) of single fold models, from those of the members (n, m, k)."""
    return np.stack([decision.stacker.apply(of_fold) for of_fold in np.moveaxis(fold_logits, 2, 0)], axis=1)


def majority_of_folds(decision: Decision, fold_logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels (n,) that most fold models give at the decision's threshold, and what each gives (n, k).

    Each fold's members, (n, m, k) in all, are stacked first. Where the folds are split evenly, the mean of their
    stacked logits decides.
    """
    singles = _singles(decision, fold_logits)
    votes = call(singles, decision.threshold)
    ones, zeros = votes.sum(axis=1), (1 - votes).sum(axis=1)
    mean = call(singles.mean(axis=1), decision.threshold)
    return np.where(ones == zeros, mean, ones > zeros).astype(np.int8), votes


def _check(decision: Decision, oof: OofLogits, singles: np.ndarray) -> ShareCheck:
    """Return the share check of the fold models' stacked logits (n, k)."""
    scores = decision.stacker.apply(oof.logits)
    rates = error_rates(oof.labels, call(scores, decision.threshold))
    return check_share(scores, singles, decision.threshold, rates, oof.groups)


def _foresee(
    decision: Decision, oof: OofLogits, singles: np.ndarray, correction: str, prior: float | None, seed: int
) -> Foreseen | None:
    """Return what to expect of the mean of the fold models' stacked logits (n, k); None for too few images."""
    if len(singles) < LEAST_IMAGES:
        return None
    return foresee(
        decision.stacker.apply(oof.logits),
        oof.labels,
        singles,
        decision.threshold,
        decision.nested,
        stack_replicates(decision, oof, seed, REPLICATES),
        correction,
        decision.objective,
        prior,
        seed,
    )


def _expectations(
    decision: Decision, foreseen: Foreseen | None, n: int, prior: float | None, seed: int
) -> dict[str, Any]:
    """Return the facts of the rates to expect; the nested ones where nothing is known of averaging."""
    if foreseen is None:
        rates, interval, measured = decision.nested, decision.interval, decision.stacked.new_set_interval(n, seed)
        known: dict[str, Any] = {"correction": "none", "averaging_measured": False, "corrections": {}}
    else:
        rates, interval, measured = foreseen.chosen.rates, foreseen.interval, foreseen.measured
        candidates = {each.correction: _corrected(each) for each in foreseen.candidates}
        known = {"correction": foreseen.chosen.correction, "averaging_measured": True, "corrections": candidates}
    return {
        **known,
        "expected": _rates(rates),
        "hter_interval": [interval.low, interval.high],
        "expected_interval": measured and [measured.low, measured.high],
        "at_prior": None if prior is None else at_prior(rates, prior).to_json(),
    }


def _corrected(corrected: Corrected) -> dict[str, float]:
    facts = {"threshold": corrected.threshold, "share_of_label_0": corrected.share_of_label_0}
    return facts | _rates(corrected.rates)


def _rates(rates: ErrorRates) -> dict[str, float]:
    return {"fpr": rates.fpr, "fnr": rates.fnr, "hter": rates.hter}


def verify(text: bytes, n: int, path: Path) -> None:
    """Raise an ArtifactError unless a label file is n lines of 0 or 1."""
    lines = text.split(b"\n")
    if lines[-1] != b"" or len(lines) != n + 1 or not set(lines[:-1]) <= {b"0", b"1"}:
        raise ArtifactError(path, f"must hold {n} lines of 0 or 1", "run: thera predict")


def _probability(logits: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return np.asarray(expit(logits))
