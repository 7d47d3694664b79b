"""scikit-learn estimators: `TheraClassifier` on images; `ThresholdStacker`, its second stage, on member logits.

A `TheraClassifier` wraps a run directory in scikit-learn's interface: `fit` does the work of `thera train-member` and
`thera fit-stacker`, and the fitted state is stored in the run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from ensemble.config import ComputeConfig, DecisionConfig, MemberConfig
from ensemble.config_reading import validated
from ensemble.decision.class_objective import parse_objective
from ensemble.decision.rates import Floats
from ensemble.errors import ConfigError, DataError
from ensemble.estimator_images import Images, labels_of, load_images, open_images, with_labels
from ensemble.predict_config import PredictOptions
from ensemble.progress import Say, hidden
from ensemble.progress import say as say_on_stderr
from ensemble.runs import files
from ensemble.runs.run import Run
from ensemble.threshold_stacker import (
    DecisionClassifier,
    StoredClasses,
    ThresholdStacker,
    read_labels,
    seed_of,
)

if TYPE_CHECKING:
    import pandas as pd

    from ensemble.data.dataset import Dataset

__all__ = ["TheraClassifier", "ThresholdStacker"]

NOT_EMBEDDED = {"pixels", "predictions"}
"""The folders of a temporary run that a pickle does not contain: decoded images and predictions. `predict` does not
need them."""


class TheraClassifier(DecisionClassifier):
    """An ensemble of networks on images of two or more classes, which minimises the mean of the class error rates.

    Of two classes, that is the half total error rate (HTER), and a threshold of the stacked logit minimises it. Of more
    than two, each image has a stacked logit for each class, and an offset is added to each.

    Parameters
    ----------
    members : sequence of str or MemberConfig
        Names of architectures, or configs, which have more settings than the parameters below.
    folds : int
        Folds of the cross-validation.
    epochs : int, optional
        Epochs of every member; by default as in its config.
    pretrained : bool or "if-possible", optional
        Whether every member starts from timm's pretrained weights; by default as in its config.
    objective : str
        The objective of the threshold: `hter`, `cost:A,B`, `fpr:R` or `fnr:R`, see `ThresholdStacker`. Of more than two
        classes, that of the offsets: `mean-class-error`, which `hter` means too, `macro-f1` or `accuracy`.
    stacker : {"nonnegative", "logistic", "calibrated", "mean"}
        How the members are combined; without effect where there is one.
    tta : bool
        Average the logits of the image and its mirror image.
    resize : int, optional
        Resize every image that is read from a file to this size in pixels; by default they must have one size.
    exif : {"ignore", "apply"}
        Whether images that are read from files are turned by their EXIF orientation; `predict` does as `fit` did.
    on_bad : {"error", "skip"}
        Whether `fit` leaves out images that cannot be used, and lists them in `bad_images.csv` of the run. `predict`
        needs them all, since it returns a label for each image.
    follow_links : bool
        Whether links may lead out of a folder of images.
    device : str
        auto, cpu, mps, cuda or cuda:N; cuda is all GPUs.
    jobs, workers : int, optional
        The number of networks in parallel, and of data worker processes; by default chosen by the number of cores.
    random_state : int, RandomState instance or None
        Seed of every random stream. With the same int, data and machine, the results are the same to the byte.
    run : path, optional
        The run directory; `fit` continues from the work that is finished there. A run belongs to one data set, so do
        not give it in a search over parameters. By default a temporary directory that is removed with the estimator.
    verbose : bool
        Whether to print progress, notes and warnings on standard error. If False, warnings are Python warnings.
    classes : int, optional
        The number of classes; needed only if more than two are read from class folders, a manifest or a label file.

    Attributes
    ----------
    classes_ : array (C,)
        The labels, sorted; names that are read from files, without regard to capitals. Of two, the second is positive.
    threshold_ : float
        The threshold of the stacked logit, fitted on all out-of-fold (OOF) rows; of two classes alone.
    offsets_ : float64 array (C,)
        What is added to the stacked logits, fitted on all OOF rows; the first is 0. Of more than two classes alone.
    expected_hter_ : float
        The nested HTER; of more than two classes, the mean of the class error rates, whatever the objective is. Every
        fold is scored by a stacker and a threshold, or offsets, that were fitted without it. The estimate describes
        one fold model; `predict` uses the mean of all fold models, which is usually better.
    expected_hter_interval_ : tuple of float
        Its 95 % interval, which includes the choice of the threshold or offsets.
    expected_rates_ : ErrorRates or ClassRates
        All nested rates: FPR and FNR; of more than two classes, confusion matrix, recalls, macro F1, accuracy.
    run_ : Path
        The run directory.

    Notes
    -----
    The label of an image does not depend on the other images of a call. `ensemble.predict` (the command `thera
    predict`) can have a lower HTER on large sets: it estimates the effect of averaging the fold models on the set, and
    corrects the threshold for it.

    A pickle or copy of an estimator with a temporary run contains the files of the run, including the weights; with
    `run`, it contains only the path.

    Examples
    --------
    >>> classifier = TheraClassifier(members=("resnet18",), epochs=5)
    >>> classifier.fit("faces/img", "faces/labels.txt")  # doctest: +SKIP
    >>> classifier.expected_hter_  # doctest: +SKIP
    0.0421
    >>> classifier.predict("faces/new")  # doctest: +SKIP
    array([1, 0, 1], dtype=int8)
    """

    run_: Path

    def __init__(
        self,
        members: Sequence[str | MemberConfig] = ("resnet18", "mobilenetv2", "convnext_nano"),
        folds: int = 5,
        epochs: int | None = None,
        pretrained: bool | str | None = None,
        objective: str = "hter",
        stacker: str = "nonnegative",
        tta: bool = True,
        resize: int | None = None,
        exif: str = "ignore",
        on_bad: str = "error",
        follow_links: bool = False,
        device: str = "auto",
        jobs: int | None = None,
        workers: int | None = None,
        random_state: Any = 0,
        run: str | os.PathLike[str] | None = None,
        verbose: bool = False,
        classes: int | None = None,
    ) -> None:
        self.members = members
        self.folds = folds
        self.epochs = epochs
        self.pretrained = pretrained
        self.objective = objective
        self.stacker = stacker
        self.tta = tta
        self.resize = resize
        self.exif = exif
        self.on_bad = on_bad
        self.follow_links = follow_links
        self.device = device
        self.jobs = jobs
        self.workers = workers
        self.random_state = random_state
        self.run = run
        self.verbose = verbose
        self.classes = classes

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.string = False, True
        return tags

    def fit(
        self,
        X: Images,  # noqa: N803  scikit-learn's name
        y: ArrayLike | str | os.PathLike[str] | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Train the members on every fold, then fit stacker and threshold on their OOF logits.

        After an interruption, the same call with the same `run` continues from the last finished epoch.

        Parameters
        ----------
        X : path, sequence of n paths, or uint8 array (n, H, H, 3)
            The path of a folder, zip file or manifest; paths of image files; or RGB pixels.
        y : array (n,) or path, optional
            A label of each image, in their order, with at least two different labels; or a label file. Not given if the
            images have labels (class folders or a manifest).
        groups : array (n,), optional
            Images of one group, and identical images, stay in one fold.

        Raises
        ------
        DataError
            Images or labels cannot be used.
        ConfigError
            The value of a parameter is not valid.
        ArtifactError
            The run was started with other data, folds, seed or members.
        """
        from ensemble.commands.fit_stacker import fit_stacker
        from ensemble.commands.train import train_members

        members, compute, seed = self._member_configs(), self._compute(), seed_of(self.random_state)
        decision = validated(DecisionConfig, {"objective": self.objective, "stacker": self.stacker}, "parameters")
        temporary = None if self.run is not None else _TemporaryFolder()
        run = temporary.path if temporary is not None else Path(self.run or "")
        with self._messages() as say:
            dataset, classes = self._labelled(X, y, groups, run, say)
            train_members(run, members, dataset, self.folds, seed, compute, say)
            fit_stacker(run, decision, say)
        files.write_json(run / "classes.json", StoredClasses(tuple(classes.tolist())))
        self._temporary = temporary
        self._load(run)
        self.classes_ = classes
        return self

    @classmethod
    def from_run(cls, run: str | os.PathLike[str], **parameters: Any) -> Self:
        """Return the fitted estimator of a run directory, whether `fit` or the `thera` command made it.

        Parameters
        ----------
        run : path
            A run whose stacker is fitted.
        **parameters
            Parameters of the constructor that replace those of the run.

        Raises
        ------
        ArtifactError
            A file of the run is missing or damaged.
        """
        from ensemble.commands.fit_stacker import read_decisions

        folder = Run(Path(run))
        facts, decision = folder.read(), read_decisions(folder).tta
        members = [folder.member(each.name).read().current_config for each in decision.members]
        of_run = {
            "members": tuple(MemberConfig.model_validate({**member, "weights": None}) for member in members),
            "folds": facts.folds,
            "objective": decision.objective.text,
            "stacker": decision.kind if len(decision.stacker.members) > 1 else "nonnegative",
            "resize": facts.resize,
            "exif": facts.exif,
            "random_state": facts.seed,
            "run": run,
            "classes": facts.class_count if facts.class_count > 2 else None,
        }
        estimator = cls(**{**of_run, **parameters})
        estimator._temporary = None
        estimator._load(Path(run))
        return estimator

    @property
    def oof_(self) -> pd.DataFrame:
        """The OOF rows: id, label, fold, group, the logit of each member, the stacked logit and the prediction.

        `stacked_logit` and `y_pred` are nested: the stacker and the threshold, or offsets, were fitted without the
        row's fold. Of more than two classes, each class has its logits, such as `stacked_logit_cat`.
        """
        from ensemble.commands.fit_stacker import averaged_oof

        check_is_fitted(self)
        oof = averaged_oof(Run(self.run_), self._decision.stacker.members, self._decision.views)
        return oof.table.to_pandas().assign(**self._oof_columns(oof))

    @property
    def report_(self) -> str:
        """The run's report as Markdown; it is also written to `report.md` of the run."""
        from ensemble.commands.report import report
        from ensemble.reports.documents import report_markdown

        check_is_fitted(self)
        with self._messages() as say:
            return report_markdown(report(self.run_, say))

    # --- parameters and messages --------------------------------------------------------------------------------------

    def _member_configs(self) -> list[MemberConfig]:
        changes = {"epochs": self.epochs, "pretrained": self.pretrained}
        given = {name: value for name, value in changes.items() if value is not None}
        if isinstance(self.members, str | MemberConfig):
            raise ConfigError("members", "must be a sequence of architectures or member configs")
        values = [each.model_dump() if isinstance(each, MemberConfig) else {"arch": each} for each in self.members]
        configs = [validated(MemberConfig, {**each, **given}, "members") for each in values]
        names = [config.name for config in configs]
        if not names or len(set(names)) < len(names):
            raise ConfigError("members", f"must hold at least one member, of different names; got {names}")
        return configs

    def _compute(self) -> ComputeConfig:
        values = {"device": self.device, "jobs": self.jobs, "workers": self.workers}
        return validated(ComputeConfig, values, "parameters")

    @contextlib.contextmanager
    def _messages(self) -> Iterator[Say]:
        """Provide the commands' `say`: lines on standard error if `verbose`, else Python warnings."""
        if self.verbose:
            yield say_on_stderr
        else:
            with hidden():
                yield _warn

    # --- images -------------------------------------------------------------------------------------------------------

    def _labelled(self, X: Images, y: Any, groups: Any, run: Path, say: Say) -> tuple[Dataset, NDArray[Any]]:  # noqa: N803
        """Return the images with labels 0 to C - 1, and the C labels of the user that they stand for."""
        label_file = Path(y) if isinstance(y, str | os.PathLike) else None
        images = open_images(X, self.classes, label_file, self.on_bad, follow_links=self.follow_links)
        classes, labels = labels_of(images, y, self.classes)
        parse_objective(self.objective, len(classes))  # an invalid objective is refused before hours of training
        images = with_labels(images, labels, groups, classes)
        return load_images(images, Run(run).pixels, self.resize, self.exif, self.on_bad, say), classes

    def _stacked_logits(self, X: Images) -> Floats:  # noqa: N803
        from ensemble.commands.fold_logits import unkept_fold_logits

        compute, options = self._compute(), PredictOptions(tta=self.tta)
        with self._messages() as say:
            run = Run(self.run_)
            images = open_images(X, len(self.classes_), find_labels=False, follow_links=self.follow_links)
            dataset = load_images(images, run.pixels, self.resize, run.read().exif, say=say)
            if dataset.size != self.image_size_:
                size = f"{dataset.size[0]} × {dataset.size[1]} pixels"
                problem = f"images are {size}; the members know {self.image_size_}"
                raise DataError("X", problem, "bring them to that size, or fit with resize")
            members, views = self._decision.stacker.members, self._decision.views
            logits = unkept_fold_logits(run, members, views, dataset, options, compute)
        return self._decision.stacker.apply(logits.mean)

    # --- the fitted state ---------------------------------------------------------------------------------------------

    def _load(self, run: Path) -> None:
        """Set the fitted attributes from a run directory."""
        from ensemble.commands.fit_stacker import read_decisions

        facts, decisions = Run(run).read(), read_decisions(Run(run))
        self.run_, self.image_size_ = run, tuple(facts.size)
        self._decision = decisions.tta if self.tta else decisions.plain
        self.classes_ = read_labels(run / "classes.json", facts.classes)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a pickle or a copy, with the files of a temporary run, which may be removed later."""
        state = dict(super().__getstate__())
        if state.pop("_temporary", None) is not None:
            run = state.pop("run_")
            paths = [path.relative_to(run) for path in sorted(run.rglob("*")) if path.is_file()]
            kept = [path for path in paths if path.parts[0] not in NOT_EMBEDDED and not path.name.startswith(".")]
            state["_embedded"] = {path.as_posix(): (run / path).read_bytes() for path in kept}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        embedded = state.pop("_embedded", None)
        super().__setstate__({"_temporary": None, "classes": None, **state})
        if embedded is not None:
            self._temporary = _TemporaryFolder()
            self.run_ = self._temporary.path
            for name, content in embedded.items():
                files.write_whole(self.run_ / name, content)


class _TemporaryFolder:
    """A folder that is removed with this object, or when the process ends."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="thera-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _warn(line: str) -> None:
    """Raise a command's warning as a Python warning; notes are dropped, since they are for the terminal."""
    if line.startswith("warning: "):
        warnings.warn(line.removeprefix("warning: "), UserWarning, stacklevel=2)
