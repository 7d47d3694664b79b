"""The file of an exported model: sealed and opened again; damaged, foreign, newer and hostile files are refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ensemble.cli import main
from ensemble.errors import ArtifactError
from ensemble.runtime import classifier
from ensemble.runtime.classifier import OnnxClassifier
from ensemble.runtime.onnx_file import FACTS_KEY, HASH_KEY, SCHEMA_KEY, _entry, _metadata, checked, sealed
from ensemble.runtime.self_test import drawn_images

onnx = pytest.importorskip("onnx", reason="the extra thera[export] is not installed")
pytest.importorskip("onnxruntime", reason="the extra thera[runtime] is not installed")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from small_onnx import FACTS, SIZE, small_model  # noqa: E402


@pytest.fixture(scope="module")
def data() -> bytes:
    return sealed(small_model().SerializeToString(deterministic=True), FACTS)


def resealed(change: Callable[[onnx.ModelProto], None]) -> bytes:
    """Return the file of a changed graph with the hash that belongs to it, as an attacker can make it."""
    model = small_model()
    change(model)
    return sealed(model.SerializeToString(deterministic=True), FACTS)


@pytest.fixture
def no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where onnxruntime would see the bytes."""

    def refuse(*_: object) -> None:
        raise AssertionError("onnxruntime was given a file that must be refused before")

    monkeypatch.setattr(classifier, "Graph", refuse)


def test_a_sealed_file_is_an_onnx_model_with_the_facts(data: bytes, tmp_path: Path) -> None:
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert entries == _metadata(data) and list(entries) == [SCHEMA_KEY, FACTS_KEY, HASH_KEY]
    assert checked(data, "m").facts == FACTS
    (tmp_path / "m.onnx").write_bytes(data)
    pixels = np.stack([np.full((SIZE, SIZE, 3), value, np.uint8) for value in (0, 127, 128, 255)])
    assert OnnxClassifier(tmp_path / "m.onnx").predict(pixels).tolist() == ["bell é", "bell é", "plain", "plain"]


@pytest.mark.usefixtures("no_runtime")
def test_a_file_cut_short_anywhere_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for length in {*range(0, 64), *range(0, len(data), 37), *range(len(data) - 90, len(data))}:
        path.write_bytes(data[:length])
        with pytest.raises(ArtifactError) as error:
            OnnxClassifier(path)
        assert "\n" not in str(error.value) and error.value.status == 4


@pytest.mark.usefixtures("no_runtime")
def test_a_flipped_bit_anywhere_is_refused(data: bytes, tmp_path: Path) -> None:
    path, rng = tmp_path / "m.onnx", np.random.default_rng(0)
    places = [*range(0, len(data), 23), *range(len(data) - 85, len(data))]
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(ArtifactError):
            OnnxClassifier(path)


@pytest.mark.usefixtures("no_runtime")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no model that thera exported"),
        (b"PK\x03\x04" + bytes(200), "is no model that thera exported"),
        (b"\x80\x04" + b"c" * 300, "is no model that thera exported"),
        (np.random.default_rng(1).bytes(5000), "is no model that thera exported"),
    ],
)
def test_another_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        OnnxClassifier(tmp_path / "m.onnx")


@pytest.mark.usefixtures("no_runtime")
def test_a_model_of_another_program_is_refused(tmp_path: Path) -> None:
    onnx.save(small_model(), tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match="is no model that thera exported"):
        OnnxClassifier(tmp_path / "m.onnx")


@pytest.mark.usefixtures("no_runtime")
def test_a_newer_schema_is_refused_whatever_else_it_has(tmp_path: Path) -> None:
    body = small_model().SerializeToString() + _entry(SCHEMA_KEY, "2") + _entry("thera.new", "x")
    for tail in (_entry(HASH_KEY, hashlib.sha256(body).hexdigest()), _entry("thera.signature", "y")):
        (tmp_path / "m.onnx").write_bytes(body + tail)
        with pytest.raises(ArtifactError, match="has schema 2; this thera reads 1; use the version that wrote it"):
            OnnxClassifier(tmp_path / "m.onnx")


def _custom_node(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Run", ["x"], ["y"], domain="evil.ops"))


def _custom_opset(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[1]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"


def _external_in_an_attribute(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(4), "t")
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(helper.make_node("Constant", [], ["y"], value=tensor))


def _within_a_branch(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([helper.make_node("Run", [], ["y"], domain="evil.ops")], "b", [], [])
    model.graph.node.append(helper.make_node("If", ["is_one"], ["z"], then_branch=branch, else_branch=branch))


def _function(model: onnx.ModelProto) -> None:
    opset = [helper.make_opsetid("", 20)]
    model.functions.append(
        helper.make_function("f", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opset)
    )


def _nested(model: onnx.ModelProto) -> None:
    graph = helper.make_graph([], "g", [], [])
    for _ in range(12):
        graph = helper.make_graph([helper.make_node("If", ["c"], ["d"], then_branch=graph)], "g", [], [])
    model.graph.node.append(helper.make_node("If", ["is_one"], ["z"], then_branch=graph, else_branch=graph))


def _sparse(model: onnx.ModelProto) -> None:
    values, indices = numpy_helper.from_array(np.ones(1), "v"), numpy_helper.from_array(np.zeros(1, np.int64), "i")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))


HOSTILE = {
    "a custom operator": (_custom_node, "uses operators of evil.ops"),
    "a custom set of operators": (_custom_opset, "uses operators of com.microsoft"),
    "a custom operator in a branch": (_within_a_branch, "uses operators of evil.ops"),
    "weights outside the file": (_external, "has weights outside the file"),
    "weights outside the file in an attribute": (_external_in_an_attribute, "has weights outside the file"),
    "a function": (_function, "holds functions"),
    "graphs in graphs": (_nested, "nested too deeply"),
    "sparse tensors": (_sparse, "holds sparse tensors"),
}


@pytest.mark.usefixtures("no_runtime")
@pytest.mark.parametrize("name", HOSTILE)
def test_what_could_execute_or_read_other_files_is_refused_with_the_right_hash_too(name: str, tmp_path: Path) -> None:
    change, message = HOSTILE[name]
    (tmp_path / "m.onnx").write_bytes(resealed(change))
    with pytest.raises(ArtifactError, match=message):
        OnnxClassifier(tmp_path / "m.onnx")


@pytest.mark.usefixtures("no_runtime")
def test_facts_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    body = small_model().SerializeToString()
    for facts in (
        replace(FACTS, class_count=3),
        replace(FACTS, cut=(0.5, 0.5)),
        replace(FACTS, members=()),
        replace(FACTS, exif="sometimes"),
    ):
        (tmp_path / "m.onnx").write_bytes(sealed(body, facts))
        with pytest.raises(ArtifactError, match="contradict each other"):
            OnnxClassifier(tmp_path / "m.onnx")
    for text in ("{}", "[]", "{", '{"cut": "high"}'):
        whole = body + _entry(SCHEMA_KEY, "1") + _entry(FACTS_KEY, text)
        (tmp_path / "m.onnx").write_bytes(whole + _entry(HASH_KEY, hashlib.sha256(whole).hexdigest()))
        with pytest.raises(ArtifactError, match="states facts that are damaged"):
            OnnxClassifier(tmp_path / "m.onnx")


def test_a_graph_that_onnxruntime_refuses_is_one_line(tmp_path: Path) -> None:
    def unknown(model: onnx.ModelProto) -> None:
        model.graph.node[2].op_type = "Divide"

    def other_output(model: onnx.ModelProto) -> None:
        del model.graph.output[3]

    for change, message in (
        (unknown, "cannot be loaded by onnxruntime"),
        (other_output, "has other inputs and outputs"),
    ):
        (tmp_path / "m.onnx").write_bytes(resealed(change))
        with pytest.raises(ArtifactError, match=message) as error:
            OnnxClassifier(tmp_path / "m.onnx")
        assert "\n" not in str(error.value)


def test_the_command_says_one_line_and_exits_with_4(
    data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.onnx").write_bytes(data[:-1] + b"g")
    with pytest.raises(SystemExit) as exit_status:
        main(["predict", "--model", str(tmp_path / "m.onnx"), "images"])
    assert exit_status.value.code == 4
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1
    assert "was changed after thera wrote it (its hash differs); export it again: thera export RUN" in shown


def test_drawn_images_differ_and_use_the_whole_range() -> None:
    drawn = drawn_images((64, 64))
    assert drawn.shape == (2, 64, 64, 3) and drawn.min() == 0 and drawn.max() > 250
    assert drawn.std() > 20 and not np.array_equal(drawn[0], drawn[1])
