"""`OnnxClassifier`: labels images with a file that `thera export` wrote, by onnxruntime alone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ensemble.data.arrays import source_from_paths
from ensemble.data.dataset import Dataset, Source
from ensemble.data.form import Form
from ensemble.data.pixels import POLICY_VERSION
from ensemble.data.source import open_source
from ensemble.data.store import load_dataset
from ensemble.errors import ArtifactError, DataError, TheraError, out_of_memory, printable
from ensemble.extras import refuse_missing
from ensemble.machine import available_cores
from ensemble.progress import Say, hidden, progress, silent
from ensemble.runtime.facts import ModelFacts
from ensemble.runtime.onnx_file import opened
from ensemble.runtime.outputs import Outputs
from ensemble.runtime.self_test import drawn_images

BATCH_PIXELS = 2**19
"""The pixels of a batch, over which memory is bounded: 128 images of 64 × 64, 10 of 224 × 224."""

SELF_TEST_TOLERANCE = 1e-3
"""The largest difference of a logit of a drawn image from the stated one, relative to 1 + |logit|. Machines differ by
some 1e-5, where they add in another order."""

OUTPUTS = ("label", "probability", "logit", "member_logits")
"""The outputs of the graph, in the order of `Outputs`."""

Images: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | NDArray[np.uint8]"
"""A folder, zip, manifest or image; paths of images; or pixels, uint8 (n, H, W, 3), RGB."""


def refuse_missing_runtime() -> None:
    """Raise `ResourceError` where onnxruntime is not installed."""
    refuse_missing("runtime", "prediction with a model")


class Graph:
    """A graph that onnxruntime computes on the CPU.

    Parameters
    ----------
    data : bytes
        A serialised `onnx.ModelProto`.
    where : str
        The file, for messages.
    threads : int, optional
        By default, the number of cores.

    Attributes
    ----------
    name, remedy : str
        For messages: what it is, and what to do where it gives other logits than torch.

    Raises
    ------
    ArtifactError
        onnxruntime refuses the graph, or it has other inputs and outputs than those of an exported model.
    """

    name = "the exported model"
    remedy = "leave its members out one by one to find the network at fault"

    def __init__(self, data: bytes, where: str, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or len(available_cores())
        options.log_severity_level = 4  # its errors are raised too
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no common class of errors
            raise _failed(error, where, f"cannot be loaded by onnxruntime {onnxruntime.__version__}") from None
        names = [each.name for each in self._session.get_outputs()]
        if [each.name for each in self._session.get_inputs()] != ["images"] or names != list(OUTPUTS):
            raise ArtifactError(where, "has other inputs and outputs than an exported model", "export it again")
        self.where = where

    def run(self, pixels: NDArray[np.uint8], what: str = "predict") -> Outputs:
        """Return what the graph says of pixels (n, H, W, 3), which may be a memory map; one batch at a time is read.

        Raises
        ------
        Stopped
            A signal has arrived.
        TheraError
            onnxruntime fails, or a logit is not finite.
        """
        step, parts = max(1, BATCH_PIXELS // int(np.prod(pixels.shape[1:3]))), list[Outputs]()
        with progress(len(pixels), what) as bar:
            for start in range(0, len(pixels), step):
                parts.append(self.batch(np.ascontiguousarray(pixels[start : start + step])))
                bar.advance(len(parts[-1].y_pred))
        return Outputs.joined(parts)

    def batch(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return what the graph says of one batch (b, H, W, 3), without a progress bar; any thread may call it.

        Raises
        ------
        TheraError
            onnxruntime fails, or a logit is not finite.
        """
        try:
            label, probability, logit, member_logits = self._session.run(OUTPUTS, {"images": pixels})
        except Exception as error:  # onnxruntime has no common class of errors
            raise _failed(error, self.where, "cannot be computed") from None
        if not np.isfinite(logit).all():
            raise TheraError(self.where, f"{np.count_nonzero(~np.isfinite(logit))} logits are not finite")
        return Outputs(label.astype(np.int8), probability, logit, member_logits)


def _failed(error: Exception, where: str, problem: str) -> TheraError:
    lines = str(error).splitlines() or [type(error).__name__]
    return out_of_memory(error, where) or ArtifactError(
        where, f"{problem} ({printable(lines[0][:200])})", "export it again"
    )


class OnnxClassifier:
    """A file that `thera export` wrote, ready to label images. Neither torch nor the run is needed.

    Parameters
    ----------
    model : path
        ``NAME.onnx``.
    threads : int, optional
        The number of threads; by default, that of the cores.

    Attributes
    ----------
    classes_ : array (C,)
        The labels in the order of their indices: 0 and 1, or the names of the classes.
    facts : ModelFacts
        What the file states: threshold, expected HTER, image policy, members and hashes.
    sha256 : str
        The hash that the file states of its content.

    Raises
    ------
    ArtifactError
        The file is missing, damaged, changed, of another program, or of a newer version.
    ResourceError
        onnxruntime is not installed.

    Examples
    --------
    ``OnnxClassifier("faces.onnx").predict("new_photos")`` returns the label of each image, in the order of their names.
    """

    def __init__(self, model: str | os.PathLike[str], threads: int | None = None) -> None:
        refuse_missing_runtime()
        path = Path(model)
        file = opened(path)
        self.facts: ModelFacts = file.facts
        self.sha256, self._where = file.sha256, printable(path)
        if self.facts.image_policy != POLICY_VERSION:
            problem = f"reads images by version {self.facts.image_policy} of the image policy; this thera has version "
            raise ArtifactError(self._where, problem + str(POLICY_VERSION), "use the version that wrote it")
        self.classes_ = np.array(self.facts.classes or range(self.facts.class_count))
        self._graph = Graph(file.data, self._where, threads)
        self._test()

    def _test(self) -> None:
        """Refuse a machine on which the drawn images have other logits than the file states."""
        with hidden():
            logits = self._graph.run(drawn_images(self.facts.size)).member_logits.ravel()
        stated = np.array(self.facts.self_test)
        if (
            logits.shape != stated.shape
            or not (np.abs(logits - stated) <= SELF_TEST_TOLERANCE * (1 + np.abs(stated))).all()
        ):
            problem = "gives other logits on this machine than it states of its drawn images"
            raise ArtifactError(self._where, problem, "use another version of onnxruntime, or export it again")

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return labels, probabilities and logits of pixels (n, H, W, 3), which may be a memory map.

        Raises
        ------
        DataError
            They are not uint8, or not of the size of the training images.
        """
        size = self.facts.size
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (*size, 3) or not len(pixels):
            found = (
                f"must be uint8 with shape (n, {size[0]}, {size[1]}, 3); got {pixels.dtype} with shape {pixels.shape}"
            )
            raise DataError("images", found, "give at least one image of the size that the model takes")
        return self._graph.run(pixels)

    @property
    def graph(self) -> Graph:
        """The graph, for those who make batches of their own."""
        return self._graph

    @property
    def form(self) -> Form:
        """How files become pixels."""
        return Form(self.facts.resize, self.facts.exif == "apply")

    def load(self, source: Source, store: Path, on_bad: str = "error", say: Say = silent) -> Dataset:
        """Return the decoded images of a source, which are kept in the folder `store`.

        Raises
        ------
        DataError
            Images cannot be used, or do not have the size that the model takes.
        """
        dataset = load_dataset(source, store, self.facts.resize, say=say, on_bad=on_bad, exif=self.facts.exif)
        if tuple(dataset.size) != tuple(self.facts.size):
            problem = (
                f"images are {dataset.size[0]} × {dataset.size[1]} pixels; the model takes {list(self.facts.size)}"
            )
            raise DataError(source.where, problem, "resize them")
        return dataset

    def predict(self, images: Images) -> NDArray[Any]:
        """Return the label of each image, (n,), as in `classes_`.

        Parameters
        ----------
        images : array or path or sequence of paths
            Pixels, uint8 (n, H, W, 3), RGB; or files, which are read under the image policy of the model.

        Raises
        ------
        DataError
            An image cannot be used.
        """
        labels: NDArray[Any] = self.classes_[self._outputs_of(images).y_pred]
        return labels

    def predict_proba(self, images: Images) -> NDArray[np.float64]:
        """Return the probability of each class, (n, C), at the class shares of the training images; see `predict`."""
        probabilities = self._outputs_of(images).probabilities
        return probabilities if probabilities.ndim == 2 else np.column_stack((1 - probabilities, probabilities))

    def decision_function(self, images: Images) -> NDArray[np.float64]:
        """Return the stacked logits less the threshold, (n,), or plus the offsets, (n, C); see `predict`."""
        logits, cut = self._outputs_of(images).stacked_logits, np.array(self.facts.cut)
        return np.asarray(logits - cut if logits.ndim == 1 else logits + cut)

    def _outputs_of(self, images: Images) -> Outputs:
        if isinstance(images, np.ndarray) and images.dtype.kind not in "OU":
            return self.outputs(images)
        with tempfile.TemporaryDirectory(prefix="thera-") as store:
            if isinstance(images, str | os.PathLike):
                classes = self.facts.class_count
                source = open_source(Path(images), find_labels=False, n_classes=classes)
            else:
                source = source_from_paths(list(images))
            return self.outputs(self.load(source, Path(store)).pixels)
