"""`thera report --maps`: by which fold models, on which images, what is missing, what is kept."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import listing, write_three, write_tiny

from ensemble.cli import main
from ensemble.commands.maps import compute_maps, read_attribution
from ensemble.commands.remove_member import remove_member
from ensemble.commands.report import report
from ensemble.commands.train import train_members
from ensemble.commands.training_images import stored_pixels
from ensemble.commands.verify import verify
from ensemble.config import ComputeConfig, DataConfig, MemberConfig
from ensemble.data.source import open_source
from ensemble.data.store import load_dataset
from ensemble.decision.threshold import fit_threshold
from ensemble.errors import ArtifactError, Stopped
from ensemble.members.attribution import squares
from ensemble.members.devices import choose_device
from ensemble.members.inference import FoldModels, NetworkSpec
from ensemble.members.plans import REFERENCE
from ensemble.progress import Bar, silent
from ensemble.report_config import ReportConfig
from ensemble.runs.attribution import MemberMaps
from ensemble.runs.member import MemberFolder
from ensemble.runs.run import Run

MAPS = ReportConfig(maps=True, map_images=5, device="cpu")
COMPUTE = ComputeConfig(device="cpu", jobs=1)


def members(*names: str) -> list[MemberConfig]:
    shared: dict[str, Any] = {"pretrained": False, "epochs": 2, "batch_size": 8, "augment": "none", "ema_decay": 0.5}
    return [MemberConfig(arch="test_resnet", name=name, **shared) for name in names]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with tiny images, and a run on them with the members a and b in three folds."""
    folder = tmp_path_factory.mktemp("trained")
    write_tiny(folder / "tiny", 48)
    data = DataConfig(images=folder / "tiny/img", labels=folder / "tiny/labels.txt")
    train_members(folder / "run", members("a", "b"), data, 3, 0, COMPUTE)
    compute_maps(Run(folder / "run"), Run(folder / "run").members(), MAPS)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    """Return a copy of the run, which has the maps of both members."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return Run(tmp_path / "run")


def maps_of(run: Run, name: str = "a") -> MemberMaps:
    maps = run.attribution(name)
    assert maps is not None
    return maps


def without_maps(run: Run) -> Run:
    shutil.rmtree(run.folder / "attribution")
    content = json.loads((run.folder / "run.json").read_text())
    content["artifacts"] = {name: sha for name, sha in content["artifacts"].items() if "attribution" not in name}
    content.pop("content_sha256")
    (run.folder / "run.json").write_text(json.dumps(content))
    return run


def computed(run: Run, config: ReportConfig = MAPS) -> list[str]:
    said: list[str] = []
    compute_maps(run, run.members(), config, said.append)
    return said


class Oracle:
    """The effects of the squares of one image at a time, by a named fold model."""

    def __init__(self, trained: Path, member: MemberFolder, classes: int = 2) -> None:
        source = open_source(trained / "tiny/img", trained / "tiny/labels.txt", n_classes=classes)
        self.pixels = np.asarray(load_dataset(source, trained / "run/pixels").pixels)
        self.mean = np.round(self.pixels.astype(float).mean(axis=0)).astype(np.uint8)
        self.models = FoldModels(NetworkSpec(members("a")[0], 16, REFERENCE, choose_device("cpu"), classes))
        self.weights = {fold: member.read_weights(fold) for fold in map(int, member.read().folds)}

    def effects(self, row: int, label: int, fold: int) -> np.ndarray:
        images = [self.pixels[row]]
        for down, across in squares(16, 16, 8):
            images.append(self.pixels[row].copy())
            images[-1][down, across] = self.mean[down, across]
        bar = type("Silent", (), {"advance": lambda *_: None})()
        stacked, rows = np.stack(images), np.arange(len(images))
        logits = self.models.predict(self.weights[fold], stacked, rows, ("identity",), bar)[0][:, 0]
        if logits.ndim == 1:
            of_class = logits if label else -logits
        else:
            of_class = logits[:, label] - np.delete(logits, label, axis=1).mean(axis=1)
        return np.asarray(of_class[0] - of_class[1:]).reshape(8, 8)


def within_folds(z: np.ndarray, fold_of: np.ndarray) -> float:
    """Return the standard deviation about the mean of the fold."""
    centred = z.copy()
    for fold in range(fold_of.max() + 1):
        centred[fold_of == fold] -= z[fold_of == fold].mean()
    return float(centred.std())


def test_each_image_is_shown_to_the_fold_model_that_was_not_trained_on_it(trained: Path) -> None:
    run = Run(trained / "run")
    table, maps, oracle = run.read_folds(), maps_of(run), Oracle(trained, run.member("a"))
    assert maps.errors
    for error in maps.errors[:3]:
        row = table.ids.tolist().index(error.id)
        own = oracle.effects(row, error.predicted, int(table.fold_of[row]))
        np.testing.assert_allclose(error.effects, own, atol=2e-5)
        other = oracle.effects(row, error.predicted, int(table.fold_of[row] + 1) % 3)
        assert np.abs(other - own).max() > 1e-4, "the fold models must differ for this test"


def test_the_map_of_a_class_is_the_mean_over_images_that_the_member_assigns_to_it(trained: Path) -> None:
    run = Run(trained / "run")
    everything = ReportConfig(maps=True, map_images=1000, device="cpu")
    copy = Run(trained / "all")
    shutil.copytree(run.folder, copy.folder)
    compute_maps(copy, [copy.member("a")], everything)
    table, maps, oracle = run.read_folds(), maps_of(copy), Oracle(trained, run.member("a"))
    z = run.member("a").oof_logits(table, ("identity", "hflip"))[:, 0]
    right = (z >= fit_threshold(z, table.labels)) == table.labels
    for of_class in maps.classes:
        rows = np.flatnonzero(right & (table.labels == of_class.label))
        assert of_class.images == len(rows)
        each = np.stack([oracle.effects(row, of_class.label, int(table.fold_of[row])) for row in rows.tolist()])
        np.testing.assert_allclose(of_class.effects, each.mean(axis=0), atol=2e-5)
        error = each.std(axis=0, ddof=1) / np.sqrt(len(rows)) if len(rows) > 1 else np.zeros((8, 8))
        np.testing.assert_allclose(of_class.standard_errors, error, atol=2e-5)
    assert maps.scale == pytest.approx(within_folds(z, table.fold_of), rel=1e-5)


def test_errors_are_those_of_all_members_together_the_most_confident_first(trained: Path) -> None:
    run = Run(trained / "run")
    table, margins = run.read_folds(), []
    for name in ("a", "b"):
        z = run.member(name).oof_logits(table, ("identity", "hflip"))[:, 0]
        margins.append(
            np.where(table.labels == 1, 1, -1) * (z - fit_threshold(z, table.labels)) / within_folds(z, table.fold_of)
        )
    margin = np.mean(margins, axis=0)
    order = [row for row in np.argsort(margin, kind="stable").tolist() if margin[row] < 0][:12]
    errors = maps_of(run).errors
    assert [error.id for error in errors] == table.ids[order].tolist()
    assert [error.id for error in maps_of(run, "b").errors] == table.ids[order].tolist()
    assert [(error.label, error.predicted) for error in errors] == [
        (label, 1 - label) for label in table.labels[order].tolist()
    ]


def test_three_classes_have_three_maps(tmp_path: Path) -> None:
    write_three(tmp_path / "tiny", 48)
    data = DataConfig(images=tmp_path / "tiny/img", labels=tmp_path / "tiny/labels.txt", classes=3)
    train_members(tmp_path / "run", members("a"), data, 2, 0, COMPUTE)
    run = Run(tmp_path / "run")
    assert computed(run) == []
    maps, table, oracle = maps_of(run), run.read_folds(), Oracle(tmp_path, run.member("a"), classes=3)
    logits = run.member("a").oof_logits(table, ("identity", "hflip"))[:, 0]
    present = sorted(set(table.labels[logits.argmax(axis=1) == table.labels].tolist()))
    assert [each.label for each in maps.classes] == present
    for error in maps.errors[:2]:
        row = table.ids.tolist().index(error.id)
        assert error.predicted == logits[row].argmax() != error.label == table.labels[row]
        own = oracle.effects(row, error.predicted, int(table.fold_of[row]))
        np.testing.assert_allclose(error.effects, own, atol=2e-5)


# --- the artifact -----------------------------------------------------------------------------------------------------


def test_the_record_holds_numbers_and_is_verified(run: Run) -> None:
    path = run.folder / "attribution/a.json"
    assert path.stat().st_size < 64 * 1024
    assert f"attribution/{path.name}" in run.read().artifacts
    assert {"attribution/a.json", "attribution/b.json"} <= set(verify(run.folder).checked)
    content = json.loads(path.read_text())
    assert content.keys() == {
        *("classes", "content_sha256", "errors", "member", "requested", "scale", "schema", "weights"),
    }
    path.write_text(path.read_text().replace('"requested": 5', '"requested": 6'))
    with pytest.raises(ArtifactError, match="1 of "):
        verify(run.folder)


def test_damaged_maps_are_left_out_of_a_report_and_computed_again(run: Run) -> None:
    path, said = run.folder / "attribution/a.json", list[str]()
    before = path.read_bytes()
    path.write_bytes(before[:-40])
    report(run.folder, said.append)
    (line,) = [line for line in said if "a.json" in line]
    assert line.startswith("warning: ") and line.endswith("run: thera report --maps")
    assert [each.member for each in read_attribution(run, run.members(), run.read_folds(), None).members] == ["b"]
    assert len(computed(run)) == 1
    assert path.read_bytes() == before


def test_maps_of_other_weights_are_no_maps(run: Run) -> None:
    member = run.member("a")
    facts = member.read()
    first = facts.folds["0"]
    member.update(folds=facts.folds | {"0": type(first)(**{**vars(first), "weights_sha256": "0" * 64})})
    assert run.attribution("a") is None and run.attribution("b") is not None


def test_a_removed_member_leaves_no_maps(run: Run) -> None:
    remove_member(run.folder, "a", yes=True)
    assert [path.name for path in (run.folder / "attribution").iterdir()] == ["b.json"]
    verify(run.folder)


def test_the_same_maps_are_not_computed_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble.members.attribution.occlusion", None)
    before = listing(run.folder)
    assert computed(run) == ["note: the maps are there already, computed from the same weights and images"]
    assert listing(run.folder) == before


def test_a_stop_keeps_the_maps_of_the_members_before(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = listing(without_maps(run).folder)
    real, done = Bar.advance, []

    def advance(self: Bar, n: int = 1) -> None:
        real(self, n)
        done.append(n)
        if (run.folder / "attribution/a.json").exists():
            raise Stopped("thera", "stopped by SIGTERM")

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Bar, "advance", advance)
        computed(run)
    assert listing(run.folder).keys() - expected.keys() == {"attribution/a.json"}
    monkeypatch.setattr(Bar, "advance", lambda self, n=1: (real(self, n), done.append(n))[0])
    done.clear()
    assert computed(run) == [] and run.attribution("b") is not None
    images = sum(each.images for each in maps_of(run, "b").classes) + len(maps_of(run, "b").errors)
    assert sum(done) == images * 65, "only what was left"


# --- what is missing --------------------------------------------------------------------------------------------------


def test_without_weights_one_line_says_so(run: Run) -> None:
    without_maps(run)
    for fold in (0, 2):
        (run.folder / f"members/a/fold-{fold}/weights.safetensors").unlink()
    assert computed(run) == ["note: no maps of member a: the weights of folds 0, 2 are missing"]
    assert run.attribution("a") is None and run.attribution("b") is not None


def test_without_images_one_line_says_so(run: Run, trained: Path) -> None:
    without_maps(run)
    shutil.rmtree(run.folder / "pixels")
    content = (run.folder / "run.json").read_text().replace(str(trained), "/nowhere")
    (run.folder / "run.json").write_text(re.sub(r'.*"content_sha256".*\n', "", content))
    (line,) = computed(run)
    assert line.startswith("note: no maps: the decoded images in ") and line.endswith("/nowhere/tiny/img are missing")


def test_images_are_decoded_again_where_they_are_not_kept(run: Run, trained: Path) -> None:
    expected = listing(run.folder / "attribution")
    shutil.rmtree(without_maps(run).folder / "pixels")
    computed(run)
    assert listing(run.folder / "attribution") == expected


def test_other_images_are_refused(run: Run, trained: Path, tmp_path: Path) -> None:
    shutil.rmtree(without_maps(run).folder / "pixels")
    shutil.copytree(trained / "tiny", tmp_path / "tiny")
    (tmp_path / "tiny/img/001.png").write_bytes((tmp_path / "tiny/img/002.png").read_bytes())
    content = (run.folder / "run.json").read_text().replace(str(trained), str(tmp_path))
    (run.folder / "run.json").write_text(re.sub(r'.*"content_sha256".*\n', "", content))
    (line,) = [line for line in computed(run) if line.startswith("note: no maps")]
    assert "1 of the 48 training images are not in" in line


def test_a_wrong_device_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(run.folder), "--maps", "--device", "gpu"])
    assert stopped.value.code == 2
    assert "error: --device: must be auto, cpu, mps, cuda or cuda:N; got gpu" in capsys.readouterr().err


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_report_shows_maps_where_they_are(run: Run) -> None:
    main(["report", str(run.folder)])
    page = (run.folder / "report.html").read_text()
    assert "What the networks look at" in page and "What the members look at in images of label 0" in page
    without_maps(run)
    main(["report", str(run.folder)])
    assert "look at" not in (run.folder / "report.html").read_text()


def test_pictures_are_there_as_long_as_the_decoded_images_are(run: Run, trained: Path) -> None:
    table = run.read_folds()
    shown = read_attribution(run, run.members(), table, stored_pixels(run, silent))
    pixels = Oracle(trained, run.member("a")).pixels
    for error in maps_of(run).errors:
        np.testing.assert_array_equal(shown.images[error.id], pixels[table.ids.tolist().index(error.id)])
    assert set(shown.means) == {each.label for each in maps_of(run).classes}
    shutil.rmtree(run.folder / "pixels")
    bare = read_attribution(run, run.members(), table, stored_pixels(run, silent))
    assert bare.members == shown.members and not bare.images and not bare.means
