"""What `thera export` returns, and what `thera predict --model` returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ensemble.errors import DataError
from ensemble.runtime.facts import Checked, ModelFacts
from ensemble.runtime.outputs import Outputs

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class OpenVinoFiles:
    """An exported model in the form of OpenVINO.

    Attributes
    ----------
    xml : Path
        The graph; the weights are beside it, with the suffix .bin.
    size : int
        Of both files, in bytes.
    checked : Checked
        As `ModelFacts.checked`, of OpenVINO in place of onnxruntime.
    """

    xml: Path
    size: int
    checked: Checked


@dataclass(frozen=True)
class ExportResult:
    """An exported model.

    Attributes
    ----------
    run : Path
    out : Path
        The file with the suffix .onnx.
    facts : ModelFacts
    sha256 : str
        The hash that the file states of its content.
    size : int
        Of the file, in bytes.
    openvino : OpenVinoFiles or None
        None without `--openvino`.
    """

    run: Path
    out: Path
    facts: ModelFacts
    sha256: str
    size: int
    openvino: OpenVinoFiles | None = None


@dataclass(frozen=True, eq=False)
class ModelPrediction:
    """A set of images that an exported model has labelled.

    Attributes
    ----------
    name : str
        Of the set.
    model : Path
    facts : ModelFacts
    ids : str array (n,)
    outputs : Outputs
        Labels, probabilities and logits of the n images.
    table : Path
        `predictions.csv`: a row per image, as `thera predict` writes it.
    unusual : int or None
        The class whose share of the labels chance does not explain; None where there is none, or the model does not
        state its usual shares.
    out : Path or None
        The label file; None where images were left out and it needs a line for each.
    incomplete : DataError or None
        What the command reports last, and exits with, where images were left out.
    """

    name: str
    model: Path
    facts: ModelFacts
    ids: np.ndarray
    outputs: Outputs
    table: Path
    unusual: int | None = None
    out: Path | None = None
    incomplete: DataError | None = None

    @property
    def y_pred(self) -> np.ndarray:
        """The class indices, int8 (n,)."""
        return self.outputs.y_pred
