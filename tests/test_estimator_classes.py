"""The classifier on more than two classes: labels, offsets, nested figures, and what a run keeps."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score
from sklearn.model_selection import cross_val_score

import ensemble
from ensemble.config import MemberConfig
from ensemble.decision.class_offsets import fit_offsets
from ensemble.errors import ArtifactError, ConfigError, DataError
from ensemble.estimator import TheraClassifier
from ensemble.predict_config import PredictConfig
from ensemble.runs.run import Run
from ensemble.threshold_stacker import ThresholdClassifier

pytestmark = [
    pytest.mark.filterwarnings("ignore:the fold models differ:UserWarning"),
    pytest.mark.filterwarnings("ignore:some classes have fewer than 30 images:UserWarning"),
]

NETWORK = MemberConfig(arch="test_resnet", pretrained=False, epochs=2, batch_size=8, ema_decay=0.9, augment="none")
OTHER = NETWORK.model_copy(update={"name": "other", "lr": 0.01})


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ensemble.reports.figures.training_figure", lambda title, history: b"no figure")
        patch.setattr("ensemble.decision.assessment.REPLICATES", 50)
        patch.setattr("ensemble.decision.class_assessment.REPLICATES", 20)
        yield


def tiny(**parameters: Any) -> TheraClassifier:
    return TheraClassifier(**{"members": (NETWORK,), "folds": 2, "device": "cpu", "jobs": 1, **parameters})


def pictures(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 16, 16, 3) that are bright above, below or nowhere, and class indices (n,), half of them 0."""
    rng = np.random.default_rng(seed)
    images, codes = rng.integers(0, 120, (n, 16, 16, 3), dtype=np.uint8), np.array([0, 1, 0, 2])[np.arange(n) % 4]
    images[codes == 0, :8] += 120
    images[codes == 1, 8:] += 120
    return images, codes


def write_pictures(folder: Path, n: int, seed: int = 0) -> list[Path]:
    folder.mkdir(parents=True)
    paths = [folder / f"{row:03d}.png" for row in range(1, n + 1)]
    for path, image in zip(paths, pictures(n, seed)[0], strict=True):
        cv2.imwrite(str(path), image)
    return paths


NAMES = np.array(["above", "below", "nowhere"])


@pytest.fixture(scope="module")
def fitted() -> TheraClassifier:
    images, codes = pictures(48)
    return tiny(members=(NETWORK, OTHER)).fit(images, NAMES[codes])


# --- the decision -----------------------------------------------------------------------------------------------------


def test_any_three_labels(fitted: TheraClassifier) -> None:
    images, codes = pictures(12, seed=1)
    assert fitted.classes_.tolist() == ["above", "below", "nowhere"]
    predicted, decision, probabilities = (
        method(images) for method in (fitted.predict, fitted.decision_function, fitted.predict_proba)
    )
    assert decision.shape == probabilities.shape == (12, 3)
    assert predicted.tolist() == NAMES[decision.argmax(axis=1)].tolist()
    stacked = decision - fitted.offsets_
    assert np.allclose(probabilities, np.exp(stacked) / np.exp(stacked).sum(axis=1, keepdims=True))
    assert fitted.score(images, NAMES[codes]) == pytest.approx(balanced_accuracy_score(NAMES[codes], predicted))
    with pytest.raises(DataError, match="got 'aside'"):
        fitted.score(images, np.where(codes == 1, "aside", NAMES[codes]))
    with pytest.raises(DataError, match="0 of label 2"):
        fitted.score(images, NAMES[codes % 2])


class Given(ThresholdClassifier):
    """A classifier whose stacked logits are its X."""

    def __init__(self, cut: Any = None) -> None:
        self.cut = cut

    def fit(self, X: Any, y: Any) -> Given:  # noqa: N803
        self.classes_ = np.unique(y)
        return self

    @property
    def _cut(self) -> Any:
        return self.cut

    def _stacked_logits(self, X: Any) -> np.ndarray:  # noqa: N803
        return np.asarray(X)


def test_offsets_are_added_and_the_last_class_wins_a_tie() -> None:
    given = Given((0.0, 0.5, -1.0)).fit(None, ["a", "b", "c"])
    logits = [[0.5, 0.0, 0.0], [1.0, 0.0, 2.0], [0.0, 0.5, 2.0], [9.0, 0.0, 0.0]]
    assert given.decision_function(logits).tolist() == [[0.5, 0.5, -1], [1, 0.5, 1], [0, 1, 1], [9, 0.5, -1]]
    assert given.predict(logits).tolist() == ["b", "c", "c", "a"]
    assert given.predict_proba([[1000.0, 0.0, 0.0]]).tolist() == [[1, 0, 0]]


def test_two_classes_as_offsets_are_two_classes_at_a_threshold() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 1)).round(1), rng.permutation(np.arange(50) % 2)
    one = Given(0.3).fit(None, [0, 1])
    two = Given((0.0, -0.3)).fit(None, [0, 1])
    pairs = np.column_stack((np.zeros(50), logits))
    assert one.predict(logits[:, 0]).tolist() == two.predict(pairs).tolist()
    assert np.allclose(one.predict_proba(logits[:, 0]), two.predict_proba(pairs))
    assert one.score(logits[:, 0], labels) == two.score(pairs, labels)


def test_there_are_offsets_or_a_threshold(fitted: TheraClassifier) -> None:
    assert fitted.offsets_.shape == (3,) and fitted.offsets_[0] == 0
    with pytest.raises(AttributeError, match="of 3 classes, there is no threshold_; see offsets_"):
        fitted.threshold_  # noqa: B018
    images, codes = pictures(24)
    again = clone(fitted).set_params(members=(NETWORK,), epochs=1)
    assert not hasattr(again, "offsets_") and not hasattr(again, "threshold_")
    again.fit(images, codes == 0)  # a classifier may be fitted again, to fewer classes
    assert again.classes_.tolist() == [False, True] and isinstance(again.threshold_, float)
    with pytest.raises(AttributeError, match="there are no offsets_; see threshold_"):
        again.offsets_  # noqa: B018


# --- the figures ------------------------------------------------------------------------------------------------------


def test_what_is_fitted_is_what_the_commands_give(fitted: TheraClassifier) -> None:
    decision = ensemble.fit_stacker(fitted.run_).tta
    assert tuple(fitted.offsets_) == decision.offsets
    assert fitted.expected_rates_ == decision.nested
    assert fitted.expected_hter_ == decision.nested.mean_error
    assert fitted.expected_hter_interval_ == (decision.stacked.mean_error.low, decision.stacked.mean_error.high)
    assert Run(fitted.run_).read().classes == ("above", "below", "nowhere")


def test_the_oof_rows_give_the_nested_figures(fitted: TheraClassifier) -> None:
    table = fitted.oof_
    logits = [f"{name}_{label}" for name in ("logit_test_resnet", "logit_other", "stacked_logit") for label in NAMES]
    assert list(table) == ["id", "label", "fold", *logits, "y_pred"]
    assert table["label"].tolist() == NAMES[pictures(48)[1]].tolist()
    rates = fitted.expected_rates_
    assert np.array_equal(confusion_matrix(table["label"], table["y_pred"], labels=NAMES), rates.confusion)
    assert fitted.expected_hter_ == pytest.approx(1 - balanced_accuracy_score(table["label"], table["y_pred"]))
    assert rates.macro_f1 == pytest.approx(f1_score(table["label"], table["y_pred"], average="macro"))
    low, high = fitted.expected_hter_interval_
    assert low <= fitted.expected_hter_ <= high


@pytest.mark.parametrize("objective", ["hter", "macro-f1", "accuracy"])
def test_the_offsets_are_those_of_the_objective(objective: str) -> None:
    images, codes = pictures(40)
    classifier = tiny(epochs=1, objective=objective, tta=False).fit(images, codes)
    table = classifier.oof_
    logits = table[[f"logit_test_resnet_{label}" for label in range(3)]].to_numpy()
    kind = classifier._decision.objective
    assert kind.text == ("mean-class-error" if objective == "hter" else objective)
    assert tuple(classifier.offsets_) == fit_offsets(logits, codes, kind)
    nested = np.empty(40, int)
    for fold in (0, 1):
        inside = (table["fold"] == fold).to_numpy()
        nested[inside] = (logits[inside] + fit_offsets(logits[~inside], codes[~inside], kind)).argmax(axis=1)
    assert table["y_pred"].tolist() == nested.tolist()


def test_the_report_names_the_run(fitted: TheraClassifier) -> None:
    assert fitted.report_.startswith(f"# Run {fitted.run_.name}: 48 images, 2 folds")
    assert (fitted.run_ / "report.md").read_text() == fitted.report_


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_of_integers_is_kept(tmp_path: Path) -> None:
    run, (images, codes) = tmp_path / "run", pictures(40)
    first = tiny(run=run, epochs=1).fit(images, codes + 1)
    written = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    second = tiny(run=run, epochs=1).fit(images, codes + 1)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")} == written
    stored = TheraClassifier.from_run(run, device="cpu")
    assert (stored.classes, first.classes) == (3, None)
    for other in (second, stored, pickle.loads(pickle.dumps(first))):
        assert other.classes_.tolist() == [1, 2, 3]
        assert other.predict(images).tolist() == first.predict(images).tolist()
        assert other.expected_rates_ == first.expected_rates_ and other.offsets_.tolist() == first.offsets_.tolist()
        assert other.oof_.equals(first.oof_)
    (run / "classes.json").unlink()  # as a run of the command, whose classes have the names 1, 2 and 3
    assert TheraClassifier.from_run(run).classes_.tolist() == [1, 2, 3]
    tiny(run=tmp_path / "two", epochs=1).fit(images, codes == 1)
    (run / "classes.json").write_bytes((tmp_path / "two" / "classes.json").read_bytes())
    with pytest.raises(ArtifactError, match="has 2 classes; the run has 3"):
        TheraClassifier.from_run(run)


def test_a_temporary_run_is_pickled(fitted: TheraClassifier) -> None:
    images = pictures(8, seed=2)[0]
    other = pickle.loads(pickle.dumps(fitted))
    assert other.run_ != fitted.run_
    assert np.array_equal(other.decision_function(images), fitted.decision_function(images))
    state = fitted.__getstate__()
    del state["classes"]  # a pickle of a version that had no such parameter
    older = TheraClassifier.__new__(TheraClassifier)
    older.__setstate__(state)
    assert clone(older).get_params() == fitted.get_params()


def test_a_label_file_and_the_commands_give_the_same_as_arrays(tmp_path: Path) -> None:
    paths, codes = write_pictures(tmp_path / "img", 40), pictures(40)[1]
    new = write_pictures(tmp_path / "new", 12, seed=1)
    (tmp_path / "labels.txt").write_text("".join(f"{code}\n" for code in codes))
    run = tmp_path / "run"
    with pytest.raises(DataError, match="--classes 3"):
        tiny(run=run).fit(tmp_path / "img", tmp_path / "labels.txt")
    of_file = tiny(run=run, classes=3).fit(tmp_path / "img", tmp_path / "labels.txt")
    of_labels, of_paths = tiny().fit(tmp_path / "img", codes), tiny().fit(paths, NAMES[codes])
    assert of_file.classes_.tolist() == of_labels.classes_.tolist() == [0, 1, 2]
    result = ensemble.predict(run, PredictConfig(images=tmp_path / "new", out=tmp_path / "label_val.txt"))
    decision = of_file.decision_function(tmp_path / "new")
    assert of_file.predict(tmp_path / "new").tolist() == result.y_pred.tolist()
    assert of_labels.predict(new).tolist() == result.y_pred.tolist()
    assert of_paths.predict(new).tolist() == NAMES[result.y_pred].tolist()
    for other in (of_labels, of_paths):
        assert np.array_equal(other.decision_function(new), decision)


@pytest.mark.parametrize("names", [("Zebra", "ant", "bee"), ("10", "9", "100"), ("Hat", "bare")])
def test_names_of_folders_are_the_labels(names: tuple[str, ...], tmp_path: Path) -> None:
    paths, codes = write_pictures(tmp_path / "img", 40), pictures(40)[1] % len(names)
    for path, code in zip(paths, codes.tolist(), strict=True):
        target = tmp_path / "classes" / names[code] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    classifier = tiny(epochs=1, classes=len(names)).fit(tmp_path / "classes")
    expected = sorted(names, key=lambda name: int(name) if name.isdigit() else name.casefold())
    assert Run(classifier.run_).read().classes == tuple(expected)
    labels = [int(name) for name in expected] if names[0].isdigit() else expected
    assert classifier.classes_.tolist() == labels
    table = classifier.oof_
    assert table["label"].astype(str).tolist() == [Path(image).parts[0] for image in table["id"]]
    assert set(classifier.predict(tmp_path / "classes").tolist()) <= set(labels)
    if len(names) > 2:
        with pytest.raises(DataError):
            tiny().fit(tmp_path / "classes")
    with pytest.raises(DataError, match="bring their own labels"):
        tiny(classes=len(names)).fit(tmp_path / "classes", codes)


def test_classes_that_differ_clearly_are_learnt() -> None:
    images, codes = pictures(48)
    new_images, new_codes = pictures(40, seed=5)
    classifier = tiny(epochs=12).fit(images, NAMES[codes])
    assert classifier.score(new_images, NAMES[new_codes]) > 0.9
    assert classifier.expected_hter_ < 0.1


def test_models_are_selected_by_balanced_accuracy() -> None:
    images, codes = pictures(48)
    scores = cross_val_score(tiny(epochs=1), images, NAMES[codes], cv=2)
    assert scores.shape == (2,) and (scores >= 0).all() and (scores <= 1).all()


@pytest.mark.parametrize(
    ("parameters", "y", "error", "message"),
    [
        ({"objective": "fpr:0.1"}, np.arange(12) % 3, ConfigError, "fpr:0.1 is for two classes alone"),
        ({"objective": "macro-f1"}, np.arange(12) % 2, ConfigError, "for more than two classes"),
        ({"classes": 4}, np.arange(12) % 3, DataError, "must hold 4 classes"),
        ({}, [*range(6), *range(6)], DataError, "cannot fill|every"),
    ],
)
def test_the_classifier_refuses_before_training(
    parameters: Any, y: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        tiny(run=tmp_path / "run", folds=3, **parameters).fit(pictures(12)[0], y)
    assert not (tmp_path / "run").exists()


def test_there_are_at_most_127_classes() -> None:
    with pytest.raises(DataError, match="must hold at most 127 classes; got 128 in 256 rows"):
        tiny().fit(pictures(256)[0], np.arange(256) % 128)


@pytest.mark.parametrize("classes", [0, 1, -3, 128])
def test_the_number_of_classes_is_2_to_127(classes: int, tmp_path: Path) -> None:
    write_pictures(tmp_path / "img", 12)
    (tmp_path / "labels.txt").write_text("0\n1\n2\n" * 4)
    with pytest.raises((ConfigError, DataError), match="classes"):
        tiny(classes=classes).fit(tmp_path / "img", tmp_path / "labels.txt")
