"""The drawn people have the shape, the shares and the Bayes rates that their facts say."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.stats import norm

from ensemble.data import synthetic_people
from ensemble.data.manifest import open_manifest
from ensemble.data.synthetic_people import (
    AGE_SHARES,
    BEARD_SPREAD,
    BEARDS,
    EDGE_SPREAD,
    EDGES,
    GENDER_SHARES,
    OTHER_SIGN,
    bayes_rates,
    draw_people,
    joined_label,
)
from ensemble.data.tables import Columns
from ensemble.errors import ConfigError, DataError


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    data = b"".join(path.relative_to(folder).as_posix().encode() + path.read_bytes() for path in files)
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "people"
    draw_people(folder, 8, seed=3, size=32)
    return folder


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    first = draw_people(tmp_path / "again", 8, seed=3, size=32)
    assert digest(drawn) == digest(tmp_path / "again")
    before = {path: path.stat().st_mtime_ns for path in drawn.rglob("*")}
    assert draw_people(drawn, 8, seed=3, size=32).counts == first.counts
    assert {path: path.stat().st_mtime_ns for path in drawn.rglob("*")} == before
    with pytest.raises(ConfigError, match="remove it, or name another folder"):
        draw_people(drawn, 8, seed=4, size=32)
    draw_people(tmp_path / "other", 8, seed=4, size=32)
    assert digest(tmp_path / "other") != digest(drawn)


def test_the_manifest_lists_every_image_with_its_classes_and_person(drawn: Path) -> None:
    with (drawn / "people.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "mask", "gender", "age", "label", "group"]
    assert sorted(row["path"] for row in rows) == sorted(
        path.relative_to(drawn).as_posix() for path in (drawn / "images").rglob("*.jpg")
    )
    for row in rows:
        mask, gender, age = (int(row[name]) for name in ("mask", "gender", "age"))
        assert int(row["label"]) == joined_label(mask, gender, age) == mask * 6 + gender * 3 + age
        stem = Path(row["path"]).stem
        assert mask == {"incorrect_mask": 1, "normal": 2}.get(stem, 0)
        assert row["path"] == f"images/{row['group']}/{stem}.jpg"
        image = cv2.imread(str(drawn / row["path"]))
        assert image is not None and image.shape == (32, 32, 3)
    for person in {row["group"] for row in rows}:
        of_person = [row for row in rows if row["group"] == person]
        assert Counter(row["mask"] for row in of_person) == {"0": 5, "1": 1, "2": 1}
        assert len({(row["gender"], row["age"]) for row in of_person}) == 1
    assert len({hashlib.sha256((drawn / row["path"]).read_bytes()).digest() for row in rows}) == 56


def test_the_manifest_is_read_with_its_groups(drawn: Path) -> None:
    source = open_manifest(drawn / "people.csv", names=Columns(label="gender"))
    assert source.groups is not None and source.labels is not None
    assert np.bincount(source.groups).tolist() == [7] * 8
    assert set(source.labels.tolist()) == {0, 1}
    with pytest.raises(DataError):  # 18 classes are not read as two
        open_manifest(drawn / "people.csv")


@pytest.mark.parametrize("wrong", [{"people": 5}, {"size": 8}])
def test_parameters_out_of_range(tmp_path: Path, wrong: dict[str, int]) -> None:
    parameters: dict[str, Any] = {"people": 6, "size": 32} | wrong
    with pytest.raises(ConfigError, match="people"):
        draw_people(tmp_path / "people", seed=0, **parameters)
    assert not list(tmp_path.iterdir())


# --- classes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("people", [6, 7, 20, 37, 400])
def test_people_have_the_shares(people: int) -> None:
    classes = synthetic_people._classes(people, np.random.default_rng(0))
    assert len(classes) == people
    counts = Counter(classes)
    assert len(counts) == 6
    shares = {(g, a): x * y for g, x in enumerate(GENDER_SHARES) for a, y in enumerate(AGE_SHARES)}
    if people == 400:
        assert all(abs(counts[each] - 400 * share) < 1 for each, share in shares.items())
        ages = [sum(counts[g, a] for g in (0, 1)) / 400 for a in range(3)]
        assert ages == pytest.approx(AGE_SHARES, abs=0.005)


def test_the_facts_count_the_images(drawn: Path) -> None:
    facts = draw_people(drawn, 8, seed=3, size=32)
    with (drawn / "people.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (facts.people, facts.images) == (8, 56)
    for name, counts in facts.counts.items():
        assert dict(enumerate(counts)) == Counter(int(row[name]) for row in rows)
    assert facts.counts["mask"] == (40, 8, 8) and len(facts.counts["label"]) == 18


# --- signs ------------------------------------------------------------------------------------------------------------


def test_classes_show_in_the_signs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all ages have one length of beard and all masks one edge, images do not depend on these classes."""
    images = [synthetic_people._person(0, 1, 0, age, 32) for age in range(3)]
    assert not np.array_equal(images[0], images[2])
    monkeypatch.setattr(synthetic_people, "BEARDS", (28.0,) * 3)
    images = [synthetic_people._person(0, 1, 0, age, 32) for age in range(3)]
    assert np.array_equal(images[0], images[1]) and np.array_equal(images[0], images[2])
    worn = images[0][5]
    monkeypatch.setattr(synthetic_people, "EDGES", (152.0, 152.0))
    assert np.array_equal(synthetic_people._person(0, 1, 0, 0, 32)[5], worn)
    monkeypatch.setattr(synthetic_people, "OTHER_SIGN", 0.0)
    hat = synthetic_people._person(0, 1, 0, 0, 32)
    monkeypatch.setattr(synthetic_people, "OTHER_SIGN", 1.0)
    assert np.array_equal(synthetic_people._person(0, 1, 1, 0, 32), hat)


def test_the_signs_have_their_densities(monkeypatch: pytest.MonkeyPatch) -> None:
    """The length of the beard, the kind of sign and the edge of the mask, as they reach the drawing."""
    beards: list[float] = []
    signs: list[bool] = []
    edges: list[float] = []
    blank = np.zeros((8, 8, 3), np.uint8)

    def head(rng: np.random.Generator, glasses: bool, beard: float) -> np.ndarray:
        beards.append(beard)
        signs.append(glasses)
        return blank

    monkeypatch.setattr(synthetic_people, "_head", head)
    monkeypatch.setattr(synthetic_people, "_draw_mask", lambda canvas, rng, edge: edges.append(edge))
    monkeypatch.setattr(synthetic_people, "photograph", lambda canvas, rng, size: canvas)
    n = 1500
    for number in range(n):
        synthetic_people._person(1, number, 1, 2, 32)
    masks = np.array(edges).reshape(n, 6)
    for values, mean, spread in (
        (np.array(beards), BEARDS[2], BEARD_SPREAD),
        (masks[:, :5].ravel(), EDGES[0], EDGE_SPREAD),
        (masks[:, 5], EDGES[1], EDGE_SPREAD),
    ):
        assert values.mean() == pytest.approx(mean, abs=4 * spread / np.sqrt(len(values)))
        assert values.std() == pytest.approx(spread, abs=4 * spread / np.sqrt(2 * len(values)))
    assert 1 - np.mean(signs) == pytest.approx(OTHER_SIGN, abs=4 * np.sqrt(OTHER_SIGN / n))
    assert abs(np.corrcoef(masks[:, 0], masks[:, 1])[0, 1]) < 0.1  # each image has an edge of its own


@pytest.mark.parametrize("size", [32, 48])
def test_a_longer_beard_and_a_lower_mask_show_in_the_pixels(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """A change of each sign by a third of its spread changes the image beyond the noise of the pixels."""
    for name, changed in (("BEARDS", (30.0,) * 3), ("EDGES", (130.0, 152.0))):
        before = np.stack(synthetic_people._person(0, 1, 1, 1, size)).astype(int)
        with monkeypatch.context() as patch:
            patch.setattr(synthetic_people, name, changed)
            after = np.stack(synthetic_people._person(0, 1, 1, 1, size)).astype(int)
        assert (np.abs(before - after).reshape(7, -1).max(1)[:5] > 12).all(), name


# --- Bayes rates ------------------------------------------------------------------------------------------------------


def simulated(n: int, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the classes of `n` images, (n,), and the log of the joint density of each class and the signs, (n, C)."""
    mask = rng.choice(3, n, p=(5 / 7, 1 / 7, 1 / 7))
    gender, age = rng.choice(2, n, p=GENDER_SHARES), rng.choice(3, n, p=AGE_SHARES)
    edge = rng.normal(np.append(EDGES, 0)[mask], EDGE_SPREAD)
    sign = gender ^ (rng.random(n) < OTHER_SIGN)
    beard = rng.normal(np.array(BEARDS)[age], BEARD_SPREAD)
    bare = mask == 2
    density = {
        "mask": np.column_stack(
            [
                np.where(bare, 0, 5 / 7 * norm.pdf(edge, EDGES[0], EDGE_SPREAD)),
                np.where(bare, 0, 1 / 7 * norm.pdf(edge, EDGES[1], EDGE_SPREAD)),
                np.where(bare, 1 / 7, 0),
            ]
        ),
        "gender": np.column_stack(
            [p * np.where(sign == g, 1 - OTHER_SIGN, OTHER_SIGN) for g, p in enumerate(GENDER_SHARES)]
        ),
        "age": np.column_stack(
            [p * norm.pdf(beard, mean, BEARD_SPREAD) for p, mean in zip(AGE_SHARES, BEARDS, strict=True)]
        ),
    }
    m, g, a = density.values()
    density["label"] = (m[:, :, None, None] * g[:, None, :, None] * a[:, None, None, :]).reshape(n, 18)
    return {"mask": mask, "gender": gender, "age": age, "label": joined_label(mask, gender, age)}, density


def macro_f1(y: np.ndarray, y_pred: np.ndarray, classes: int) -> float:
    correct, size = np.bincount(y[y == y_pred], minlength=classes), np.bincount(y, minlength=classes)
    return float((2 * correct / (size + np.bincount(y_pred, minlength=classes))).mean())


@pytest.mark.parametrize("name", ["mask", "gender", "age", "label"])
def test_bayes_rates_by_monte_carlo(name: str) -> None:
    classes, densities = simulated(300_000, np.random.default_rng(0))
    y, density = classes[name], densities[name]
    n, c = density.shape
    best = bayes_rates()[name]
    error = float(np.mean(density.argmax(1) != y))
    assert best.error == pytest.approx(error, abs=4 * np.sqrt(error / n) + 0.0005)
    balanced = (density / np.bincount(y, minlength=c)).argmax(1)
    of_class = np.array([np.mean(balanced[y == each] != each) for each in range(c)])
    standard_error = np.sqrt((of_class * (1 - of_class) / np.bincount(y, minlength=c)).sum()) / c
    assert best.mean_error == pytest.approx(of_class.mean(), abs=4 * standard_error + 0.0005)
    # the rule of the greatest macro F1 charges each prediction: iterated on one sample, and measured on another
    scores, cells = density, density.sum(1)
    for _ in range(30):
        y_pred = scores.argmax(1)
        correct, predicted = np.bincount(y[y == y_pred], minlength=c), np.bincount(y_pred, minlength=c)
        size = (np.bincount(y, minlength=c) + predicted) / n
        scores = density / size - np.outer(cells, correct / n / size**2)
    others, densities = simulated(300_000, np.random.default_rng(1))
    y, density = others[name], densities[name]
    y_pred = (density / size - np.outer(density.sum(1), correct / n / size**2)).argmax(1)
    assert best.macro_f1 == pytest.approx(macro_f1(y, y_pred, c), abs=0.006)
    assert best.macro_f1 > macro_f1(y, density.argmax(1), c) - 0.006


def test_half_the_width_of_the_bins_changes_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    before = bayes_rates()
    monkeypatch.setattr(synthetic_people, "BIN", synthetic_people.BIN / 2)
    after = bayes_rates.__wrapped__()
    for name, best in before.items():
        for rate in ("error", "mean_error", "macro_f1"):
            assert getattr(best, rate) == pytest.approx(getattr(after[name], rate), abs=0.0005)
