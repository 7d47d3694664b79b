"""The peers of prediction: torch itself, ONNX Runtime and OpenVINO, each over timm's loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import timm
import torch
from peers import Peer, evaluation_loader, require
from torch import nn

Forward = Callable[[torch.Tensor], torch.Tensor]
"""x (b, 3, H, W) float32, normalised -> logits (b,)."""


def in_torch(model: nn.Module, amp_dtype: torch.dtype | None = None, channels_last: bool = False) -> Forward:
    """Return a timm model as timm's inference.py runs it.

    The model is changed: its weights are laid out as `channels_last` says.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.eval().to(memory_format=layout)

    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, amp_dtype, enabled=amp_dtype is not None):
            logits: torch.Tensor = model(x.contiguous(memory_format=layout))
        return logits.squeeze(1)

    return forward


def in_onnxruntime(model: nn.Module, size: int, threads: int) -> Forward:
    """Return a timm model exported by torch.onnx's dynamo exporter and run by ONNX Runtime at its full optimisation.

    Raises
    ------
    ResourceError
        onnx, onnxscript or onnxruntime is not installed.
    """
    require("onnxruntime_predict")
    import onnxruntime

    program = torch.onnx.export(
        model.eval(),
        (torch.zeros(2, 3, size, size),),
        input_names=["x"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda x: torch.from_numpy(session.run(None, {"x": x.contiguous().numpy()})[0]).squeeze(1)


def in_openvino(model: nn.Module, size: int, threads: int, precision: str) -> Forward:
    """Return a timm model converted by OpenVINO, any batch size.

    Parameters
    ----------
    precision : {"f32", "bf16"}
        The inference precision hint. It is always given: where the CPU has bf16, OpenVINO's own default is bf16.

    Raises
    ------
    ResourceError
        openvino is not installed.
    """
    require("openvino_predict")
    import openvino

    converted = openvino.convert_model(model.eval(), example_input=torch.zeros(2, 3, size, size))
    converted.reshape([-1, 3, size, size])
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(converted, "CPU", options).create_infer_request()

    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(request.infer([x.contiguous().numpy()])[0].copy()).squeeze(1)

    return forward


# --- over files -------------------------------------------------------------------------------------------------------


class Prediction(Peer):
    """A pass over files: each batch through every model, as it is and mirrored.

    Parameters
    ----------
    loader : iterable
        Batches x (b, 3, H, W) float32, normalised, with anything.
    forwards : sequence of callable
        The fold models.
    threads : int
        Of torch.
    """

    def __init__(self, loader: Any, forwards: Sequence[Forward], threads: int) -> None:
        super().__init__(loader, threads)
        self._forwards = forwards
        self.logits = np.empty((0, len(forwards), 2))
        """float64 array (n, models, 2) of the last run: identity, mirrored."""

    @torch.inference_mode()
    def run(self) -> int:
        """Predict all files; return how many there are, not times models and views."""
        torch.set_num_threads(self._threads)
        batches = []
        for x, _ in self._loader:
            views = (x, x.flip(3))
            batches.append([[forward(view) for view in views] for forward in self._forwards])
        logits = [torch.stack([torch.stack(model, 1) for model in batch], 1).double().cpu() for batch in batches]
        self.logits = torch.cat(logits).numpy()
        return len(self.logits)


def fold_models(arch: str, states: Sequence[Mapping[str, torch.Tensor]]) -> list[nn.Module]:
    """Return timm models with one logit, in evaluation mode, one a state dict."""
    models = []
    for state in states:
        model: nn.Module = timm.create_model(arch, num_classes=1)
        model.load_state_dict(state)
        models.append(model.eval())
    return models


def timm_predict(
    models: Sequence[nn.Module],
    paths: Sequence[str],
    size: int,
    *,
    batch: int = 256,
    workers: int = 0,
    threads: int,
    device: str = "cpu",
    amp_dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> Prediction:
    """Return eager inference, by default in float32, over timm's own loader.

    The flags are those of `peers.timm_loop`.
    """
    loader = evaluation_loader(models[0], paths, size, batch, workers, device)
    forwards = [in_torch(model.to(device), amp_dtype, channels_last) for model in models]
    return Prediction(loader, forwards, threads)


def onnxruntime_predict(
    models: Sequence[nn.Module], paths: Sequence[str], size: int, *, batch: int = 256, threads: int, workers: int = 0
) -> Prediction:
    """Return inference of the same models in ONNX Runtime, float32, over timm's loader."""
    loader = evaluation_loader(models[0], paths, size, batch, workers, "cpu")
    return Prediction(loader, [in_onnxruntime(model, size, threads) for model in models], threads)


def openvino_predict(
    models: Sequence[nn.Module],
    paths: Sequence[str],
    size: int,
    *,
    batch: int = 256,
    workers: int = 0,
    threads: int,
    precision: str = "f32",
) -> Prediction:
    """Return inference of the same models in OpenVINO, `precision` f32 or bf16, over timm's loader."""
    loader = evaluation_loader(models[0], paths, size, batch, workers, "cpu")
    return Prediction(loader, [in_openvino(model, size, threads, precision) for model in models], threads)
