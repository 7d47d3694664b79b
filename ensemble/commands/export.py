"""`thera export`: writes the deployed decision of a run as one ONNX file, once onnxruntime gives the same labels."""

from __future__ import annotations

import functools
import hashlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ensemble import __version__
from ensemble.commands.fit_stacker import read_decisions
from ensemble.commands.prediction_files import read_prediction_facts
from ensemble.config import VIEW_SETS, ComputeConfig
from ensemble.data.arrays import dataset_from_arrays
from ensemble.data.dataset import Dataset
from ensemble.data.pixels import POLICY_VERSION
from ensemble.data.source import open_source
from ensemble.data.store import load_dataset, read_store
from ensemble.decision.class_decision import ClassDecision
from ensemble.decision.decision import Decision
from ensemble.decision.rates import apply_cut
from ensemble.decision.usual_shares import usual_class_shares, usual_shares
from ensemble.errors import ArtifactError, ConfigError, DataError, TheraError, printable
from ensemble.export_config import ExportConfig
from ensemble.export_results import ExportResult, OpenVinoFiles
from ensemble.extras import refuse_missing
from ensemble.predict_config import PredictOptions
from ensemble.prediction_results import ClassPredictionFacts, PredictionFacts
from ensemble.progress import Say, hidden, progress, silent
from ensemble.runs import files
from ensemble.runs.distilled import caveats
from ensemble.runs.run import Run, RunFacts
from ensemble.runtime.classifier import Graph
from ensemble.runtime.facts import Checked, Expected, MemberOfModel, ModelFacts, plain_facts
from ensemble.runtime.onnx_file import HASH_KEY, checked, json_beside, sealed
from ensemble.runtime.self_test import drawn_images

if TYPE_CHECKING:
    from ensemble.members.onnx_graph import ExportedMember

CHECKED_IMAGES = 1000
"""Images on which the labels of torch and of onnxruntime are compared, evenly spaced over those that there are."""

TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2
"""The largest difference of a member's logit from that of torch in float32, relative to 1 + |logit|. In float32 only
the order of sums differs, which changes a logit by some 1e-6 before it is rounded to five decimals; weights in half
precision have 11 bits."""


@dataclass(frozen=True)
class _Deployed:
    """The decision to export, its threshold or offsets, the prediction whose correction they have, and the folds."""

    decision: Decision | ClassDecision
    cut: tuple[float, ...]
    prediction: PredictionFacts | ClassPredictionFacts | None
    corrected_on: str
    folds: tuple[int, ...]


def export(run: Path, config: ExportConfig | None = None, say: Say = silent) -> ExportResult:
    """Write the deployed decision of a run as one ONNX file, with its facts in it and in a JSON file beside it.

    The file holds preprocessing, members, fold models, views, stacker and corrected threshold. Before it is written,
    onnxruntime must give the same labels as torch in float32 on real images, and logits within `TOLERANCE`.

    Parameters
    ----------
    run : Path
        The run's folder, with a fitted stacker and the weights of its members.
    config : ExportConfig, optional
    say : callable
        Receives notes and warnings, a line each.

    Raises
    ------
    ResourceError
        The extra thera[export] is not installed, or the weights do not fit into one file.
    ConfigError
        The file is there and is no exported model, or a prediction cannot be used.
    ArtifactError
        A file of the run is missing or damaged.
    TheraError
        A network cannot be exported, or the model gives another label or logit; nothing is written then.
    """
    started, config, folder = time.time(), config or ExportConfig(), Run(run)
    refuse_missing("export", "thera export")
    if config.openvino:
        refuse_missing("peers", "--openvino")
    facts = folder.read()
    deployed = _deployed(folder, facts, config, say)
    out = _target(folder, config)
    members = folder.member
    for name in deployed.decision.stacker.members:  # a missing file is refused before anything is computed
        members(name).check_config()
        for fold in deployed.folds:
            members(name).weights(fold)
    dataset = _real_images(folder, facts, config, say)
    graph = _graph(folder, facts, deployed, config.half)
    model = Graph(graph, printable(out))
    logits = _torch_logits(folder, deployed, dataset)
    result = _facts(folder, facts, deployed, config.half)
    result = replace(result, checked=_checked(deployed, dataset, logits, model, config.half))
    also, contents = _in_openvino(graph, out, result, deployed, dataset, logits) if config.openvino else (None, {})
    with hidden():
        drawn = model.run(drawn_images(facts.size))
    data = sealed(graph, replace(result, self_test=tuple(drawn.member_logits.ravel().tolist())))
    written = checked(data, printable(out))  # what is written can be read
    files.write_whole(out, data)
    files.write_json(json_beside(out), plain_facts(written.facts))
    for path, content in contents.items():
        files.write_whole(path, content)
    if not contents and (xml := _openvino_paths(out)[1]).exists():
        say(f"note: {printable(xml)} is of an earlier export; --openvino writes it anew")
    folder.record(f"export {out.name}", started)
    say(f"{len(data) / 1e6:.1f} MB written to {printable(out)}")
    return ExportResult(run, out, written.facts, written.sha256, len(data), also)


def _target(run: Run, config: ExportConfig) -> Path:
    out = config.out or run.folder / "export" / f"{run.folder.resolve().name}.onnx"
    where = f"--out {printable(out)}"
    if out.suffix != ".onnx":
        raise ConfigError(where, "must have the suffix .onnx", f"give {printable(out.with_suffix('.onnx').name)}")
    for path in (out, json_beside(out), *(_openvino_paths(out) if config.openvino else ())):
        if kind := files.irregular(path):
            raise ConfigError(where, f"{printable(path.name)} is {kind}", "give the name of a new file")
        if path.exists() and not config.force and not _is_own(path):
            problem = f"{printable(path.name)} is there already, and thera export did not write it"
            raise ConfigError(where, problem, "give the name of a new file, or --force")
    return out


def _is_own(path: Path) -> bool:
    """Return whether a file seems to be an exported model, a part of one, or its facts."""
    if path.suffix == ".bin":  # it holds numbers alone
        path = path.with_suffix(".xml")
        if not path.is_file():
            return False
    with open(path, "rb") as file:
        data = file.read(2**16)
        file.seek(max(0, path.stat().st_size - 2**16))
        data += file.read()
    return (b'"image_policy"' if path.suffix == ".json" else HASH_KEY.encode()) in data


def _openvino_paths(out: Path) -> tuple[Path, Path]:
    return out.with_suffix(".bin"), out.with_suffix(".xml")


# --- the decision -----------------------------------------------------------------------------------------------------


def _deployed(run: Run, facts: RunFacts, config: ExportConfig, say: Say) -> _Deployed:
    """Return the decision to export. Its threshold is that of a prediction of the run, if there is one that it fits.

    That of one fold model is the decision's own, which was fitted to OOF logits, of one fold model each.
    """
    folds = tuple(range(facts.folds)) if config.fold is None else (config.fold,)
    if folds[-1] >= facts.folds:
        raise ConfigError(f"--fold {config.fold}", f"is no fold of the run, which has {facts.folds}", "count from 0")
    decisions = read_decisions(run, say)
    view_sets = {VIEW_SETS[name]: name for name in VIEW_SETS if config.views in ("auto", name)}
    sha256 = files.file_sha256(run.decision)
    found: dict[str, PredictionFacts | ClassPredictionFacts] = {}
    reasons: dict[str, str] = {}
    for path in sorted(run.folder.glob("predictions/*/predictions.json")) if config.fold is None else ():
        name = path.parent.name
        if config.corrected_on not in (None, name):
            continue
        prediction = read_prediction_facts(path.parent, facts.class_count)
        reason = _unfit(prediction, view_sets, sha256)
        if reason:
            reasons[name] = reason
        else:
            found[name] = prediction
    if config.corrected_on is not None and not found:
        where = f"--corrected-on {printable(config.corrected_on)}"
        problem = reasons.get(config.corrected_on, "is no folder of the run's predictions")
        raise ConfigError(where, problem, "see predictions/ in the run's folder")
    if not found:
        views = "tta" if config.views == "auto" else config.views
        decision = getattr(decisions, views)
        if facts.class_count == 2 and config.fold is None:
            remedy = f"run thera predict{' --tta' if views == 'tta' else ''} on unlabelled images first"
            say(f"note: no prediction of the run fits, so that the threshold is not corrected for averaging; {remedy}")
        return _Deployed(decision, _cut(decision), None, "", folds)
    name = max(found, key=lambda each: (found[each].images, each))
    prediction = found[name]
    decision = getattr(decisions, view_sets[prediction.request.views])
    if isinstance(prediction, PredictionFacts):
        say(f"the threshold is that of predictions/{printable(name)}: {prediction.threshold:.5f}")
        if prediction.request.precision != "fp32":
            say(
                "note: that prediction may have been computed in another precision; labels of images next to the "
                "threshold can differ (thera predict --precision fp32 gives those of the model)"
            )
        return _Deployed(decision, (prediction.threshold,), prediction, name, folds)
    return _Deployed(decision, _cut(decision), prediction, name, folds)


def _unfit(
    prediction: PredictionFacts | ClassPredictionFacts, views: dict[tuple[str, ...], str], decision_sha256: str
) -> str:
    """Return why the threshold of a prediction cannot be exported, or ""."""
    request = prediction.request
    if request.decision_sha256 != decision_sha256:
        return "was made by another decision than the run has now"
    if request.views not in views:
        return "averages other views"
    if request.combine != "mean" or request.prior is not None or request.cascade is not None:
        return "was made with --combine, --prior or --cascade, which a model does not have"
    return ""


def _cut(decision: Decision | ClassDecision) -> tuple[float, ...]:
    return (decision.threshold,) if isinstance(decision, Decision) else decision.offsets


def _facts(run: Run, facts: RunFacts, deployed: _Deployed, half: bool) -> ModelFacts:
    """Return the facts of a model; how it was checked is not known yet."""
    decision, prediction, stacker = deployed.decision, deployed.prediction, deployed.decision.stacker
    if isinstance(decision, Decision):
        cuts: tuple[tuple[float, ...], ...] = tuple((threshold,) for threshold in decision.member_thresholds)
        bias: tuple[float, ...] = (decision.stacker.bias,)
        nested = Expected("HTER", decision.nested.hter, decision.interval.low, decision.interval.high)
    else:
        cuts, bias = decision.member_offsets, decision.stacker.biases
        interval = decision.stacked.mean_error
        nested = Expected("class error", decision.nested.mean_error, interval.low, interval.high)
    expected, shares, usual = nested, tuple[float, ...](), _usual_shares(decision, prediction)
    if isinstance(prediction, PredictionFacts):
        ends, rates = prediction.expectation.interval, prediction.expectation.rates
        expected = Expected("HTER", rates.hter, ends.low, ends.high)
        shares = prediction.share_of_label_0, 1 - prediction.share_of_label_0
    elif prediction is not None:
        ends = prediction.expectation.mean_error
        expected = Expected("class error", prediction.expectation.rates.mean_error, ends.low, ends.high)
        shares = prediction.shares
    members = []
    for name, weight, cut in zip(stacker.members, stacker.weights, cuts, strict=True):
        member = run.member(name)
        config = member.read().current_config
        hashes = tuple(member.weights_sha256(fold) for fold in deployed.folds)
        side = config.get("input_size") or facts.size[0]
        members.append(MemberOfModel(name, str(config["arch"]), side, weight, tuple(cut), hashes))
    return ModelFacts(
        version=__version__,
        classes=facts.classes,
        class_count=facts.class_count,
        size=facts.size,
        resize=facts.resize,
        exif=facts.exif,
        image_policy=POLICY_VERSION,
        views=decision.views,
        folds=len(deployed.folds),
        members=tuple(members),
        bias=bias,
        cut=deployed.cut,
        correction="none" if prediction is None else prediction.expectation.correction,
        corrected_on=deployed.corrected_on,
        objective=decision.objective.text,
        nested=nested,
        expected=expected,
        averaging_measured=prediction is not None and prediction.expectation.averaging_measured,
        shares=shares,
        decision_sha256=files.file_sha256(run.decision),
        fingerprint=facts.fingerprint,
        half=half,
        checked=Checked(0, 0.0, 0.0),
        self_test=(),
        usual_shares=usual[0],
        usual_share_errors=usual[1],
        caveats=caveats([run.member(name) for name in stacker.members]),
    )


def _usual_shares(
    decision: Decision | ClassDecision, prediction: PredictionFacts | ClassPredictionFacts | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the share of images that get each label at the class mix of training, and its error.

    The rates are those that are expected of the prediction, unless all its images got one label.
    """
    if isinstance(decision, ClassDecision):
        return usual_class_shares(decision.nested)
    rates = decision.nested
    if isinstance(prediction, PredictionFacts) and prediction.expectation.implied_share is not None:
        rates = prediction.expectation.rates
    return usual_shares(rates, decision.stacked.fpr, decision.stacked.fnr)


def _graph(run: Run, facts: RunFacts, deployed: _Deployed, half: bool) -> bytes:
    from ensemble.members.onnx_graph import decision_graph

    decision = deployed.decision
    bias = (decision.stacker.bias,) if isinstance(decision, Decision) else decision.stacker.biases
    members = [
        _member(run, facts, deployed.folds, *pair)
        for pair in zip(decision.stacker.members, decision.stacker.weights, strict=True)
    ]
    with progress(len(members) * len(deployed.folds), "export", "fold models") as bar:
        return decision_graph(
            members,
            facts.size,
            decision.views,
            facts.class_count,
            bias,
            deployed.cut,
            half,
            lambda text: bar.advance(),
        )


def _member(run: Run, facts: RunFacts, folds: Sequence[int], name: str, weight: float) -> ExportedMember:
    from ensemble.config import MemberConfig
    from ensemble.members.backbones import build
    from ensemble.members.onnx_graph import ExportedMember

    member = run.member(name)
    config = MemberConfig.model_validate({**member.read().current_config, "pretrained": False, "weights": None})
    network = build(config, facts.size[0], classes=facts.class_count).eval()
    weights = [functools.partial(member.read_weights, fold) for fold in folds]
    return ExportedMember(name, network, weights, weight)


# --- the check --------------------------------------------------------------------------------------------------------


def _real_images(run: Run, facts: RunFacts, config: ExportConfig, say: Say) -> Dataset:
    """Return up to `CHECKED_IMAGES` decoded images, evenly spaced over those that are given or that the run keeps.

    Raises
    ------
    DataError
        There are none, or they have another size than the training images.
    """
    if config.images is not None:
        source = open_source(
            config.images,
            follow_links=config.follow_links,
            find_labels=False,
            n_classes=facts.class_count,
        )
        rows = np.unique(np.linspace(0, len(source) - 1, CHECKED_IMAGES).astype(int))
        with tempfile.TemporaryDirectory(prefix="thera-") as store:
            loaded = load_dataset(source.rows(rows), Path(store), facts.resize, say=say, exif=facts.exif)
            if tuple(loaded.size) != tuple(facts.size):
                problem = f"images are {loaded.size[0]} × {loaded.size[1]} pixels; the run has {list(facts.size)}"
                raise DataError(source.where, problem, "give images of this size")
            return _as_dataset(np.array(loaded.pixels), facts.size)
    stores = []
    for path in sorted(run.pixels.glob("*/store.json")):
        try:
            pixels = read_store(path.parent)[0]
        except ArtifactError as error:
            say(f"warning: {error.where}: {error.found}; its images are not used")
            continue
        if pixels.shape[1:] == (*facts.size, 3) and len(pixels):
            stores.append(pixels)
    total = sum(map(len, stores))
    if not total:
        problem = "has no decoded images, on which the model would be compared with torch"
        raise DataError(printable(run.folder), problem, "name some: --images FOLDER")
    chosen, start, parts = np.unique(np.linspace(0, total - 1, CHECKED_IMAGES).astype(int)), 0, []
    for pixels in stores:
        inside = (chosen >= start) & (chosen < start + len(pixels))
        parts.append(np.asarray(pixels[chosen[inside] - start]))
        start += len(pixels)
    return _as_dataset(np.concatenate(parts), facts.size)


def _as_dataset(pixels: np.ndarray, size: tuple[int, int]) -> Dataset:
    if size[0] == size[1]:
        return dataset_from_arrays(pixels)
    ids = np.array([str(row) for row in range(len(pixels))])
    digests = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in pixels], "S64")
    return Dataset(ids, None, None, pixels, digests, hashlib.sha256(pixels.tobytes()).hexdigest())


def _torch_logits(run: Run, deployed: _Deployed, dataset: Dataset) -> np.ndarray:
    """Return the logits of the members by torch in float32, as `OofLogits.logits`."""
    from ensemble.commands.fold_logits import unkept_fold_logits

    members, views = deployed.decision.stacker.members, deployed.decision.views
    options = PredictOptions(tta=len(views) > 1, precision="fp32", convolutions="native")
    compute = ComputeConfig(device="cpu", jobs=1)
    return unkept_fold_logits(run, members, views, dataset, options, compute, deployed.folds).mean


def _checked(deployed: _Deployed, dataset: Dataset, logits: np.ndarray, model: Graph, half: bool) -> Checked:
    """Compare a model with the logits of torch in float32, and say how far they differ.

    Raises
    ------
    TheraError
        A label differs, or a logit by more than the tolerance.
    """
    decision, tolerance = deployed.decision, HALF_TOLERANCE if half else TOLERANCE
    stacked = decision.stacker.apply(logits)
    cut = deployed.cut[0] if isinstance(decision, Decision) else deployed.cut
    expected = apply_cut(stacked, cut)
    outputs = model.run(dataset.pixels, "check")
    differences = np.abs(outputs.member_logits - logits)
    changed = int(np.count_nonzero(outputs.y_pred != expected))
    largest = float(differences.max())
    # Weights multiply the members' differences, and rounding to five decimals adds to each.
    scale = 1 + np.abs(stacked) + float(np.abs(decision.stacker.weights).sum())
    stacks = (np.abs(outputs.stacked_logits - stacked) <= tolerance * scale).all()
    remedy = "export without --half" if half else model.remedy
    if changed or not stacks or (differences > tolerance * (1 + np.abs(logits))).any():
        problem = (
            f"gives {changed} of {len(dataset)} images another label than torch, and members' logits that differ "
            f"by up to {largest:.2g} (allowed: {tolerance:g} of 1 + |logit|); nothing is written"
        )
        raise TheraError(model.name, problem, remedy)
    return Checked(len(dataset), largest, tolerance)


def _in_openvino(
    graph: bytes, out: Path, facts: ModelFacts, deployed: _Deployed, dataset: Dataset, logits: np.ndarray
) -> tuple[OpenVinoFiles, dict[Path, bytes]]:
    """Return the model in the form of OpenVINO, once it is checked, and the content of its files."""
    from ensemble.runtime.openvino_file import OpenVinoGraph

    model = OpenVinoGraph(graph, printable(out))
    check = _checked(deployed, dataset, logits, model, facts.half)
    xml, weights = model.files(replace(facts, checked=check))
    paths = _openvino_paths(out)
    files_of_it = dict(zip(paths, (weights, xml), strict=True))
    return OpenVinoFiles(paths[1], len(xml) + len(weights), check), files_of_it
