"""The tables of `thera export`, of `thera predict --model` and of `thera push`."""

from __future__ import annotations

import numpy as np

from ensemble.errors import printable
from ensemble.export_results import ExportResult, ModelPrediction
from ensemble.push_results import PushResult
from ensemble.reports.measures import class_names
from ensemble.reports.table import Table
from ensemble.runtime.facts import Expected, ModelFacts


def export_tables(result: ExportResult) -> list[Table]:
    """Return what an exported model holds, and how it was checked."""
    facts = result.facts
    rows = [
        (member.name, member.architecture, str(facts.folds), str(member.input_size), f"{member.weight:.4f}")
        for member in facts.members
    ]
    members = Table("The members of the model", ("member", "network", "folds", "input", "weight"), tuple(rows))
    check, half = facts.checked, ", weights in half precision" if facts.half else ""
    notes = (
        f"Model: {printable(result.out)} ({result.size / 1e6:.1f} MB{half})",
        f"Checked by onnxruntime on {check.images} images: the labels of torch, logits within "
        f"{check.largest_difference:.2g} (allowed: {check.tolerance:g} of 1 + |logit|).",
        *_openvino_notes(result),
        *_expected_lines(facts),
        f"Label images with it: thera predict --model {printable(result.out)} IMAGES",
    )
    return [members, Table("In short", (), (), notes)]


def _openvino_notes(result: ExportResult) -> tuple[str, ...]:
    if (written := result.openvino) is None:
        return ()
    check = written.checked
    return (
        f"For OpenVINO: {printable(written.xml)} and {printable(written.xml.with_suffix('.bin').name)} "
        f"({written.size / 1e6:.1f} MB), checked on the same images: logits within {check.largest_difference:.2g}.",
    )


def model_prediction_tables(result: ModelPrediction) -> list[Table]:
    """Return how many images got each label, and the error rate to expect."""
    facts = result.facts
    counts = np.bincount(result.y_pred, minlength=facts.class_count)
    names = class_names(facts.classes, facts.class_count)
    rows = []
    for label, name in enumerate(names):
        of_run = (f"{facts.shares[label]:.4f}",) if facts.shares else ()
        rows.append((name, str(counts[label]), f"{counts[label] / counts.sum():.4f}", *of_run))
    columns = ("label", "images", "share", *((f"share in {printable(facts.corrected_on)}",) if facts.shares else ()))
    where = () if result.out is None else (f"Label file: {printable(result.out)}",)
    notes = (
        *_expected_lines(facts),
        "It holds for images like those of the training. A model checks the shares of its labels alone.",
        *((f"warning: {warning}",) if (warning := share_warning(result)) else ()),
        *where,
    )
    return [Table(f"Labels of {printable(result.name)}", columns, tuple(rows)), Table("In short", (), (), notes)]


def share_warning(result: ModelPrediction) -> str:
    """Return what speaks against the labels of a model: a share of one that chance does not explain; or ""."""
    if result.unusual is None:
        return ""
    facts, label = result.facts, result.unusual
    name = class_names(facts.classes, facts.class_count)[label]
    return (
        f"SHIFT: {np.mean(result.y_pred == label):.4f} of the labels are {name}, where {facts.usual_shares[label]:.4f} "
        "are usual for images like those of the training: more than chance. Either the class mix has changed, or the "
        "images have, and then the expected error does not hold."
    )


def push_tables(result: PushResult) -> list[Table]:
    """Return what was uploaded, and where to."""
    rows = ((printable(each.name), f"{each.size / 1e3:.1f}") for each in result.uploads)
    kind = f"{'a new' if result.is_new else 'the existing'} {'private' if result.private else 'public'} repository"
    notes = (f"Uploaded to {result.address}, {kind}, in commit {printable(result.commit)}.",)
    return [Table("Uploaded files", ("file", "kB"), tuple(rows)), Table("In short", (), (), notes)]


def _expected_lines(facts: ModelFacts) -> tuple[str, ...]:
    one_fold = ", measured of one fold model" + ("; the mean of all is usually better" if facts.folds > 1 else "")
    first = f"Expected {_text(facts.expected)}{'' if facts.averaging_measured else one_fold}."
    return first, *(f"Note: {caveat}" for caveat in facts.caveats)


def _text(expected: Expected) -> str:
    return f"{expected.measure} {expected.value:.4f} (95 %: {expected.low:.4f} to {expected.high:.4f})"
