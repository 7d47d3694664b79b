"""The demo data is what it says: deterministic, whole, and as noisy as its Bayes HTER claims."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from ensemble.data.source import open_source
from ensemble.data.store import load_dataset
from ensemble.data.synthetic import bayes_hter, draw_head, write_demo
from ensemble.errors import ConfigError


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()


def test_write_demo(tmp_path: Path) -> None:
    demo = tmp_path / "deep" / "demo"
    write_demo(demo, 40, 25, seed=3, size=32)
    train = load_dataset(open_source(demo / "train_img", demo / "label_train.txt"), tmp_path / "store", threads=1)
    val = load_dataset(open_source(demo / "val_img", demo / "given_val.txt"), tmp_path / "store", threads=1)
    assert (len(train), len(val), train.size, train.notes) == (40, 25, (32, 32), ())
    assert np.loadtxt(demo / "truth_train.txt").tolist().count(0) == 5
    assert np.loadtxt(demo / "truth_val.txt").tolist().count(0) == 3
    assert len(np.unique(np.concatenate([train.digests, val.digests]))) == 65
    assert sorted(path.name for path in demo.parent.iterdir()) == ["demo"]
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}
    write_demo(demo, 40, 25, seed=3, size=32)
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*")} == before
    write_demo(tmp_path / "again", 40, 25, seed=3, size=32)
    assert digest(demo) == digest(tmp_path / "again")
    with pytest.raises(ConfigError, match="exists and does not hold this demo"):
        write_demo(demo, 40, 25, seed=4, size=32)
    assert digest(demo) == digest(tmp_path / "again")


def test_a_folder_of_the_user_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="remove it, or name another folder"):
        write_demo(tmp_path, 4, 4, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("wrong", [{"n_train": 0}, {"size": 4}, {"flip": 0.5}, {"minority": 0.0}])
def test_parameters_out_of_range(tmp_path: Path, wrong: dict[str, float]) -> None:
    parameters = {"n_train": 4, "n_val": 4, "seed": 0} | wrong
    with pytest.raises(ConfigError, match="demo"):
        write_demo(tmp_path / "demo", **parameters)  # type: ignore[arg-type]


def test_labels_are_flipped_at_the_rate(tmp_path: Path) -> None:
    write_demo(tmp_path / "demo", 400, 1, seed=0, size=8, flip=0.2)
    truth, given = (np.loadtxt(tmp_path / "demo" / name) for name in ("truth_train.txt", "label_train.txt"))
    assert 0.14 < (truth != given).mean() < 0.26


@pytest.mark.parametrize("minority", [0.12, 0.5, 0.9])
@pytest.mark.parametrize("flip", [0.0, 0.05, 0.3, 0.5, 0.8])
def test_bayes_hter_is_the_least_of_the_four_rules(minority: float, flip: float) -> None:
    joint = np.array([[minority * (1 - flip), (1 - minority) * flip], [minority * flip, (1 - minority) * (1 - flip)]])
    given_truth = joint / joint.sum(1, keepdims=True)  # rows: given label, columns: true class
    rules = [np.array([a, b]) for a in (0, 1) for b in (0, 1)]
    least = min((given_truth[0] @ rule + given_truth[1] @ (1 - rule)) / 2 for rule in rules)
    assert bayes_hter(minority, flip) == pytest.approx(least, abs=1e-12)


def test_bayes_hter_by_simulation() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random(400_000) >= 0.12).astype(int)
    given = truth ^ (rng.random(truth.size) < 0.05)
    hter = (truth[given == 0].mean() + 1 - truth[given == 1].mean()) / 2
    assert bayes_hter() == pytest.approx(hter, abs=0.003)


def test_an_accessory_changes_the_picture_and_nothing_else_does() -> None:
    def pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
        bare, dressed = (draw_head(np.random.default_rng(seed), accessory).astype(int) for accessory in (False, True))
        return bare, dressed

    changed = [(np.abs(bare - dressed).max(2) > 60).mean() for bare, dressed in map(pair, range(30))]
    assert min(changed) > 0.01
