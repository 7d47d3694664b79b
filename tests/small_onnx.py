"""A small exported model for tests: its logit is the mean of the pixels over 255, its threshold is 0.5."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ensemble.runtime.facts import Checked, Expected, MemberOfModel, ModelFacts
from ensemble.runtime.self_test import drawn_images

SIZE = 8
EXPECTED = Expected("HTER", 0.1, 0.05, 0.15)
FACTS = ModelFacts(
    version="0",
    classes=("bell é", "plain"),
    class_count=2,
    size=(SIZE, SIZE),
    resize=None,
    exif="ignore",
    image_policy=1,
    views=("identity",),
    folds=1,
    members=(MemberOfModel("a", "mean", SIZE, 1.0, (0.5,), ("0" * 64,)),),
    bias=(0.0,),
    cut=(0.5,),
    correction="none",
    corrected_on="",
    objective="hter",
    nested=EXPECTED,
    expected=EXPECTED,
    averaging_measured=False,
    shares=(),
    decision_sha256="0" * 64,
    fingerprint="0" * 64,
    half=False,
    checked=Checked(1, 0.0, 1e-4),
    self_test=tuple((drawn_images((SIZE, SIZE)).mean(axis=(1, 2, 3)) / 255).tolist()),
)


def small_model() -> onnx.ModelProto:
    """Return a graph whose logit is the mean of the pixels over 255."""
    axes = numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes")
    scale = numpy_helper.from_array(np.array(255.0), "scale")
    half = numpy_helper.from_array(np.array(0.5), "half")
    one = numpy_helper.from_array(np.array([1], np.int64), "one")
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.DOUBLE),
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "scale"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
        helper.make_node("Unsqueeze", ["logit", "one"], ["member_logits"]),
        helper.make_node("GreaterOrEqual", ["logit", "half"], ["is_one"]),
        helper.make_node("Cast", ["is_one"], ["label"], to=TensorProto.INT64),
    ]
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ("n",)),
        helper.make_tensor_value_info("probability", TensorProto.DOUBLE, ("n",)),
        helper.make_tensor_value_info("logit", TensorProto.DOUBLE, ("n",)),
        helper.make_tensor_value_info("member_logits", TensorProto.DOUBLE, ("n", 1)),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ("n", SIZE, SIZE, 3))
    graph = helper.make_graph(nodes, "thera", [images], outputs, [axes, scale, half, one])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
