"""What an exported model states about itself, in the metadata of the ONNX file and in a JSON file beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ensemble.errors import ArtifactError, printable

SCHEMA = 1
"""The schema of the facts and of the graph's inputs and outputs. A file of a newer one is refused."""

ADDED: dict[str, list[object]] = {"usual_shares": [], "usual_share_errors": [], "caveats": []}
"""Facts that files of former versions do not state, with the values that they have then."""

EXPORT_AGAIN = "export it again: thera export RUN"
"""The remedy where a file is damaged."""


@dataclass(frozen=True)
class MemberOfModel:
    """A member of the exported stack.

    Attributes
    ----------
    name, architecture : str
    input_size : int
        Side in pixels to which the graph resamples the images for this network.
    weight : float
        Of its logits in the stack.
    cut : tuple of floats
        Its threshold, (1,), or its offsets, (C,), at which it votes.
    weights_sha256 : tuple of k str
        SHA-256 of the weights of its fold models in the run.
    """

    name: str
    architecture: str
    input_size: int
    weight: float
    cut: tuple[float, ...]
    weights_sha256: tuple[str, ...]


@dataclass(frozen=True)
class Expected:
    """An error rate with its 95 % interval; `measure` is its name, such as HTER."""

    measure: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Checked:
    """How the file was verified before it was written.

    Attributes
    ----------
    images : int
        Real images on which onnxruntime gave the same labels as torch in float32.
    largest_difference : float
        Of a member's logit on these images.
    tolerance : float
        The difference that was allowed, relative to 1 + |logit|.
    """

    images: int
    largest_difference: float
    tolerance: float


@dataclass(frozen=True)
class ModelFacts:
    """What an exported model states about itself.

    Attributes
    ----------
    version : str
        Of the thera that wrote it.
    classes : tuple of C str, or None
        The names of the classes; None for two classes that are 0 and 1.
    class_count : int
    size : tuple of int
        Height and width of the images, in pixels.
    resize : int or None
        The size that every image is brought to before; None where images must have `size`.
    exif : {"ignore", "apply"}
        Whether EXIF orientations are ignored or applied.
    image_policy : int
        The version of the rules by which files become pixels, see `data.pixels`.
    views : tuple of str
        The views over which the logits are averaged.
    folds : int
        The number of fold models of each member.
    members : tuple of MemberOfModel
    bias : tuple of floats
        Of the stack: (1,), or (C,) of more than two classes.
    cut : tuple of floats
        The threshold of the stacked logit, (1,), or the offsets of the classes, (C,).
    correction : str
        How the threshold was corrected for averaging the fold models; "none" where it was not.
    corrected_on : str
        The set of images, among the predictions of the run, by which it was corrected; empty without one.
    objective : str
        What the threshold or the offsets minimise.
    nested : Expected
        Of the stack of one fold model, on the out-of-fold rows.
    expected : Expected
        Of new images; that of one fold model where `averaging_measured` is false.
    averaging_measured : bool
    shares : tuple of floats
        The share that each class had among the labels of the images of `corrected_on`; empty without one.
    decision_sha256, fingerprint : str
        Hashes of the run's `decision.json` and of its training data.
    half : bool
        Whether the weights are stored in half precision.
    checked : Checked
    self_test : tuple of floats
        The member logits of the drawn images of `self_test.py`, flattened.
    usual_shares, usual_share_errors : tuple of C floats
        The share of images that get each label where the classes are mixed as in training, and its standard error;
        empty in files of former versions.
    caveats : tuple of str
        Why the error of new images may be higher than expected: what distilled members have learned from.
    """

    version: str
    classes: tuple[str, ...] | None
    class_count: int
    size: tuple[int, int]
    resize: int | None
    exif: str
    image_policy: int
    views: tuple[str, ...]
    folds: int
    members: tuple[MemberOfModel, ...]
    bias: tuple[float, ...]
    cut: tuple[float, ...]
    correction: str
    corrected_on: str
    objective: str
    nested: Expected
    expected: Expected
    averaging_measured: bool
    shares: tuple[float, ...]
    decision_sha256: str
    fingerprint: str
    half: bool
    checked: Checked
    self_test: tuple[float, ...]
    usual_shares: tuple[float, ...] = ()
    usual_share_errors: tuple[float, ...] = ()
    caveats: tuple[str, ...] = ()


@cache
def _adapter() -> TypeAdapter[ModelFacts]:
    return TypeAdapter(ModelFacts)


def plain_facts(facts: ModelFacts) -> dict[str, Any]:
    """Return facts as values of JSON."""
    values: dict[str, Any] = _adapter().dump_python(facts, mode="json")
    return values


def facts_text(facts: ModelFacts) -> str:
    """Return facts as JSON in ASCII, with sorted keys, every float to the last bit."""
    return json.dumps(plain_facts(facts), sort_keys=True, allow_nan=False)


def read_facts(text: str, where: str) -> ModelFacts:
    """Return the facts of `facts_text`.

    Raises
    ------
    ArtifactError
        They are no facts of this schema, or contradict each other.
    """
    try:
        facts = _adapter().validate_json(text, strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(map(str, fault["loc"]))
        problem = f"states facts that are damaged ({printable(field)}: {printable(fault['msg'])})"
        raise ArtifactError(where, problem, EXPORT_AGAIN) from None
    outputs = 1 if facts.class_count == 2 else facts.class_count
    cuts = [facts.cut, facts.bias, *(member.cut for member in facts.members)]
    names = facts.class_count if facts.classes is None else len(facts.classes)
    if facts.class_count < 2 or names != facts.class_count or {len(cut) for cut in cuts} != {outputs}:
        raise ArtifactError(where, "states facts that contradict each other", EXPORT_AGAIN)
    if {len(facts.usual_shares), len(facts.usual_share_errors)} not in ({0}, {facts.class_count}):
        raise ArtifactError(where, "states facts that contradict each other", EXPORT_AGAIN)
    if not facts.members or min(facts.size) < 1 or facts.exif not in ("ignore", "apply"):
        raise ArtifactError(where, "states facts that contradict each other", EXPORT_AGAIN)
    return facts
