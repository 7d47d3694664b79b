"""`thera predict --model NAME.onnx`: labels images with an exported model, by onnxruntime alone. No torch here."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.commands.checks import announce
from ensemble.config import ComputeConfig
from ensemble.data.source import open_unlabelled, set_name
from ensemble.decision.rates import apply_offsets
from ensemble.decision.usual_shares import unusual_class
from ensemble.decision.votes import plurality, vote_share
from ensemble.errors import ConfigError, printable
from ensemble.export_results import ModelPrediction
from ensemble.predict_config import PredictConfig
from ensemble.progress import Say, silent
from ensemble.reports.export_tables import share_warning
from ensemble.runs import files
from ensemble.runs.label_files import checked_target, incomplete, is_table, labels_of_all
from ensemble.runs.run import BAD_IMAGES, Run, bad_images_table
from ensemble.runtime.classifier import OnnxClassifier, refuse_missing_runtime
from ensemble.runtime.facts import ModelFacts
from ensemble.runtime.onnx_file import opened
from ensemble.runtime.outputs import Outputs

FIXED = ("combine", "correction", "prior", "cascade", "precision", "convolutions")
"""Options of `thera predict` that a model has settled."""

TABLE = "predictions.csv"


def predict_with_model(
    model: Path, config: PredictConfig, compute: ComputeConfig | None = None, say: Say = silent
) -> ModelPrediction:
    """Label a set of images with an exported model, and write the label file with `predictions.csv` beside it.

    The image policy, `on_bad` and `bad_label` are those of `commands.predict.predict`.

    Parameters
    ----------
    model : Path
        ``NAME.onnx``, which `thera export` wrote.
    config : PredictConfig
        The options that a model has settled must have their defaults.
    compute : ComputeConfig, optional
        A model is computed on the CPU.
    say : callable
        Receives notes and warnings, a line each.

    Raises
    ------
    ResourceError
        onnxruntime is not installed.
    ArtifactError
        The file is missing, damaged, changed, of another program, or of a newer version.
    ConfigError
        An option is given that the model has settled, or a file exists that would be replaced.
    DataError
        The images cannot be used.
    """
    refuse_missing_runtime()
    facts = opened(model).facts
    _check_options(config, compute or ComputeConfig(), facts)
    source = open_unlabelled(config, facts.class_count)
    out = checked_target(Run(Path()), config.out, source.ids, config.force)
    table, bad = out.with_name(TABLE), out.with_name(BAD_IMAGES)
    _refuse_replacing(out, table, bad, config.force)
    classifier = OnnxClassifier(model)
    announce(source, say)
    with tempfile.TemporaryDirectory(prefix="thera-") as store:
        dataset = classifier.load(source, Path(store), config.on_bad, say)
        outputs = classifier.outputs(dataset.pixels)
    names = [member.name for member in facts.members]
    cuts = [member.cut for member in facts.members]
    of_classes = facts.class_count > 2
    files.write_table(table, (_class_table if of_classes else _table)(dataset.ids, outputs, names, cuts))
    if dataset.bad:
        files.write_whole(bad, bad_images_table(dataset.bad))
    written = not dataset.bad or is_table(out) or config.bad_label is not None
    if written:
        content, count = labels_of_all(out, source.ids, dataset.ids, outputs.y_pred, facts.classes, config.bad_label)
        files.write_whole(out, content)
        say(f"{count} labels written to {printable(out)}; logits and votes are in {printable(table)}")
    else:
        say(f"{len(dataset)} labels, logits and votes are in {printable(table)}")
    unusual = _unusual(facts, outputs)
    result = ModelPrediction(
        set_name(config.images), model, facts, dataset.ids, outputs, table, unusual, out if written else None
    )
    if warning := share_warning(result):
        say(f"warning: {printable(result.name)}: {warning}")
    if not dataset.bad:
        return result
    left_out = incomplete(source.where, len(source), len(dataset.bad), bad, out, written, facts.class_count)
    return ModelPrediction(**{**result.__dict__, "incomplete": left_out})


def _unusual(facts: ModelFacts, outputs: Outputs) -> int | None:
    if not facts.usual_shares:
        return None
    counts = np.bincount(outputs.y_pred, minlength=facts.class_count).tolist()
    return unusual_class(counts, facts.usual_shares, facts.usual_share_errors)


def _check_options(config: PredictConfig, compute: ComputeConfig, facts: ModelFacts) -> None:
    defaults = PredictConfig(images=config.images)
    for name in FIXED:
        if getattr(config, name) != getattr(defaults, name):
            raise ConfigError(f"--{name}", "is settled in a model", "leave it out, or predict with --run")
    if config.tta and len(facts.views) == 1:
        remedy = "leave it out, or export the run again with --views tta"
        raise ConfigError("--tta", "is not in this model, which averages no views", remedy)
    if config.bad_label is not None and config.bad_label >= facts.class_count:
        raise ConfigError("--bad-label", f"must be 0 to {facts.class_count - 1}; got {config.bad_label}")
    if compute.device not in ("auto", "cpu"):
        raise ConfigError(
            "--device", f"a model is computed on the CPU; got {printable(compute.device)}", "leave it out"
        )
    if compute.cluster is not None:
        raise ConfigError("--cluster", "a model is computed on this machine", "leave it out, or predict with --run")
    if compute.jobs is not None:
        raise ConfigError("--jobs", "a model is computed in one process on all cores", "leave it out")


def _refuse_replacing(out: Path, table: Path, bad: Path, force: bool) -> None:
    if out.name in (table.name, bad.name):
        raise ConfigError(
            f"--out {printable(out)}", f"{out.name} is written beside the label file", "give another name"
        )
    for path in (table, bad):
        if kind := files.irregular(path):
            raise ConfigError(printable(path), f"is {kind}", "remove it, or give --out in another folder")
        if path.exists() and not force:
            raise ConfigError(printable(path), "is there already", "give --out in another folder, or --force")


def _table(ids: np.ndarray, outputs: Outputs, names: list[str], cuts: list[tuple[float, ...]]) -> dict[str, Any]:
    """Return the columns of `predictions.csv`, as `thera predict --run` writes them."""
    logits, thresholds = outputs.member_logits, np.array([cut[0] for cut in cuts])
    votes = np.asarray(logits >= thresholds, np.int8)
    columns: dict[str, Any] = {"id": ids}
    columns |= {f"logit_{name}": files.decimals(logits[:, j]) for j, name in enumerate(names)}
    columns["stacked_logit"] = files.decimals(outputs.stacked_logits)
    columns["probability"] = files.decimals(outputs.probabilities)
    columns["label"] = outputs.y_pred
    columns |= {f"vote_{name}": votes[:, j] for j, name in enumerate(names)}
    columns["majority"] = np.asarray(vote_share(thresholds)(logits) >= 0.5, np.int8)
    return columns


def _class_table(ids: np.ndarray, outputs: Outputs, names: list[str], cuts: list[tuple[float, ...]]) -> dict[str, Any]:
    """Return the columns for more than two classes: as `_table`, with a column of logits for each class."""
    logits, offsets = outputs.member_logits, np.array(cuts)
    columns: dict[str, Any] = {"id": ids}
    for name, values in (
        *((f"logit_{member}", logits[:, j]) for j, member in enumerate(names)),
        ("stacked_logit", outputs.stacked_logits),
        ("probability", outputs.probabilities),
    ):
        columns |= {f"{name}_{label}": files.decimals(column) for label, column in enumerate(values.T)}
    columns["label"] = outputs.y_pred
    votes = apply_offsets(logits, offsets)
    columns |= {f"vote_{name}": votes[:, j] for j, name in enumerate(names)}
    columns["plurality"] = apply_offsets(plurality(offsets)(logits), np.zeros(offsets.shape[1]))
    return columns
