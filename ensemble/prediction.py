"""Labels for a set of images: what lies below `predictions/<set>/`, and how it is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble import runs
from ensemble.config import MemberConfig, PredictConfig
from ensemble.decision.averaging import LEAST_IMAGES, Corrected, Foreseen, foresee
from ensemble.decision.decision import Decision, stack_replicates
from ensemble.decision.rates import ErrorRates, call, error_rates
from ensemble.decision.rules import OofLogits
from ensemble.decision.shift import ShareCheck, at_prior, check_share
from ensemble.errors import ArtifactError, TheraError
from ensemble.progress import Bar, Say, progress

if TYPE_CHECKING:
    from ensemble.data.source import Dataset

REPLICATES = 400
"""Of the bootstrap behind the expected HTER; each fits the effect of averaging anew, about a hundredth of a second."""

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
        stored = runs.read_json(self._note, remedy)
        files = stored.get("files")
        if not isinstance(files, dict) or not all(isinstance(facts, dict) for facts in files.values()):
            raise ArtifactError(self._note, "is damaged", remedy)
        if stored.get("fingerprint") == dataset.fingerprint:
            self._files = files

    def load(self, member: runs.MemberFolder, fold: int, views: Sequence[str]) -> np.ndarray | None:
        """Return the logits (n, views) of a fold model, or None where these weights and views have none.

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
        stored = {"schema": runs.SCHEMA, "fingerprint": self._dataset.fingerprint, "files": self._files}
        runs.write_json(self._note, stored)
        return runs.read_logits(path, views, sha256, "")[1]


def _name(member: runs.MemberFolder, fold: int) -> str:
    return f"{member.name}/fold-{fold}.csv"


def fold_logits(
    run: runs.Run, decision: Decision, dataset: Dataset, places: Sequence[Path], device: str, say: Say
) -> np.ndarray:
    """Return the logits of each member and fold model, averaged over the decision's views.

    What is kept is read, without the weights and without torch; the rest is computed, and kept as soon as a fold model
    is done. The logits are those of the files, rounded, so that it makes no difference which were computed when.

    Parameters
    ----------
    places : sequence of Path
        The set's folder, into which is written, and others that may hold logits of the same images.
    device : str
        Of `--device`.

    Returns
    -------
    float64 array (n, m, k)

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
    steps = len(dataset) * len(decision.views)
    with progress(len(members) * folds * steps, "predict", "views") as bar:
        missing: dict[int, list[int]] = {}
        for column, member in enumerate(members):
            for fold in range(folds):
                found = _load(kept, member, fold, decision.views, say)
                if found is None:
                    missing.setdefault(column, []).append(fold)
                else:
                    logits[:, column, fold] = found.mean(axis=1)
                    bar.skip(steps)
        for column, of_member in missing.items():
            for fold, views in _compute(members[column], of_member, decision.views, dataset, kept[0], device, bar):
                logits[:, column, fold] = views.mean(axis=1)
    return logits


def _load(
    kept: Sequence[KeptLogits], member: runs.MemberFolder, fold: int, views: Sequence[str], say: Say
) -> np.ndarray | None:
    """Return a fold model's logits (n, views) from the first folder that has them; None where they can be computed."""
    damaged = None
    for folder in kept:
        try:
            logits = folder.load(member, fold, views)
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


def _compute(
    member: runs.MemberFolder,
    folds: Sequence[int],
    views: Sequence[str],
    dataset: Dataset,
    kept: KeptLogits,
    device: str,
    bar: Bar,
) -> Iterator[tuple[int, np.ndarray]]:
    """Compute and keep the logits (n, views) of some of a member's fold models, one at a time.

    Raises
    ------
    TheraError
        A logit is not finite.
    """
    from ensemble.members.backbones import build
    from ensemble.members.inference import choose_device, choose_precision, predict_logits

    chosen, stored, rows = choose_device(device), member.read(), np.arange(len(dataset))
    config = MemberConfig.model_validate(stored["config"] | {"pretrained": False, "weights": None})
    network = build(config, dataset.size[0]).to(chosen)
    precision = choose_precision(stored["precision"], chosen, network.input_size)
    for fold in folds:
        bar.note(f"{member.name} fold {fold + 1}/{len(stored['folds'])}")
        network.load_state_dict(member.read_weights(fold))
        logits = predict_logits(network, dataset.pixels, rows, views, precision, chosen, bar)
        if not np.isfinite(logits).all():
            found = f"{np.count_nonzero(~np.isfinite(logits))} logits of fold {fold} are not finite in {precision}"
            raise TheraError(f"member {member.name}", found, "predict on another --device")
        yield fold, kept.save(member, fold, views, logits, precision=precision, device=str(chosen))


# --- the label file ---------------------------------------------------------------------------------------------------


def is_predicted(place: Path, made_from: Mapping[str, Any]) -> bool:
    """Return whether the files of a prediction are there as they were written, and were made from this."""
    try:
        stored = runs.read_json(place / "predictions.json", "")
        files = {name: runs.file_sha256(place / name) for name in ("label_val.txt", "predictions.csv")}
    except (ArtifactError, OSError):
        return False
    return all(stored.get(key) == value for key, value in made_from.items()) and stored.get("files") == files


def write_set(
    decision: Decision,
    oof: OofLogits,
    ids: np.ndarray,
    fold_logits: np.ndarray,
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
    fold_logits : float64 array (n, m, k)
        Of these images, averaged over the decision's views.
    wanted : PredictConfig
        Its correction and prior.
    seed : int
        Of the bootstrap.
    place : Path
        `predictions/<set>`.
    made_from : mapping
        What to know the prediction by, see `is_predicted`.
    """
    logits = fold_logits.mean(axis=2).round(runs.LOGIT_DECIMALS)
    stacked = decision.stacker.apply(logits)
    singles = np.stack([decision.stacker.apply(of_fold) for of_fold in np.moveaxis(fold_logits, 2, 0)], axis=1)
    check = _check(decision, oof, singles)
    mix = wanted.prior
    if mix is None and check.shifted:
        mix = float(np.clip(check.prior, LEAST_SHARE, 1 - LEAST_SHARE))
    unknown = wanted.prior is None and check.shifted  # what has changed is not known: the threshold stays
    foreseen = _foresee(decision, oof, singles, "none" if unknown else wanted.correction, mix, seed)
    threshold = decision.threshold if foreseen is None else foreseen.chosen.threshold
    labels = call(stacked, threshold)
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
    ]
    rows = (
        (id_, *(f"{x:.{runs.LOGIT_DECIMALS}f}" for x in own), f"{x:.{runs.LOGIT_DECIMALS}f}", f"{p:.5f}", y, *v, m)
        for id_, own, x, p, y, v, m in zip(
            ids, logits, stacked, _probability(stacked + shift), labels, votes.tolist(), majority, strict=True
        )
    )
    files = {
        "label_val.txt": runs.write_whole(place / "label_val.txt", text),
        "predictions.csv": runs.write_table(place / "predictions.csv", columns, rows),
    }
    runs.write_json(
        place / "predictions.json",
        {
            **made_from,
            "images": len(ids),
            "objective": decision.objective.text,
            "threshold": threshold,
            "share_of_label_0": float(np.mean(labels == 0)),
            "nested_hter": decision.nested.hter,
            "taken_share_of_label_0": mix,
            **_expectations(decision, foreseen, len(ids), wanted.prior, seed),
            "share_check": check.to_json() | {"told": check.told},
            "files": files,
        },
    )


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
