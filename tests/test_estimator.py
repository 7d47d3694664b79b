"""The scikit-learn estimators: scikit-learn's own checks, the product's numbers, and what a run keeps."""

from __future__ import annotations

import copy
import gc
import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks
from tiny import write_tiny

import ensemble
from ensemble.config import MemberConfig
from ensemble.data.folds import FoldTable, assign_folds
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import fit_decision
from ensemble.decision.objective import Objective
from ensemble.errors import ArtifactError, ConfigError, DataError
from ensemble.estimator import TheraClassifier, ThresholdStacker
from ensemble.predict_config import PredictConfig

pytestmark = [
    # Networks of a few updates differ from fold to fold.
    pytest.mark.filterwarnings("ignore:the fold models differ:UserWarning"),
    # scikit-learn's checks fit three classes of a few rows each.
    pytest.mark.filterwarnings("ignore:some classes have fewer than 30 images:UserWarning"),
]

NETWORK = MemberConfig(arch="test_resnet", pretrained=False, epochs=2, batch_size=8, ema_decay=0.9, augment="none")


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Draw no training curves and few bootstrap replicates: they take as long as the training of these networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ensemble.reports.figures.training_figure", lambda title, history: b"no figure")
        patch.setattr("ensemble.decision.assessment.REPLICATES", 50)
        patch.setattr("ensemble.decision.class_assessment.REPLICATES", 20)
        yield


def tiny(**parameters: Any) -> TheraClassifier:
    return TheraClassifier(**{"members": (NETWORK,), "folds": 2, "device": "cpu", "jobs": 1, **parameters})


def pictures(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 16, 16, 3), bright above for "up" and bright below for "down" (a quarter), and labels (n,)."""
    rng = np.random.default_rng(seed)
    images, up = rng.integers(0, 120, (n, 16, 16, 3), dtype=np.uint8), np.arange(n) % 4 != 0
    images[up, :8] += 120
    images[~up, 8:] += 120
    return images, np.where(up, "up", "down")


@pytest.fixture(scope="module")
def fitted() -> TheraClassifier:
    return tiny().fit(*pictures(40))


# --- scikit-learn's checks --------------------------------------------------------------------------------------------


STACKER_FAILS = {
    "check_classifiers_train": "the label is not the more probable class: the threshold is fitted, as it is in "
    "scikit-learn's FixedThresholdClassifier, which is excepted from this check, too",
}


@parametrize_with_checks(
    [ThresholdStacker(cv=3)], expected_failed_checks=lambda estimator: STACKER_FAILS, xfail_strict=True
)
def test_scikit_learns_checks_of_the_stacker(estimator: Any, check: Any) -> None:
    check(estimator)


class OnTables(TheraClassifier):
    """Draws each row of a table as an image, so that scikit-learn's checks, whose X is a table, can run."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.string = True, False
        tags.classifier_tags.poor_score = True  # two epochs of a tiny network
        return tags

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> OnTables:  # noqa: N803
        return super().fit(drawn(X), y, groups)

    def _stacked_logits(self, X: Any) -> np.ndarray:  # noqa: N803
        return super()._stacked_logits(drawn(X))


def drawn(table: Any) -> Any:
    """Return rows (n, d) as images (n, 16, 16, 3) of d stripes; anything else as it is, to be refused."""
    values = np.asarray(table)
    if values.ndim != 2 or values.size == 0 or np.iscomplexobj(values):
        return values
    stripes = np.floor((128 + 20 * values.astype(float)) % 256).astype(np.uint8)
    stripes = np.repeat(stripes, -(-16 // stripes.shape[1]), axis=1)[:, :16, None, None]
    return np.broadcast_to(stripes, (len(stripes), 16, 16, 3))


OF_A_TABLE = "is about the columns of a table, and images have none"
IMAGES_FAIL = {
    "check_classifiers_train": "demands that another number of columns is refused, and that the label is the more "
    "probable class",
    "check_n_features_in": OF_A_TABLE,
    "check_n_features_in_after_fitting": OF_A_TABLE,
    "check_estimators_empty_data_messages": "demands a message about the columns of a table",
    "check_fit2d_predict1d": "demands a message about reshaping a table",
    "check_estimators_nan_inf": "pixels are whole numbers: none is infinite or missing",
    "check_estimator_sparse_tag": "there are no sparse images",
    "check_estimator_sparse_array": "there are no sparse images",
    "check_estimator_sparse_matrix": "there are no sparse images",
}


@parametrize_with_checks(
    [OnTables(("test_resnet",), folds=2, epochs=1, pretrained=False, device="cpu", jobs=1)],
    expected_failed_checks=lambda estimator: IMAGES_FAIL,
    xfail_strict=True,
)
@pytest.mark.filterwarnings("ignore:member test_resnet gives the same logit")
def test_scikit_learns_checks_of_the_classifier(estimator: Any, check: Any) -> None:
    check(estimator)


# --- the stacker ------------------------------------------------------------------------------------------------------


def member_logits(n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits of three members (n, 3), the last without information, and labels (n,) of unequal classes."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.7).astype(np.int8)
    logits = rng.normal(0, 1.5, (n, 3)) + (2 * labels[:, None] - 1) * [1.5, 1.0, 0.0] + 0.5
    return logits, labels


@pytest.mark.parametrize("kind", ["mean", "calibrated", "nonnegative", "logistic"])
@pytest.mark.parametrize("objective", ["hter", "cost:3,1", "fpr:0.1"])
def test_the_stacker_decides_as_fit_stacker_does(kind: str, objective: str) -> None:
    logits, labels = member_logits()
    logits = np.column_stack((logits, np.full(len(logits), 7.0)))  # a member that says nothing
    fold_of = assign_folds(labels, np.arange(len(labels)), 3, 1).fold_of
    oof = OofLogits(FoldTable(np.arange(len(labels)).astype(str), labels, fold_of), tuple("abcd"), logits)
    decision = fit_decision(oof, ("identity",), 0, Objective.parse(objective), kind)
    stacker = ThresholdStacker(objective, kind).fit(logits, labels, fold_of=fold_of)
    assert (stacker.threshold_, stacker.bias_) == (decision.threshold, decision.stacker.bias)
    assert stacker.weights_.tolist() == [*decision.stacker.weights, 0.0]
    assert stacker.nested_hter_ == decision.nested.hter
    expected = decision.stacker.apply(logits[:, :3]) >= decision.threshold
    assert np.array_equal(stacker.predict(logits), expected)
    drawn_folds = ThresholdStacker(objective, kind, cv=3, random_state=1).fit(logits, labels)
    assert (drawn_folds.threshold_, drawn_folds.nested_hter_) == (stacker.threshold_, stacker.nested_hter_)


def test_the_default_stacker_has_no_negative_weights() -> None:
    logits, labels = member_logits()
    logits[:, 2] = -logits[:, 0] + np.random.default_rng(1).normal(size=len(logits))  # a logistic fit subtracts it
    assert ThresholdStacker("hter", "logistic").fit(logits, labels).weights_[2] < 0
    default, named = ThresholdStacker().fit(logits, labels), ThresholdStacker(stacker="nonnegative").fit(logits, labels)
    assert default.get_params() == named.get_params() and not hasattr(default, "stacker_")
    assert min(default.weights_) == 0 and default.weights_.tolist() == named.weights_.tolist()


def test_of_one_member_every_stacker_is_its_logit() -> None:
    logits, labels = member_logits()
    for kind in ("mean", "calibrated", "nonnegative", "logistic"):
        stacker = ThresholdStacker(stacker=kind).fit(logits[:, :1], labels)
        assert (stacker.weights_.tolist(), stacker.bias_) == ([1.0], 0.0)
        assert np.array_equal(stacker.decision_function(logits[:, :1]), logits[:, 0] - stacker.threshold_)


def test_a_logit_at_the_threshold_is_the_second_class() -> None:
    stacker = ThresholdStacker(cv=2).fit([[-2.0], [-1.0], [1.0], [2.0]], [False, False, True, True])
    assert stacker.threshold_ == 0
    assert stacker.predict([[0.0], [np.nextafter(0, -1)]]).tolist() == [True, False]
    assert stacker.decision_function([[0.0]]) == 0
    assert stacker.predict_proba([[0.0], [1000.0], [-1000.0]]).tolist() == [[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]]


def test_the_score_is_one_less_the_hter() -> None:
    logits, labels = member_logits()
    stacker = ThresholdStacker().fit(logits, labels)
    assert stacker.score(logits, labels) == pytest.approx(balanced_accuracy_score(labels, stacker.predict(logits)))
    with pytest.raises(DataError, match="0 of label 0"):
        stacker.score(logits, np.ones(len(labels), int))
    with pytest.raises(DataError, match="got 2"):
        stacker.score(logits, labels + 1)


def test_groups_of_the_stacker_stay_in_one_fold() -> None:
    logits, labels = member_logits(80)
    groups = np.arange(80) // 2
    split = ThresholdStacker(stacker="mean", cv=2, random_state=3)
    fold_of = assign_folds(labels, groups, 2, 3).fold_of
    assert not np.array_equal(fold_of, assign_folds(labels, np.arange(80), 2, 3).fold_of)
    given = clone(split).fit(logits, labels, fold_of=fold_of)
    assert clone(split).fit(logits, labels, groups).nested_hter_ == given.nested_hter_
    with pytest.raises(DataError, match="must lie in one fold"):
        split.fit(logits, labels, groups=groups, fold_of=np.arange(80) % 2)


@pytest.mark.parametrize(
    ("parameters", "fit", "error", "message"),
    [
        ({"objective": "accuracy"}, {}, ConfigError, "objective"),
        ({"stacker": "forest"}, {}, ConfigError, "must be one of mean, calibrated"),
        ({"cv": 1}, {}, ConfigError, "must be 2 to 127"),
        ({"cv": 100}, {}, DataError, "cannot fill 100 folds"),
        ({}, {"fold_of": [0, 1]}, DataError, r"fold_of: must have shape \(200,\)"),
        ({}, {"groups": [0, 1]}, DataError, r"groups: must have shape \(200,\)"),
        ({}, {"X": np.zeros((200, 3))}, DataError, "all 3 are constant"),
        ({}, {"y": np.arange(200) % 3}, DataError, "Only binary"),
        ({}, {"y": np.zeros(200)}, DataError, "got 1 class"),
        ({}, {"X": np.full((200, 3), np.nan)}, ValueError, "contains NaN"),
    ],
)
def test_the_stacker_refuses(parameters: Any, fit: Any, error: type[ValueError], message: str) -> None:
    logits, labels = member_logits()
    assert issubclass(error, ValueError)
    with pytest.raises(error, match=message):
        ThresholdStacker(**parameters).fit(**{"X": logits, "y": labels, **fit})


# --- the classifier ---------------------------------------------------------------------------------------------------


def weights_and_logits(run: Path) -> dict[str, str]:
    files = [*run.glob("members/*/fold-*/*.safetensors"), *run.glob("members/*/fold-*/oof.csv"), run / "folds.csv"]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_any_two_labels(fitted: TheraClassifier) -> None:
    images, labels = pictures(12, seed=1)
    assert fitted.classes_.tolist() == ["down", "up"]
    predicted, decision = fitted.predict(images), fitted.decision_function(images)
    assert np.array_equal(predicted, np.where(decision >= 0, "up", "down"))
    probabilities = fitted.predict_proba(images)
    assert probabilities.shape == (12, 2)
    assert np.allclose(np.log(probabilities[:, 1] / probabilities[:, 0]), decision + fitted.threshold_)
    assert fitted.score(images, labels) == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_what_is_fitted_is_what_the_commands_give(fitted: TheraClassifier, tmp_path: Path) -> None:
    decision = ensemble.fit_stacker(fitted.run_).tta
    assert (fitted.threshold_, fitted.expected_hter_) == (decision.threshold, decision.nested.hter)
    assert fitted.expected_hter_interval_ == (decision.interval.low, decision.interval.high)
    table = fitted.oof_
    assert list(table) == ["id", "label", "fold", "logit_test_resnet", "stacked_logit", "y_pred"]
    assert table["label"].tolist() == pictures(40)[1].tolist()
    wrong = table["y_pred"] != table["label"]
    rates = [wrong[table["label"] == label].mean() for label in ("down", "up")]
    assert np.mean(rates) == pytest.approx(fitted.expected_hter_)
    assert fitted.report_.startswith(f"# Run {fitted.run_.name}: 40 images, 2 folds")
    assert (fitted.run_ / "report.md").read_text() == fitted.report_


def test_files_and_commands_give_the_same_as_arrays(fitted: TheraClassifier, tmp_path: Path) -> None:
    labels = write_tiny(tmp_path / "known", 40)
    write_tiny(tmp_path / "new", 12, seed=1)
    folder, label_file = tmp_path / "known" / "img", tmp_path / "known" / "labels.txt"
    run = tmp_path / "run"
    of_folder = tiny(run=run).fit(str(folder), label_file)
    before = weights_and_logits(run)
    of_labels = tiny().fit(folder, labels)
    of_paths = tiny(random_state=np.int64(0)).fit(sorted(folder.iterdir()), [int(label) for label in labels])
    assert of_folder.classes_.tolist() == of_labels.classes_.tolist() == [0, 1]
    out = tmp_path / "label_val.txt"
    config = PredictConfig(images=tmp_path / "new" / "img", out=out, correction="none")
    result = ensemble.predict(run, config)
    decision = of_folder.decision_function(tmp_path / "new" / "img")
    assert np.array_equal(of_folder.predict(tmp_path / "new" / "img"), result.y_pred)
    assert np.abs(decision + of_folder.threshold_ - result.stacked_logits).max() < 1e-5  # the table has five decimals
    assert result.table["id"].tolist() == result.ids.tolist() and (result.table["label"] == result.y_pred).all()
    for other in (of_labels, of_paths):
        assert np.array_equal(other.decision_function(sorted((tmp_path / "new" / "img").iterdir())), decision)
    assert weights_and_logits(run) == before
    with pytest.raises(DataError, match="pixels"):
        of_folder.predict(np.zeros((2, 32, 32, 3), np.uint8))


def test_images_that_bring_their_labels_need_no_y(tmp_path: Path) -> None:
    write_tiny(tmp_path, 24)
    for row, path in enumerate(sorted((tmp_path / "img").iterdir())):
        target = tmp_path / "classes" / str(int(row % 4 != 0)) / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    classifier = tiny(resize=20).fit(tmp_path / "classes")
    assert classifier.image_size_ == (20, 20)
    assert set(classifier.predict(tmp_path / "classes")) <= {0, 1}
    with pytest.raises(DataError, match="bring their own labels"):
        tiny().fit(tmp_path / "classes", np.arange(24) % 2)
    with pytest.raises(DataError, match="must have 20 pixels"):
        classifier.predict(np.zeros((2, 16, 16, 3), np.uint8))


def test_the_same_seed_gives_the_same_bytes(fitted: TheraClassifier) -> None:
    again = clone(fitted).fit(*pictures(40))
    assert weights_and_logits(again.run_) == weights_and_logits(fitted.run_)
    assert again.run_ != fitted.run_
    other = clone(fitted).set_params(random_state=1).fit(*pictures(40))
    assert weights_and_logits(other.run_) != weights_and_logits(fitted.run_)


def test_groups_stay_in_one_fold() -> None:
    images, labels = pictures(40)
    groups = np.array([f"patient {row % 13}" for row in range(40)])
    table = tiny(epochs=1).fit(images, labels, groups).oof_
    assert table.assign(patient=groups).groupby("patient")["fold"].nunique().max() == 1
    assert table["group"].nunique() == 13


def test_a_run_is_kept_and_gone_on_with(tmp_path: Path) -> None:
    run, (images, labels) = tmp_path / "run", pictures(40)
    first = tiny(run=run, epochs=1).fit(images, labels)
    written = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    second = tiny(run=str(run), epochs=1).fit(images, labels)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")} == written
    stored = TheraClassifier.from_run(run, device="cpu")
    for other in (second, stored, pickle.loads(pickle.dumps(first))):
        assert other.run_ == run and other.classes_.tolist() == ["down", "up"]
        assert (other.threshold_, other.expected_hter_) == (first.threshold_, first.expected_hter_)
        assert np.array_equal(other.predict(images), first.predict(images))
        assert other.oof_.equals(first.oof_)
    assert stored.stacker == TheraClassifier().stacker == "nonnegative"  # of one member, the mean would do as well
    assert (stored.folds, stored.random_state, stored.members) == (2, 0, (NETWORK.model_copy(update={"epochs": 1}),))
    with pytest.raises(ArtifactError, match="other data"):
        tiny(run=run, epochs=1).fit(images[::-1], labels)
    plain = TheraClassifier.from_run(run, tta=False, device="cpu")
    assert plain.threshold_ == ensemble.fit_stacker(run).plain.threshold
    (run / "classes.json").write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        TheraClassifier.from_run(run)
    (run / "classes.json").unlink()  # as a run of the command
    assert TheraClassifier.from_run(run).classes_.tolist() == [0, 1]


def test_a_temporary_run_lives_as_long_as_its_estimator() -> None:
    images, labels = pictures(40)
    classifier = tiny(epochs=1).fit(images, labels)
    folder, predicted = classifier.run_, classifier.predict(images)
    pickled, copied = pickle.dumps(classifier), copy.deepcopy(classifier)
    del classifier
    gc.collect()
    assert not folder.exists()
    for other in (pickle.loads(pickled), copied):
        assert other.run_ != folder
        assert np.array_equal(other.predict(images), predicted)


def test_a_search_over_the_epochs() -> None:
    images, labels = pictures(48)
    search = GridSearchCV(tiny(), {"epochs": [1, 2]}, cv=2).fit(images, labels)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    best = search.best_estimator_
    assert best.epochs == search.best_params_["epochs"]
    assert search.score(images, labels) == best.score(images, labels)


def test_parameters_survive_clone_and_set_params() -> None:
    classifier = tiny(epochs=3, objective="cost:2,1")
    copied = clone(classifier)
    assert copied.get_params() == classifier.get_params()
    assert copied.set_params(epochs=5, members=("resnet18",)).get_params()["epochs"] == 5
    assert classifier.epochs == 3 and classifier.members == (NETWORK,)
    assert [config.epochs for config in classifier._member_configs()] == [3]
    assert [config.name for config in copied._member_configs()] == ["resnet18"]


def test_an_unfitted_classifier_says_so() -> None:
    for name in ("oof_", "report_"):
        with pytest.raises(NotFittedError):
            getattr(tiny(), name)


@pytest.mark.parametrize("verbose", [False, True])
def test_progress_is_shown_only_if_requested(
    fitted: TheraClassifier, verbose: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = replace_parameters(fitted, verbose=verbose)
    shown.predict(pictures(4)[0])
    assert ("predict: 16 of 16 views" in capsys.readouterr().err) is verbose


def replace_parameters(estimator: TheraClassifier, **parameters: Any) -> TheraClassifier:
    return copy.deepcopy(estimator).set_params(**parameters)


@pytest.mark.parametrize(
    ("parameters", "fit", "error", "message"),
    [
        ({"members": ("resnet81",)}, {}, ConfigError, "resnet18"),
        ({"members": ()}, {}, ConfigError, "at least one member"),
        ({"members": "resnet18"}, {}, ConfigError, "must be a sequence"),
        ({"members": (NETWORK, NETWORK)}, {}, ConfigError, "of different names"),
        ({"epochs": 0}, {}, ConfigError, "epochs"),
        ({"stacker": "forest"}, {}, ConfigError, "stacker"),
        ({"objective": "accuracy"}, {}, ConfigError, "objective"),
        ({"device": "tpu"}, {}, ConfigError, "--device"),
        ({"folds": 1}, {}, ConfigError, "must be 2 to 127"),
        ({}, {"y": np.zeros(12)}, DataError, "got 1 class in 12 rows"),
        ({}, {"y": np.arange(12)}, DataError, "cannot fill 2 folds"),
        ({"classes": 3}, {"y": np.arange(12) % 2}, DataError, "must hold 3 classes, as `classes` says; got 2"),
        ({"objective": "cost:2,1"}, {"y": np.arange(12) % 3}, ConfigError, "for two classes alone"),
        ({}, {"y": np.arange(12)[:, None] % 2 == [0, 1]}, DataError, "y should be a 1d array"),
        ({}, {"y": np.arange(12) / 7}, DataError, "Unknown label type"),
        ({}, {"y": None}, DataError, "y is None"),
        ({}, {"y": np.arange(10) % 2}, DataError, r"must have shape \(12,\)"),
        ({}, {"groups": np.arange(10)}, DataError, r"groups: must have shape \(12,\)"),
        ({}, {"X": np.zeros((12, 16, 16), np.uint8)}, DataError, r"must be uint8 with shape \(n, H, W, 3\)"),
        ({}, {"X": np.zeros((12, 16, 16, 3))}, DataError, "must be uint8"),
        ({}, {"X": np.zeros((12, 16, 8, 3), np.uint8)}, DataError, "must be square"),
        ({}, {"X": np.zeros((0, 16, 16, 3), np.uint8)}, DataError, "no images"),
        ({}, {"X": [[1, 2], [3]]}, DataError, "paths or pixels"),
        ({}, {"X": ["nowhere.png"] * 12}, DataError, "missing"),
        ({"resize": 32}, {}, DataError, "must have 32 pixels"),
    ],
)
def test_the_classifier_refuses(parameters: Any, fit: Any, error: type[ValueError], message: str) -> None:
    images, labels = pictures(12)
    assert issubclass(error, ValueError)
    with pytest.raises(error, match=message):
        tiny(**parameters).fit(**{"X": images, "y": labels, **fit})


@pytest.mark.parametrize("parameters", [{"objective": "accuracy"}, {"stacker": "forest"}, {"epochs": 0}, {"jobs": 0}])
def test_wrong_parameters_are_refused_before_training(parameters: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=next(iter(parameters))):
        tiny(run=tmp_path / "run", **parameters).fit(*pictures(12))
    assert not (tmp_path / "run").exists()


def test_labels_of_files_must_fit_the_files(tmp_path: Path) -> None:
    write_tiny(tmp_path, 12)
    with pytest.raises(DataError, match="for each of 12 images; got 10"):
        tiny().fit(tmp_path / "img", np.arange(10) % 2)
    with pytest.raises(DataError, match=r"groups: must have shape \(12,\)"):
        tiny().fit(tmp_path / "img", np.arange(12) % 2, groups=np.arange(10))
    with pytest.raises(DataError, match="y is None"):
        tiny().fit(tmp_path / "img")
