"""Composes the graph of a whole decision: preprocessing, members, fold models, views, stacker and threshold.

Every step after the networks is that of `decision/`, in float64 and in the same order, so that equal logits give equal
labels: logits are rounded to `LOGIT_DECIMALS` decimals, averaged over the views, then over the fold models, rounded
again, stacked member by member, and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from ensemble.errors import ResourceError
from ensemble.members.backbones import Backbone
from ensemble.members.onnx_networks import LOGITS, OPSET, PIXELS, network_graph, quiet, with_weights
from ensemble.runs.files import LOGIT_DECIMALS

IR_VERSION = 10
"""The version of the file format: that of onnx 1.16, which onnxruntime reads since version 1.18 (May 2024)."""

LEAST_HALVED = 128
"""Tensors with fewer numbers stay in float32: they are scales and biases, and take hardly any room."""

MAX_WEIGHT_BYTES = 2**31 - 2**24
"""The most bytes of weights: a file of protocol buffers ends below 2 GiB, and the graph itself takes some."""


@dataclass(frozen=True)
class ExportedMember:
    """A member of the stack.

    Attributes
    ----------
    name : str
    network : Backbone
        On the CPU; its weights are replaced.
    weights : sequence of k callables
        Each returns the state dict of a fold model.
    weight : float
        Of its logits in the stack.
    """

    name: str
    network: Backbone
    weights: Sequence[Callable[[], Mapping[str, torch.Tensor]]]
    weight: float


class _Builder:
    """Collects nodes and constants; each method returns the name of the value that it adds."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[onnx.TensorProto] = []

    def constant(self, value: np.ndarray) -> str:
        name = f"thera.constant.{len(self.initialisers)}"
        self.initialisers.append(numpy_helper.from_array(value, name))
        return name

    def scalar(self, value: float) -> str:
        return self.constant(np.array(value, np.float64))

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: object) -> str:
        name = output or f"thera.value.{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], f"thera.node.{len(self.nodes)}", **attributes))
        return name

    def rounded(self, value: str) -> str:
        """Round to `LOGIT_DECIMALS` as `numpy.round` does: scaled, to the nearest even integer, scaled back."""
        scale = self.scalar(10.0**LOGIT_DECIMALS)
        return self.add("Div", self.add("Round", self.add("Mul", value, scale)), scale)

    def mean(self, values: Sequence[str], axis_is_last: bool) -> str:
        """Return the mean, summed in numpy's order: by eights where the values lie side by side in memory."""
        if len(values) >= 8 and axis_is_last and len(values) <= 128:
            sums, end = list(values[:8]), len(values) - len(values) % 8
            for start in range(8, end, 8):
                sums = [self.add("Add", *pair) for pair in zip(sums, values[start : start + 8], strict=True)]
            while len(sums) > 1:
                sums = [self.add("Add", *pair) for pair in zip(sums[::2], sums[1::2], strict=True)]
            total, rest = sums[0], values[end:]
        else:
            total, rest = values[0], values[1:]
        for value in rest:
            total = self.add("Add", total, value)
        return total if len(values) == 1 else self.add("Div", total, self.scalar(float(len(values))))


def decision_graph(
    members: Sequence[ExportedMember],
    size: tuple[int, int],
    views: Sequence[str],
    classes: int,
    bias: Sequence[float],
    cut: Sequence[float],
    half: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> bytes:
    """Return a serialised `onnx.ModelProto` of a whole decision, without metadata.

    The input `images` is uint8 (n, H, W, 3), RGB. The outputs are `label` int64 (n,), and in float64 `probability` and
    `logit`, (n,), or (n, C) of more than two classes, and `member_logits` (n, m) or (n, m, C).

    Parameters
    ----------
    members : sequence of m ExportedMember
    size : tuple of int
        Height and width of the images.
    views : sequence of str
        Names from `config.VIEWS`.
    classes : int
    bias : sequence of floats
        Of the stack: (1,), or (C,) of more than two classes.
    cut : sequence of floats
        The threshold, (1,), or the offsets, (C,).
    half : bool
        Whether weights are stored in float16. They are converted to float32 when the file is loaded.
    note : callable
        Receives the name of each network once it is exported.

    Raises
    ------
    TheraError
        A network cannot be exported.
    ResourceError
        The weights do not fit into one file.
    """
    _refuse_large(members, half)
    graph, two = _Builder(), classes == 2
    batch = _views(graph, views)
    shape = graph.constant(np.array([len(views), -1] if two else [len(views), -1, classes], np.int64))
    means = []
    for j, member in enumerate(members):
        of_folds = []
        for fold, logits in enumerate(_networks(graph, member, j, size, batch)):
            rounded = graph.rounded(graph.add("Cast", logits, to=TensorProto.DOUBLE))
            by_view = graph.add("Reshape", rounded, shape)
            columns = [
                graph.add("Gather", by_view, graph.constant(np.array(view, np.int64)), axis=0)
                for view in range(len(views))
            ]
            of_folds.append(graph.mean(columns, two))
            note(f"{member.name} fold {fold}")
        means.append(graph.rounded(graph.mean(of_folds, two)))
    stacked = graph.constant(np.array(bias[0] if two else bias, np.float64))
    for member, logits in zip(members, means, strict=True):
        stacked = graph.add("Add", stacked, graph.add("Mul", logits, graph.scalar(member.weight)))
    axis = graph.constant(np.array([1], np.int64))
    columns = [graph.add("Unsqueeze", logits, axis) for logits in means]
    graph.add("Concat", *columns, output="member_logits", axis=1)
    graph.add("Identity", stacked, output="logit")
    if two:
        graph.add("Sigmoid", stacked, output="probability")
        is_one = graph.add("GreaterOrEqual", stacked, graph.scalar(cut[0]))
        graph.add("Cast", is_one, output="label", to=TensorProto.INT64)
    else:
        graph.add("Softmax", stacked, output="probability", axis=1)
        shifted = graph.add("Add", stacked, graph.constant(np.array(cut, np.float64)))
        # the highest class in a tie, as decision.rates.apply_offsets
        graph.add("ArgMax", shifted, output="label", axis=1, keepdims=0, select_last_index=1)
    return _serialised(graph, size, len(members), classes, half)


def _views(graph: _Builder, views: Sequence[str]) -> str:
    """Return the pixels of all views, one view after the other along the first axis."""
    columns = []
    for name in views:
        if name == "hflip":
            start, end, axis, step = (graph.constant(np.array([value], np.int64)) for value in (-1, -(2**62), 2, -1))
            columns.append(graph.add("Slice", "images", start, end, axis, step))
        else:
            columns.append("images")
    return columns[0] if len(columns) == 1 else graph.add("Concat", *columns, axis=0)


def _networks(graph: _Builder, member: ExportedMember, j: int, size: tuple[int, int], batch: str) -> Iterator[str]:
    """Add the fold models of a member, which share one exported graph; yield the names of their logits."""
    where, exported = f"member {member.name}", None
    for fold, read_weights in enumerate(member.weights):
        weights = read_weights()
        if exported is None:
            member.network.load_state_dict(weights)
            exported = network_graph(member.network.eval(), size, where)
        model = onnx.compose.add_prefix(
            with_weights(exported, weights, where), f"m{j}.f{fold}.", rename_inputs=False, rename_outputs=True
        )
        for node in model.graph.node:
            for index, name in enumerate(node.input):
                if name == PIXELS:
                    node.input[index] = batch
        graph.nodes += model.graph.node
        graph.initialisers += model.graph.initializer
        yield f"m{j}.f{fold}.{LOGITS}"


def _refuse_large(members: Sequence[ExportedMember], half: bool) -> None:
    numbers = sum(sum(p.numel() for p in member.network.parameters()) * len(member.weights) for member in members)
    if numbers * (2 if half else 4) > MAX_WEIGHT_BYTES:
        problem = f"has {numbers} weights, and one file holds at most {MAX_WEIGHT_BYTES // (2 if half else 4)}"
        raise ResourceError("the stack", problem, "leave members out of it" if half else "give --half")


def _serialised(graph: _Builder, size: tuple[int, int], m: int, classes: int, half: bool) -> bytes:
    two = classes == 2
    logits: tuple[int | str, ...] = ("n",) if two else ("n", classes)
    outputs = {
        "label": (TensorProto.INT64, ("n",)),
        "probability": (TensorProto.DOUBLE, logits),
        "logit": (TensorProto.DOUBLE, logits),
        "member_logits": (TensorProto.DOUBLE, ("n", m) if two else ("n", m, classes)),
    }
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "thera",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, ("n", *size, 3))],
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
            graph.initialisers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="thera",
    )
    model = _optimised(model)
    if half:
        _halve(model.graph)
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _optimised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and fuse norms into convolutions, which make the graph several times as fast."""
    import onnxscript.optimizer

    with quiet():
        optimised: onnx.ModelProto = onnxscript.optimizer.optimize(model)
    for part in (*optimised.graph.node, *optimised.graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    del optimised.graph.metadata_props[:]
    del optimised.metadata_props[:]
    return optimised


def _halve(graph: onnx.GraphProto) -> None:
    """Store large tensors in float16, each with a conversion that onnxruntime computes once, when it loads the file."""
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or int(np.prod(tensor.dims)) < LEAST_HALVED:
            continue
        name, value = tensor.name, numpy_helper.to_array(tensor)
        largest = float(np.finfo(np.float16).max)
        if np.abs(value).max() > largest:  # it stays as it is
            continue
        tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float16), f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
