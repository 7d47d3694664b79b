"""`thera export` and `thera predict --model`: the same labels as the run, without torch; what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import hiding
import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from tiny import listing, rewrite_json, write_three, write_tiny

from ensemble import (
    ComputeConfig,
    DataConfig,
    DecisionConfig,
    ExportConfig,
    MemberConfig,
    PredictConfig,
    export,
    fit_stacker,
    predict,
    train_members,
)
from ensemble.cli import main
from ensemble.commands import export as command
from ensemble.commands.fit_stacker import read_decisions
from ensemble.commands.fold_logits import unkept_fold_logits
from ensemble.commands.predict_model import predict_with_model
from ensemble.data.source import open_source
from ensemble.data.store import load_dataset
from ensemble.errors import ArtifactError, ConfigError, DataError, ResourceError, TheraError
from ensemble.predict_config import PredictOptions
from ensemble.progress import silent
from ensemble.reports.render import render
from ensemble.runs import files
from ensemble.runs.run import Run

pytest.importorskip("onnx", reason="the extra thera[export] is not installed")
pytest.importorskip("onnxscript", reason="the extra thera[export] is not installed")
pytest.importorskip("onnxruntime", reason="the extra thera[runtime] is not installed")

from ensemble.members import onnx_graph
from ensemble.runtime.classifier import OnnxClassifier

ROOT = Path(__file__).parents[2]
NEW = 160
"""Images to label."""

FEW = 80
"""Images on which the tests compare onnxruntime with torch."""

COMPUTE = ComputeConfig(device="cpu", jobs=1)


def member(arch: str, name: str, **values: object) -> MemberConfig:
    return MemberConfig.model_validate(
        {"arch": arch, "name": name, "pretrained": False, "epochs": 1, "batch_size": 8, **values}
    )


def trained(folder: Path, members: list[MemberConfig], labels: str = "labels.txt", **data: object) -> Path:
    config = DataConfig.model_validate({"images": folder / "train/img", "labels": folder / "train" / labels, **data})
    train_members(folder / "run", members, config, 2, 0, COMPUTE)
    fit_stacker(folder / "run", DecisionConfig())
    return folder


@pytest.fixture(scope="module", autouse=True)
def _few_checked_images() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "CHECKED_IMAGES", FEW)
        yield


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train two members, one of which resamples its images, label new images with TTA, and export."""
    folder = tmp_path_factory.mktemp("two")
    write_tiny(folder / "train", 40)
    write_tiny(folder / "new", NEW, seed=1)
    for path in (folder / "new/img").iterdir():  # a third is harder, so that some logits lie near the threshold
        if int(path.stem) % 3:
            continue
        noise = np.random.default_rng(int(path.stem)).integers(0, 256, (16, 16, 3))
        mixed = 0.5 * cv2.imread(str(path)) + 0.5 * noise
        cv2.imwrite(str(path), mixed.astype(np.uint8))
    trained(folder, [member("test_resnet", "a"), member("small_cnn", "b", input_size=24)])
    predict(folder / "run", labelling(folder), COMPUTE)
    export(folder / "run")
    return folder


def labelling(folder: Path, **values: object) -> PredictConfig:
    given = {"images": folder / "new/img", "precision": "fp32", "convolutions": "native", **values}
    return PredictConfig.model_validate(given)


def by_model(folder: Path, out: Path, model: Path | None = None, **values: object) -> tuple[bytes, bytes]:
    """Return the label file and the table that a model writes."""
    config = PredictConfig.model_validate({"images": folder / "new/img", "out": out / "label_val.txt", **values})
    result = predict_with_model(model or folder / "run/export/run.onnx", config)
    assert result.out is not None
    return result.out.read_bytes(), result.table.read_bytes()


def test_run_and_model_write_the_same_bytes(two: Path, tmp_path: Path) -> None:
    labels, table = by_model(two, tmp_path)
    assert labels == (two / "run/label_val.txt").read_bytes()
    assert set(labels.split()) == {b"0", b"1"}
    ours = pd.read_csv(tmp_path / "predictions.csv")
    theirs = pd.read_csv(two / "run/predictions/img/predictions.csv")
    assert list(ours.columns) == list(theirs.columns)
    exact = ["id", "label", "vote_a", "vote_b", "majority"]
    pd.testing.assert_frame_equal(ours[exact], theirs[exact])
    logits = ["logit_a", "logit_b"]
    pd.testing.assert_frame_equal(ours[logits], theirs[logits], rtol=0, atol=5e-5)
    assert table.startswith(b"id,logit_a,logit_b,stacked_logit,probability,label,vote_a,vote_b,majority\n")


def test_the_threshold_is_that_of_the_run_s_prediction(two: Path) -> None:
    facts = OnnxClassifier(two / "run/export/run.onnx").facts
    stored = json.loads((two / "run/predictions/img/predictions.json").read_text())
    assert facts.cut == (stored["threshold"],) and facts.corrected_on == "img"
    ends = stored["expectation"]["interval"]
    assert (facts.expected.low, facts.expected.high) == (ends["low"], ends["high"])
    assert facts.averaging_measured is stored["expectation"]["averaging_measured"] is False  # it needs 1,000 images
    assert facts.views == ("identity", "hflip") and facts.folds == 2
    assert facts.checked.images == FEW and facts.checked.largest_difference < 1e-3
    beside = json.loads((two / "run/export/run.json").read_text())
    assert beside["cut"] == list(facts.cut) and beside["members"][0]["name"] == "a"


def test_a_corrected_threshold_is_exported_and_not_that_of_the_decision(two: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(two / "run", run)
    path = run / "predictions/img/predictions.json"
    stored = json.loads(path.read_text())
    stored["expectation"] |= {"correction": "posterior", "averaging_measured": True}
    rewrite_json(path, stored | {"threshold": stored["threshold"] + 0.25})
    deployed = command._deployed(Run(run), Run(run).read(), ExportConfig(), silent)
    assert deployed.cut == (stored["threshold"] + 0.25,)
    facts = command._facts(Run(run), Run(run).read(), deployed, False)
    assert facts.correction == "posterior" and facts.averaging_measured


def test_a_second_export_is_the_same_to_the_byte_and_names_no_path(two: Path, tmp_path: Path) -> None:
    data = (two / "run/export/run.onnx").read_bytes()
    export(two / "run", ExportConfig(out=tmp_path / "again.onnx"))
    assert (tmp_path / "again.onnx").read_bytes() == data
    assert str(ROOT).encode() not in data and b".py" not in data


def test_half_precision_halves_the_file(two: Path, tmp_path: Path) -> None:
    result = export(two / "run", ExportConfig(out=tmp_path / "half.onnx", half=True))
    assert result.facts.half and result.size < 0.55 * (two / "run/export/run.onnx").stat().st_size
    assert by_model(two, tmp_path, result.out)[0] == (two / "run/label_val.txt").read_bytes()


def test_one_fold_model_alone(two: Path, tmp_path: Path) -> None:
    """It has the decision's own threshold, the nested error, and the labels of torch; other folds need no weights."""
    run = Path(shutil.copytree(two / "run", tmp_path / "run"))
    for path in run.glob("members/*/fold-0/weights.safetensors"):
        path.unlink()
    result = export(run, ExportConfig(out=tmp_path / "one.onnx", fold=1))
    facts, decision = result.facts, read_decisions(Run(run)).tta
    assert facts.folds == 1 and facts.cut == (decision.threshold,) and facts.correction == "none"
    assert facts.expected == facts.nested and facts.caveats == ()
    assert [len(member.weights_sha256) for member in facts.members] == [1, 1]
    dataset = load_dataset(open_source(two / "new/img", find_labels=False), tmp_path / "pixels", None)
    options = PredictOptions(precision="fp32", convolutions="native")
    of_fold = unkept_fold_logits(Run(run), ("a", "b"), ("identity", "hflip"), dataset, options, COMPUTE, [1]).mean
    by_model(two, tmp_path, tmp_path / "one.onnx")
    ours = pd.read_csv(tmp_path / "predictions.csv")
    np.testing.assert_allclose(ours[["logit_a", "logit_b"]], of_fold, atol=5e-5)
    y_pred = decision.stacker.apply(of_fold) >= decision.threshold
    assert np.array_equal(ours["label"], y_pred)
    text = "".join(table.text(200) for table in render(result))
    assert "measured of one fold model." in text and "usually better" not in text
    with pytest.raises(ConfigError, match="--fold 2: is no fold of the run, which has 2"):
        export(run, ExportConfig(out=tmp_path / "one.onnx", fold=2))
    with pytest.raises(ValidationError, match="give fold or corrected_on, not both"):
        ExportConfig(fold=1, corrected_on="img")


def test_three_classes(tmp_path: Path) -> None:
    write_three(tmp_path / "train", 48)
    write_three(tmp_path / "new", 60, seed=1)
    trained(tmp_path, [member("test_resnet", "a", epochs=2)], "labels.csv", classes=3)
    predict(tmp_path / "run", labelling(tmp_path), COMPUTE)
    result = export(tmp_path / "run")
    assert result.facts.classes == ("low", "mid", "top") and len(result.facts.cut) == 3
    assert sum(result.facts.usual_shares) == pytest.approx(1) and min(result.facts.usual_share_errors) > 0
    labels, _ = by_model(tmp_path, tmp_path / "out")
    assert labels == (tmp_path / "run/label_val.txt").read_bytes()
    ours = pd.read_csv(tmp_path / "out/predictions.csv")
    theirs = pd.read_csv(tmp_path / "run/predictions/img/predictions.csv")
    assert list(ours.columns) == list(theirs.columns)
    integers = [name for name in ours if ours[name].dtype == np.int64]
    assert {"id", "label", "vote_a", "plurality"} == set(integers)
    pd.testing.assert_frame_equal(ours[integers], theirs[integers])
    logits = [name for name in ours if name.startswith("logit_")]
    pd.testing.assert_frame_equal(ours[logits], theirs[logits], rtol=0, atol=5e-5)
    classifier = OnnxClassifier(result.out)
    paths = sorted((tmp_path / "new/img").iterdir())
    assert (
        classifier.predict(paths).tolist()
        == np.array(["low", "mid", "top"])[np.loadtxt(tmp_path / "run/label_val.txt", dtype=int)].tolist()
    )
    assert classifier.predict_proba(paths[:3]).sum(axis=1) == pytest.approx(1)
    by_offsets = classifier.decision_function(paths).argmax(axis=1)
    assert classifier.classes_[by_offsets].tolist() == classifier.predict(paths).tolist()


def test_a_transformer_at_its_fixed_size(tmp_path: Path) -> None:
    write_tiny(tmp_path / "train", 16)
    trained(tmp_path, [member("test_vit", "v", input_size=160)])
    result = export(tmp_path / "run", ExportConfig(views="plain"))
    assert result.facts.checked.images == 16 and result.facts.members[0].input_size == 160


# --- Python -----------------------------------------------------------------------------------------------------------


def test_paths_and_pixels_get_the_same_labels(two: Path) -> None:
    classifier = OnnxClassifier(two / "run/export/run.onnx")
    paths = sorted((two / "new/img").iterdir(), key=lambda path: int(path.stem))
    pixels = np.stack([cv2.imread(str(path))[..., ::-1] for path in paths])
    expected = np.loadtxt(two / "run/label_val.txt", dtype=int).tolist()
    assert classifier.predict(paths).tolist() == classifier.predict(pixels).tolist() == expected
    assert classifier.predict(two / "new/img").tolist() == expected
    assert (classifier.decision_function(pixels) >= 0).tolist() == [label == 1 for label in expected]
    assert classifier.predict_proba(pixels).shape == (NEW, 2)
    with pytest.raises(DataError, match=r"must be uint8 with shape \(n, 16, 16, 3\)"):
        classifier.predict(pixels[:, :8])


def test_prediction_imports_neither_torch_nor_what_training_needs(two: Path, tmp_path: Path) -> None:
    model, images = str(two / "run/export/run.onnx"), str(two / "new/img")
    done = hiding.run(hiding.COMMAND, "predict", "--model", model, images, "--full", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "label_val.txt").read_bytes() == (two / "run/label_val.txt").read_bytes()
    assert "predict: 160 of 160 images" in done.stderr and "Expected HTER" in done.stdout
    by_model(two, tmp_path / "here")
    assert (tmp_path / "predictions.csv").read_bytes() == (tmp_path / "here/predictions.csv").read_bytes()


def test_the_classifier_needs_none_of_them(two: Path, tmp_path: Path) -> None:
    code = "import sys, thera; print(*thera.OnnxClassifier(sys.argv[1]).predict(sys.argv[2]).tolist())"
    done = hiding.run(code, str(two / "run/export/run.onnx"), str(two / "new/img"), folder=tmp_path)
    assert done.stdout.split() == (two / "run/label_val.txt").read_text().split(), done.stderr


def test_a_member_can_be_removed_without_them(two: Path, tmp_path: Path) -> None:
    shutil.copytree(two / "run", tmp_path / "run")
    done = hiding.run(hiding.COMMAND, "remove-member", "b", "--run", "run", "--yes", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run/members/b").exists()


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["weights", "threshold"])
def test_a_graph_that_decides_otherwise_is_not_written(
    two: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(two / "run/export/run.onnx")
    del model.metadata_props[:]
    threshold = OnnxClassifier(two / "run/export/run.onnx").facts.cut[0]
    changed = 0
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        is_weight = what == "weights" and tensor.name.startswith("m1.f1.") and value.ndim == 4
        if is_weight or (what == "threshold" and value.ndim == 0 and float(value) == threshold):
            other = value * 0.9 if is_weight else value + 1
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(other, value.dtype), tensor.name))
            changed += 1
    assert changed
    monkeypatch.setattr(command, "_graph", lambda *_: model.SerializeToString())
    with pytest.raises(TheraError, match=r"another label than torch.*nothing is written"):
        export(two / "run", ExportConfig(out=tmp_path / "wrong.onnx"))
    assert listing(tmp_path) == {}


def test_means_are_those_of_numpy_to_the_last_bit() -> None:
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    rng = np.random.default_rng(0)
    for k in (1, 2, 5, 8, 10, 17):
        values = rng.normal(size=(50, k))
        for last in (True, False):
            builder = onnx_graph._Builder()
            names = [f"x{i}" for i in range(k)]
            builder.add("Identity", builder.mean(names, last), output="y")
            graph = helper.make_graph(
                builder.nodes,
                "g",
                [helper.make_tensor_value_info(name, TensorProto.DOUBLE, ("n",)) for name in names],
                [helper.make_tensor_value_info("y", TensorProto.DOUBLE, ("n",))],
                builder.initialisers,
            )
            model = ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
            result = model.run(None, {f"x{i}": values[:, i] for i in range(k)})[0]
            # along an axis that is not the last in memory, numpy adds one after the other
            expected = values.mean(axis=1) if last else np.repeat(values[:, :, None], 2, 2).mean(axis=1)[:, 0]
            assert np.array_equal(result, expected), (k, last)


def test_a_missing_extra_is_named(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble.extras.find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ResourceError, match=r"needs the package onnxscript; pip install 'thera\[export\]'"):
        export(two / "run")
    monkeypatch.setattr("ensemble.extras.find_spec", lambda name: None)
    with pytest.raises(ResourceError, match=r"needs the package onnxruntime; pip install 'thera\[runtime\]'"):
        by_model(two, tmp_path)


def test_files_of_others_are_not_replaced(two: Path, tmp_path: Path) -> None:
    other = tmp_path / "model.onnx"
    other.write_bytes(b"another program's")
    with pytest.raises(ConfigError, match=r"model\.onnx is there already, and thera export did not write it"):
        export(two / "run", ExportConfig(out=other))
    with pytest.raises(ConfigError, match=r"must have the suffix \.onnx"):
        export(two / "run", ExportConfig(out=tmp_path / "model.pt"))
    by_model(two, tmp_path / "out")
    before = listing(tmp_path)
    with pytest.raises(ConfigError, match="is there already"):
        by_model(two, tmp_path / "out")
    (tmp_path / "out/label_val.txt").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"predictions\.csv: is there already"):
        by_model(two, tmp_path / "out")
    (tmp_path / "elsewhere").rename(tmp_path / "out/label_val.txt")
    assert listing(tmp_path) == before
    by_model(two, tmp_path / "out", force=True)
    assert listing(tmp_path) == before


def test_plain_prediction_has_its_own_model_checked_on_named_images(two: Path, tmp_path: Path) -> None:
    run, out, said = tmp_path / "run", tmp_path / "a.onnx", list[str]()
    shutil.copytree(two / "run", run)
    shutil.rmtree(run / "pixels")
    with pytest.raises(DataError, match=r"has no decoded images.*--images FOLDER"):
        export(run, ExportConfig(out=out))
    result = export(run, ExportConfig(out=out, images=(two / "new/img",), views="plain"), said.append)
    assert result.facts.views == ("identity",) and result.facts.corrected_on == ""
    assert any("no prediction of the run fits" in line for line in said)
    assert result.facts.checked.images == FEW
    with pytest.raises(ConfigError, match="--tta: is not in this model"):
        by_model(two, tmp_path, out, tta=True)
    (run / "members/b/fold-1/weights.safetensors").unlink()
    with pytest.raises(ArtifactError, match="member b: lacks the weights of fold 1"):
        export(run, ExportConfig(out=tmp_path / "b.onnx"))


def test_a_prediction_that_does_not_fit_is_refused_by_name(two: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.onnx"
    with pytest.raises(ConfigError, match="--corrected-on none: is no folder of the run's predictions"):
        export(two / "run", ExportConfig(out=out, corrected_on="none"))
    with pytest.raises(ConfigError, match="--corrected-on img: averages other views"):
        export(two / "run", ExportConfig(out=out, corrected_on="img", views="plain"))


def test_images_that_cannot_be_used_are_listed(two: Path, tmp_path: Path) -> None:
    images = tmp_path / "new/img"
    images.mkdir(parents=True)
    for path in [two / f"new/img/{row:03d}.png" for row in range(1, 9)]:
        (images / path.name).write_bytes(path.read_bytes())
    (images / "003.png").write_bytes(b"no image")
    expected = (two / "run/label_val.txt").read_text().split()[:8]
    with pytest.raises(DataError, match="1 of 8 images cannot be used"):
        by_model(tmp_path, tmp_path / "out", two / "run/export/run.onnx")
    assert not (tmp_path / "out").exists()
    config = PredictConfig(images=(images,), out=tmp_path / "out/label_val.txt", on_bad="skip")
    result = predict_with_model(two / "run/export/run.onnx", config)
    assert result.out is None and "give --bad-label 0 or 1" in str(result.incomplete)
    assert (tmp_path / "out/bad_images.csv").read_text().startswith("name,reason\n003.png,")
    filled = config.model_copy(update={"bad_label": 1, "force": True})
    result = predict_with_model(two / "run/export/run.onnx", filled)
    assert result.out is not None and result.incomplete is not None
    assert result.out.read_text().split() == [*expected[:2], "1", *expected[3:]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"combine": "vote"}, "--combine: is settled in a model"),
        ({"prior": 0.5}, "--prior: is settled in a model"),
        ({"cascade": 0.9}, "--cascade: is settled in a model"),
        ({"precision": "bf16"}, "--precision: is settled in a model"),
        ({"bad_label": 2}, "--bad-label: must be 0 to 1; got 2"),
    ],
)
def test_options_that_a_model_has_settled(two: Path, tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        by_model(two, tmp_path, **options)


def test_the_command_line(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model, images = str(two / "run/export/run.onnx"), str(two / "new/img")
    assert main(["predict", "--model", model, "--images", images]) in (0, None)
    assert (tmp_path / "label_val.txt").read_bytes() == (two / "run/label_val.txt").read_bytes()
    for arguments, error in (
        (["--model", model, "--run", "r"], "give --run or --model, not both"),
        ([], "give --run or --model"),
        (["--model", "none.onnx"], "none.onnx: is not there; export a run"),
        (["--model", model, "--device", "cuda"], "--device: a model is computed on the CPU"),
    ):
        with pytest.raises(SystemExit) as exit_status:
            main(["predict", images, *arguments])
        assert exit_status.value.code in (2, 4)
        assert error in capsys.readouterr().err


def test_a_facts_file_that_was_tampered_with_is_refused(two: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes((two / "run/export/run.onnx").read_bytes())
    by_model(two, tmp_path / "without", model)
    content = json.loads((two / "run/export/run.json").read_text())
    files.write_json(tmp_path / "m.json", content)
    by_model(two, tmp_path / "with", model)
    files.write_json(tmp_path / "m.json", content | {"cut": [0.5]})
    with pytest.raises(ArtifactError, match=r"m\.json: states other facts than m\.onnx"):
        OnnxClassifier(model)
    (tmp_path / "m.json").write_bytes(b"{")
    with pytest.raises(ArtifactError, match=r"m\.json: is damaged"):
        OnnxClassifier(model)


def test_a_machine_that_computes_other_logits_is_noticed(two: Path, tmp_path: Path) -> None:
    from ensemble.runtime.onnx_file import opened, sealed

    file = opened(two / "run/export/run.onnx")
    entry = file.data.index(b"\x72", len(file.data) - 20_000)
    while not file.data[entry:].startswith(b"\x72") or b"thera.schema" not in file.data[entry : entry + 30]:
        entry = file.data.index(b"\x72", entry + 1)
    other = replace(file.facts, self_test=tuple(value + 1 for value in file.facts.self_test))
    (tmp_path / "m.onnx").write_bytes(sealed(file.data[:entry], other))
    with pytest.raises(ArtifactError, match="gives other logits on this machine"):
        OnnxClassifier(tmp_path / "m.onnx")
