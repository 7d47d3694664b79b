"""What several tests share: a tiny data set whose classes a small network learns in seconds, odd names, a listing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import TypeAdapter

from ensemble.decision.shift import ShareCheck

ODD_IDS = [
    "plain.jpg",
    "001.jpg",
    "1e5",
    "two\nlines.jpg",
    "carriage\rreturn.jpg",
    "both\r\n.jpg",
    "\rfirst",
    "\ttab",
    'quo"ted.jpg',
    "com,ma.jpg",
    "=cmd()|'/c calc'!A0",
    "+1",
    "-1",
    "@x",
    "'apostrophe",
    "''two",
    "'=both",
    "<script>alert(1)</script>",
    "byte \udcff.jpg",
    "é 漢",
    " space ",
]
"""Names of images that text files, spreadsheets and terminals stumble over."""


def write_tiny(folder: Path, n: int, seed: int = 0, size: int = 16) -> np.ndarray:
    """Write n images, bright above for label 1 and bright below for label 0 (a quarter), and return the labels (n,)."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 4 != 0).astype(np.int8)
    (folder / "img").mkdir(parents=True)
    for row, label in enumerate(labels.tolist(), 1):
        image = rng.integers(0, 120, (size, size, 3), dtype=np.uint8)
        half = image[: size // 2] if label else image[size // 2 :]
        half += 120
        cv2.imwrite(str(folder / "img" / f"{row:03d}.png"), image)
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
    return labels


def listing(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def through_json(value: Any) -> Any:
    """Return a value as it comes back from the JSON of an artifact."""
    adapter: TypeAdapter[Any] = TypeAdapter(type(value))
    return adapter.validate_json(json.dumps(adapter.dump_python(value, mode="json"), allow_nan=False), strict=True)


def rewrite_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a JSON file of a run as a version of thera writes it that records no hashes of JSON files."""
    path.write_text(json.dumps({key: value for key, value in content.items() if key != "content_sha256"}))
    for run in path.parents:
        if path.name != "run.json" and (run / "run.json").exists():
            recorded = json.loads((run / "run.json").read_text())
            recorded.get("artifacts", {}).pop(path.relative_to(run).as_posix(), None)
            rewrite_json(run / "run.json", recorded)


def prediction_facts(path: Path) -> dict[str, Any]:
    """Return `predictions.json` as one flat mapping: what was requested under `requested_…`, rates with their HTER."""
    stored = json.loads(path.read_text())
    expectation, check = stored["expectation"], ShareCheck(**stored["share_check"])

    def rates(of: dict[str, Any]) -> dict[str, float]:
        return {"fpr": of["fpr"], "fnr": of["fnr"], "hter": (of["fpr"] + of["fnr"]) / 2}

    def ends(interval: dict[str, float] | None) -> list[float] | None:
        return interval and [interval["low"], interval["high"]]

    corrections = {
        each["correction"]: {"threshold": each["threshold"], "share_of_label_0": each["share_of_label_0"]}
        | rates(each["rates"])
        for each in expectation["corrections"]
    }
    return {
        **{key: value for key, value in stored.items() if key not in ("request", "expectation", "content_sha256")},
        **{f"requested_{key}": value for key, value in stored["request"].items()},
        "share_check": stored["share_check"] | {"shifted": check.shifted, "message": check.message(stored["images"])},
        "correction": expectation["correction"],
        "averaging_measured": expectation["averaging_measured"],
        "corrections": corrections,
        "expected": rates(expectation["rates"]),
        "hter_interval": ends(expectation["interval"]),
        "expected_interval": ends(expectation["new_set_interval"]),
        "at_prior": expectation["at_prior"],
    }


def write_three(folder: Path, n: int, seed: int = 0, size: int = 16) -> np.ndarray:
    """Write n images of three classes, and return the labels (n,): bright above 0 (half), below 1, in the middle 2.

    ``labels.txt`` has the indices, ``labels.csv`` the names low, top and mid by name, which are in another order.
    """
    rng = np.random.default_rng(seed)
    labels = np.array([0, 1, 0, 2], np.int8)[np.arange(n) % 4]
    (folder / "img").mkdir(parents=True)
    third = size // 3
    for row, label in enumerate(labels.tolist(), 1):
        image = rng.integers(0, 120, (size, size, 3), dtype=np.uint8)
        start = (0, size - third, third)[label]
        image[start : start + third] += 130
        cv2.imwrite(str(folder / "img" / f"{row:03d}.png"), image)
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
    names = np.array(["top", "low", "mid"])[labels]
    rows = (f"{row:03d}.png,{name}\n" for row, name in enumerate(names.tolist(), 1))
    (folder / "labels.csv").write_text("name,label\n" + "".join(rows))
    return labels


def fails(capsys: pytest.CaptureFixture[str], status: int, *arguments: object) -> str:
    """Run a command that must fail with this exit status, and return its only line that begins with `error: `."""
    from ensemble.cli import main

    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(each) for each in arguments])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == status, line
    return line
