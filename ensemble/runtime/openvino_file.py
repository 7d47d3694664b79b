"""An exported model in the form of OpenVINO: NAME.xml, the graph, and NAME.bin, its weights.

The last line of NAME.xml is a comment with the SHA-256 of all lines before it and of NAME.bin. The facts of the model
are in its section `rt_info`. OpenVINO reads both files as any others of its form.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble.errors import ArtifactError, TheraError, out_of_memory, printable
from ensemble.machine import available_cores
from ensemble.runtime.classifier import OUTPUTS, Graph
from ensemble.runtime.facts import EXPORT_AGAIN, ModelFacts, facts_text
from ensemble.runtime.onnx_file import FACTS_KEY, HASH_KEY
from ensemble.runtime.outputs import Outputs

SEAL = f"<!-- {HASH_KEY} "
"""The beginning of the last line of NAME.xml."""


class OpenVinoGraph(Graph):
    """A graph that OpenVINO converts and computes on the CPU, in float32 where the graph is in float64.

    Parameters
    ----------
    data : bytes
        A serialised `onnx.ModelProto`.
    where : str
        The file, for messages.

    Raises
    ------
    TheraError
        OpenVINO cannot convert it.
    """

    name = "the model in the form of OpenVINO"
    remedy = "export without --openvino"

    def __init__(self, data: bytes, where: str) -> None:
        import openvino

        self.where = where
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": len(available_cores())}
        core = openvino.Core()
        try:
            self._model = core.read_model(model=data)
            self._compiled = core.compile_model(self._model, "CPU", settings)
        except Exception as error:  # its classes of errors are not public
            raise self._failed(error, "cannot be converted to") from None

    def batch(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return what the graph says of one batch (b, H, W, 3); see `Graph.batch`."""
        try:
            results = self._compiled(pixels)
        except Exception as error:
            raise self._failed(error, "cannot be computed by") from None
        label, *others = (np.array(results[name]) for name in OUTPUTS)
        probability, logit, member_logits = (each.astype(np.float64) for each in others)
        if not np.isfinite(logit).all():
            raise TheraError(self.where, f"{np.count_nonzero(~np.isfinite(logit))} logits are not finite")
        return Outputs(label.astype(np.int8), probability, logit, member_logits)

    def files(self, facts: ModelFacts) -> tuple[bytes, bytes]:
        """Return NAME.xml and NAME.bin; weights keep the precision that they have in the graph."""
        import openvino

        self._model.set_rt_info(facts_text(facts), ["framework", FACTS_KEY])
        for number, node in enumerate(self._model.get_ordered_ops()):
            if node.get_type_name() != "Parameter":  # OpenVINO numbers the nodes of all models of a process
                node.set_friendly_name(f"node_{number}")
        with tempfile.TemporaryDirectory(prefix="thera-") as folder:
            path = Path(folder) / "model.xml"
            openvino.save_model(self._model, path, compress_to_fp16=False)
            xml, weights = path.read_bytes(), path.with_suffix(".bin").read_bytes()
        body = xml if xml.endswith(b"\n") else xml + b"\n"
        return body + _seal(body, weights), weights

    def _failed(self, error: Exception, problem: str) -> TheraError:
        import openvino

        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = printable(lines[-1].strip()[:200])
        return out_of_memory(error, self.where) or TheraError(
            self.where, f"{problem} OpenVINO {openvino.__version__} ({reason})", self.remedy
        )


def check_openvino(path: Path) -> None:
    """Check NAME.xml and NAME.bin beside it against their hash. OpenVINO is not needed.

    Raises
    ------
    ArtifactError
        One of them is missing, damaged or changed, or thera did not write them.
    """
    where, weights = printable(path), path.with_suffix(".bin")
    try:
        xml, data = path.read_bytes(), weights.read_bytes()
    except OSError as error:
        raise ArtifactError(printable(error.filename), f"cannot be read ({error.strerror})", EXPORT_AGAIN) from None
    body, mark, _ = xml.rpartition(SEAL.encode())
    if not mark:
        raise ArtifactError(where, "is cut short, or thera did not write it", EXPORT_AGAIN)
    if xml != body + _seal(body, data):
        problem = f"or {printable(weights.name)} was changed after thera wrote them (their hash differs)"
        raise ArtifactError(where, problem, EXPORT_AGAIN)


def _seal(body: bytes, weights: bytes) -> bytes:
    digest = hashlib.sha256(body)
    digest.update(weights)
    return f"{SEAL}{digest.hexdigest()} -->\n".encode()
