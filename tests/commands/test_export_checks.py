"""Exported models: `thera verify` covers them, prediction checks the shares of its labels, OpenVINO gives the same."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import fails, listing, write_tiny

from ensemble import (
    ComputeConfig,
    DataConfig,
    DecisionConfig,
    ExportConfig,
    MemberConfig,
    PredictConfig,
    export,
    fit_stacker,
    train_members,
)
from ensemble.commands import export as command
from ensemble.commands.predict_model import predict_with_model
from ensemble.commands.verify import verify
from ensemble.errors import ArtifactError, ConfigError, ResourceError, TheraError
from ensemble.runs import files

pytest.importorskip("onnx", reason="the extra thera[export] is not installed")
pytest.importorskip("onnxscript", reason="the extra thera[export] is not installed")
pytest.importorskip("onnxruntime", reason="the extra thera[runtime] is not installed")

from ensemble.runtime.onnx_file import opened, sealed
from ensemble.runtime.openvino_file import check_openvino

# Networks of a few updates differ from fold to fold.
pytestmark = pytest.mark.filterwarnings("ignore:the fold models differ:UserWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of one small network with a decision and an exported model, and new images beside it."""
    folder = tmp_path_factory.mktemp("exported")
    write_tiny(folder / "train", 48)
    write_tiny(folder / "new", 60, seed=1)
    data = DataConfig(images=folder / "train/img", labels=folder / "train/labels.txt")
    member = MemberConfig(arch="small_cnn", pretrained=False, epochs=6, batch_size=8, lr=0.01)
    train_members(folder / "run", [member], data, 2, 0, ComputeConfig(device="cpu", jobs=1))
    fit_stacker(folder / "run", DecisionConfig())
    export(folder / "run")
    return folder / "run"


# --- verify -----------------------------------------------------------------------------------------------------------


def test_verify_covers_exported_models(run: Path, tmp_path: Path) -> None:
    copy, said = tmp_path / "run", list[str]()
    shutil.copytree(run, copy)
    assert "export/run.onnx" in verify(copy, said.append).checked and said == []
    model = copy / "export/run.onnx"
    whole = model.read_bytes()
    model.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(ArtifactError, match=r"1 of \d+ files are damaged or missing"):
        verify(copy, said.append)
    assert "run.onnx: was changed after thera wrote it" in said[-1] and said[-1].startswith("damaged: ")
    model.write_bytes(whole)
    facts = json.loads((copy / "export/run.json").read_text())
    files.write_json(copy / "export/run.json", facts | {"cut": [0.25]})
    with pytest.raises(ArtifactError):
        verify(copy, said.append)
    assert "run.json: states other facts than run.onnx" in said[-1]
    (copy / "export/run.json").unlink()
    fit_stacker(copy, DecisionConfig(objective="cost:2,1"))
    verify(copy, said.append)
    assert "run.onnx was exported from another decision than the run has now" in said[-1]


# --- the shares of the labels -----------------------------------------------------------------------------------------


def labelled(run: Path, out: Path, images: Path, model: Path | None = None) -> tuple[list[str], int | None]:
    said = list[str]()
    config = PredictConfig(images=(images,), out=out / "label_val.txt")
    result = predict_with_model(model or run / "export/run.onnx", config, say=said.append)
    return [line for line in said if line.startswith("warning: ")], result.unusual


def only(run: Path, folder: Path, label: str) -> Path:
    """Copy the new images that the model gives this label, numbered anew."""
    folder.mkdir()
    out = folder.parent / "of-all"
    labelled(run, out, run.parent / "new/img")
    labels = (out / "label_val.txt").read_text().split()
    chosen = [row for row, each in enumerate(labels, 1) if each == label]
    for number, row in enumerate(chosen, 1):
        shutil.copy(run.parent / f"new/img/{row:03d}.png", folder / f"{number:03d}.png")
    shutil.rmtree(out)
    return folder


def test_usual_shares_are_no_warning_and_others_are(run: Path, tmp_path: Path) -> None:
    facts = opened(run / "export/run.onnx").facts
    assert sum(facts.usual_shares) == pytest.approx(1) and 0 < facts.usual_shares[0] < 0.6
    assert labelled(run, tmp_path / "a", run.parent / "new/img") == ([], None)
    zeros = only(run, tmp_path / "zeros", "0")
    assert len(list(zeros.iterdir())) > 8
    (warning,), unusual = labelled(run, tmp_path / "b", zeros)
    usual = f"{facts.usual_shares[0]:.4f}"
    assert warning.startswith(f"warning: zeros: SHIFT: 1.0000 of the labels are 0, where {usual} are usual") or (
        warning.startswith(f"warning: zeros: SHIFT: 0.0000 of the labels are 1, where {1 - float(usual):.4f} are usual")
    )
    assert unusual in (0, 1)


def test_a_model_without_usual_shares_is_not_checked(run: Path, tmp_path: Path) -> None:
    data = (run / "export/run.onnx").read_bytes()
    body = data[: data.rindex(b"\x72", 0, data.index(b"thera.schema"))]
    former = replace(opened(run / "export/run.onnx").facts, usual_shares=(), usual_share_errors=())
    (tmp_path / "former.onnx").write_bytes(sealed(body, former))
    zeros = only(run, tmp_path / "zeros", "0")
    content = json.loads((run / "export/run.json").read_text())
    files.write_json(tmp_path / "former.json", {k: v for k, v in content.items() if not k.startswith("usual_share")})
    assert labelled(run, tmp_path / "a", zeros, tmp_path / "former.onnx") == ([], None)
    wrong = replace(former, usual_shares=(0.5, 0.5))
    (tmp_path / "wrong.onnx").write_bytes(sealed(body, wrong))
    with pytest.raises(ArtifactError, match="states facts that contradict each other"):
        opened(tmp_path / "wrong.onnx")


# --- OpenVINO ---------------------------------------------------------------------------------------------------------


def test_without_openvino_it_is_refused_in_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = listing(run)
    monkeypatch.setattr("ensemble.extras.find_spec", lambda name: None if name == "openvino" else object())
    line = fails(capsys, 6, "export", run, "--openvino")
    assert line == "error: --openvino: needs the package openvino; pip install 'thera[peers]'"
    assert listing(run) == before
    with pytest.raises(ResourceError):
        export(run, ExportConfig(openvino=True))


def test_openvino_gives_the_labels_of_the_run(run: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="the extra thera[peers] is not installed")
    out = tmp_path / "m.onnx"
    result = export(run, ExportConfig(out=out, openvino=True))
    written = listing(tmp_path)
    assert result.openvino is not None and result.openvino.xml == tmp_path / "m.xml"
    assert result.openvino.checked.images == result.facts.checked.images
    assert result.openvino.checked.largest_difference < 1e-3
    compiled = openvino.Core().compile_model(tmp_path / "m.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    from ensemble.runtime.classifier import OnnxClassifier

    ours = OnnxClassifier(out).outputs(images)
    theirs = compiled(images)
    assert theirs["label"].tolist() == ours.y_pred.tolist()
    np.testing.assert_allclose(theirs["logit"], ours.stacked_logits, atol=1e-4)
    check_openvino(tmp_path / "m.xml")
    again = export(run, ExportConfig(out=out, openvino=True))
    assert again == result and listing(tmp_path) == written
    said = list[str]()
    export(run, ExportConfig(out=out), said.append)
    assert f"note: {tmp_path}/m.xml is of an earlier export; --openvino writes it anew" in said
    (tmp_path / "m.bin").write_bytes(b"0" + (tmp_path / "m.bin").read_bytes()[1:])
    with pytest.raises(ArtifactError, match=r"m\.xml: or m\.bin was changed after thera wrote them"):
        check_openvino(tmp_path / "m.xml")
    (tmp_path / "m.bin").unlink()
    with pytest.raises(ArtifactError, match=r"m\.bin: cannot be read"):
        check_openvino(tmp_path / "m.xml")
    (tmp_path / "m.bin").write_bytes(b"numbers")
    (tmp_path / "m.xml").write_text("<net/>\n")
    with pytest.raises(ArtifactError, match=r"m\.xml: is cut short, or thera did not write it"):
        check_openvino(tmp_path / "m.xml")
    with pytest.raises(ConfigError, match=r"m\.bin is there already"):
        export(run, ExportConfig(out=out, openvino=True))


def test_half_precision_halves_the_weights_of_openvino_too(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra thera[peers] is not installed")
    sizes = []
    for half in (False, True):
        export(run, ExportConfig(out=tmp_path / "m.onnx", half=half, openvino=True))
        sizes.append((tmp_path / "m.bin").stat().st_size)
    assert sizes[1] < 0.55 * sizes[0]


def test_another_result_of_openvino_is_not_written(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="the extra thera[peers] is not installed")
    from ensemble.runtime import openvino_file
    from ensemble.runtime.outputs import Outputs

    real = openvino_file.OpenVinoGraph.batch

    def other(self: openvino_file.OpenVinoGraph, pixels: np.ndarray) -> Outputs:
        outputs = real(self, pixels)
        return replace(outputs, y_pred=1 - outputs.y_pred)

    monkeypatch.setattr(openvino_file.OpenVinoGraph, "batch", other)
    with pytest.raises(TheraError, match=r"the model in the form of OpenVINO: gives .* of .* images another label"):
        export(run, ExportConfig(out=tmp_path / "m.onnx", openvino=True))
    assert listing(tmp_path) == {}


def test_verify_covers_the_files_of_openvino(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra thera[peers] is not installed")
    copy, said = tmp_path / "run", list[str]()
    shutil.copytree(run, copy)
    export(copy, ExportConfig(openvino=True))
    assert "export/run.xml" in verify(copy, said.append).checked
    (copy / "export/run.bin").unlink()
    with pytest.raises(ArtifactError):
        verify(copy, said.append)
    assert "run.bin: cannot be read" in said[-1]
    assert command.CHECKED_IMAGES == 1000
