"""What runs a trained timm model: torch itself, ONNX Runtime, OpenVINO; and which peers are installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable

import torch
from torch import nn

from ensemble.errors import ResourceError

NEEDS = {
    "plain_loop": ("torch", "timm", "albumentations", "opencv-python-headless"),
    "timm_loop": ("torch", "timm", "torchvision", "pillow"),
    "timm_predict": ("torch", "timm", "torchvision", "pillow"),
    "onnxruntime_predict": ("onnx", "onnxscript", "onnxruntime"),
    "openvino_predict": ("openvino",),
    "dataloader_epoch": ("torch", "pillow", "opencv-python-headless"),
}
"""What to install for each peer."""

Forward = Callable[[torch.Tensor], torch.Tensor]
"""x (b, 3, H, W) float32, normalised -> logits (b,)."""


def installed() -> dict[str, str]:
    """Return the peers that can be had here, each with the versions of what it is made of."""
    found = {}
    for peer, needs in NEEDS.items():
        try:
            found[peer] = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in needs)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


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
    _require("onnxruntime_predict")
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
    _require("openvino_predict")
    import openvino

    converted = openvino.convert_model(model.eval(), example_input=torch.zeros(2, 3, size, size))
    converted.reshape([-1, 3, size, size])
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(converted, "CPU", options).create_infer_request()

    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(request.infer([x.contiguous().numpy()])[0].copy()).squeeze(1)

    return forward


def _require(peer: str) -> None:
    missing = [name for name in NEEDS[peer] if importlib.util.find_spec(name) is None]
    if missing:
        raise ResourceError(f"peer {peer}", f"needs {' and '.join(missing)}", f"pip install {' '.join(missing)}")
