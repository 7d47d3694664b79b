"""Exports a member's network as an ONNX graph, once for all of its fold models: pixels in, logits out, in float32."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from ensemble.errors import TheraError, printable
from ensemble.members.backbones import Backbone

OPSET = 20
"""The version of the ONNX operators: that of onnx 1.15, which onnxruntime reads since version 1.17 (early 2024)."""

PIXELS, LOGITS, NETWORK = "pixels", "logits", "network."
"""The graph's input and output, and what the names of its parameters begin with."""


class _Network(nn.Module):
    """A backbone whose images are resampled by matrices, which every runtime computes alike.

    Antialiased bilinear resampling is linear and acts on rows and columns apart: one matrix for each. torch gives the
    matrices, as what it makes of unit images. The operator `Resize` of ONNX defines its antialiasing otherwise.
    """

    def __init__(self, backbone: Backbone, size: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.classes = backbone, backbone.classes
        self.resampled = size != (backbone.input_size,) * 2
        self.rows: torch.Tensor
        self.columns: torch.Tensor
        for name, side in zip(("rows", "columns"), size, strict=True):
            self.register_buffer(name, _resampling(side, backbone.input_size), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels (n, H, W, 3) uint8 -> logits (n,) float32, or (n, C) for more than two classes."""
        x = pixels.permute(0, 3, 1, 2).float()
        if self.resampled:
            x = self.rows @ x @ self.columns.T
        features = self.network.features((x - self.network.mean) / self.network.std)
        logits = features if self.network.whole else self.network.model.get_classifier()(features)
        return logits.squeeze(1) if self.classes == 2 else logits


def _resampling(side: int, target: int) -> torch.Tensor:
    """Return the matrix (target, side) that resamples a column of pixels as `Backbone` does."""
    unit = torch.eye(side)[None, None]
    return nn.functional.interpolate(unit, (target, side), mode="bilinear", antialias=True)[0, 0]


def network_graph(backbone: Backbone, size: tuple[int, int], where: str) -> onnx.ModelProto:
    """Return a network as an ONNX graph with the weights that it has now; it is not optimised.

    The input `pixels` is uint8 (n, H, W, 3), the output `logits` float32 (n,), or (n, C) of more than two classes. The
    parameters are initialisers, which `with_weights` replaces.

    Parameters
    ----------
    backbone : Backbone
        On the CPU.
    size : tuple of int
        Height and width of the images.
    where : str
        The member, for messages.

    Raises
    ------
    TheraError
        The network has parts that cannot be exported.
    """
    network = _Network(backbone, size).eval()
    batch = torch.zeros((2, *size, 3), dtype=torch.uint8)
    shapes = ({0: torch.export.Dim("n", min=1)},)
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                network,
                (batch,),
                dynamo=True,
                dynamic_shapes=shapes,
                optimize=False,
                opset_version=OPSET,
                input_names=[PIXELS],
                output_names=[LOGITS],
                verbose=False,
            )
    except Exception as error:  # the exporter raises errors of many kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        problem = f"has a network that cannot be exported ({printable(lines[0][:120])})"
        raise TheraError(where, problem, "leave it out: thera fit-stacker --members") from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    _strip(model.graph)
    return model


def with_weights(model: onnx.ModelProto, weights: Mapping[str, torch.Tensor], where: str) -> onnx.ModelProto:
    """Return the graph of a member with the weights of another of its fold models (a state dict).

    Raises
    ------
    TheraError
        The graph holds a value that depends on the weights and is none of them.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    used = 0
    for tensor in result.graph.initializer:
        name = tensor.name.removeprefix(NETWORK)
        if name in weights:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weights[name].numpy()), tensor.name))
            used += 1
    if not used:
        raise TheraError(where, "has a network whose graph holds none of its weights", "leave it out of the stack")
    return result


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's progress, warnings and logs off the screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _strip(graph: onnx.GraphProto) -> None:
    """Remove what the exporter notes about the program: it holds paths of this machine."""
    graph.doc_string = ""
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.doc_string = ""
        del part.metadata_props[:]
    del graph.value_info[:]
    for node in graph.node:
        for attribute in node.attribute:
            attribute.doc_string = ""
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    _strip(inner)
