"""`gpu.py` without a GPU: every part reports its rows, and one that fails or hangs does not stop the next."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import gpu
import gpu_parts
import pytest
import torch

from ensemble.members import graphed

NUMBERS = {
    "logits": ["logits deviate by", "gradients deviate by"],
    "graphs": ["eager images/s", "graph images/s", "ratio"],
    "resume": ["weights differ by, of their change"],
    "training": ["images/s", "plain loop images/s"],
    "prediction": ["images/s", "logits/s"],
}
"""Columns of the parts that every row has a number in."""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the settings of --device cpu --quick. What the parts replace on a CPU is as before after the test."""
    monkeypatch.setattr(graphed, "captured", graphed.captured)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = {"device": "cpu", "arch": None, "images": None, "labels": None, "limit": 4096, "rounds": 3}
    return gpu.settings_of(
        asked | {"end": time.time() + 600.0, "folder": str(tmp_path), "shared": str(tmp_path), "quick": True}
    )


def rows_of(name: str, settings: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    gpu_parts.PARTS[name](settings, lambda **cells: rows.append(cells))
    json.dumps(rows)
    return rows


def test_the_parts_are_those_that_have_a_share_of_the_time() -> None:
    assert list(gpu_parts.PARTS) == list(gpu.SHARES)


@pytest.mark.parametrize("name", ["logits", "graphs", "resume", "choices", "training", "memory", "prediction"])
def test_a_part_reports_rows_without_a_gpu(settings: Any, name: str) -> None:
    threads = torch.get_num_threads()
    try:
        rows = rows_of(name, settings)
    finally:
        torch.set_num_threads(threads)
    assert rows and all(row[column] >= 0 for row in rows for column in NUMBERS.get(name, ()))
    assert all(row.get("refused", "") == "" for row in rows)
    if name == "logits":
        assert all(row["right"] for row in rows)
    if name == "graphs":
        assert all(row["still a graph"] for row in rows) and [row["drop rate"] for row in rows] == [0, 0.5]
    if name == "resume":
        assert [(row["begun"], row["continued"]) for row in rows] == [
            ("graphed", "graphed"),
            ("graphed", "native"),
            ("native", "graphed"),
        ]
        assert max(row["weights differ by, of their change"] for row in rows) < 0.1
    if name == "choices":
        assert rows[0]["failed"] == {} and set(rows[0]["images/s"]) == {"fp32 native", "fp32 graphed"}
    if name == "training":
        assert [row["plan"] for row in rows] == ["fp32 native", "fp32 graphed"]


def test_folds_share_a_device_in_turn_or_in_processes(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes are calls here: what they compute is measured, their start is Python's."""

    class Calls:
        def __init__(self, processes: int, context: Any) -> None: ...

        def __enter__(self) -> Calls:
            return self

        def __exit__(self, *_: object) -> None: ...

        def submit(self, function: Any, *call: Any) -> Any:
            value = function(*call[:4], 0.0, 0.01)
            return type("Done", (), {"result": lambda self: value})()

    monkeypatch.setattr(gpu_parts, "ProcessPoolExecutor", Calls)
    rows = rows_of("folds", settings)
    assert [(row["processes"], row["folds in each"]) for row in rows] == [(1, 4), (2, 2)] * 2
    assert all(row["images/s together"] > 0 and row["began late"] for row in rows)


def test_the_commands_are_run_for_their_time(settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run that is stopped tells images a second and what all epochs would take, from the histories that it left."""
    monkeypatch.setattr(gpu_parts.sys, "executable", "/bin/echo")
    rows = rows_of("bench", settings)
    assert [row["status"] for row in rows] == [0, 0]
    assert rows[0]["printed"].startswith("-m thera bench --arch lenet --limit 256 --rounds 1 --images ")
    assert "contest.py train predict --arch lenet" in rows[1]["printed"]
    monkeypatch.setattr(gpu_parts.sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="exit status 1 of -m thera run"):
        rows_of("run", settings)
    monkeypatch.setattr(gpu_parts.sys, "executable", "/bin/echo")
    history = tmp_path / "run" / "members" / "resnet18" / "fold-0" / "history.jsonl"
    history.parent.mkdir(parents=True)
    history.write_text('{"epoch": 1, "seconds": 2.0}\n')
    rows = rows_of("run", settings)
    assert rows[0]["member"] == "resnet18" and rows[0]["epochs trained"] == 1 and rows[0]["of"] == 2
    assert rows[0]["images/s"] == 48 / 2.0 and rows[0]["all epochs, hours"] == pytest.approx(4 / 3600)
    assert rows[-1]["status"] == 0 and "run.yaml --device cpu" in rows[-1]["printed"]
    found = gpu_parts.ran(["/bin/sh", "-c", "echo begun; exec sleep 30"], 0.5, gently=True)
    assert found["status"] == "stopped after 0 s" and found["printed"] == "begun\n"


def test_a_part_that_fails_or_hangs_is_a_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The parts are shell scripts here; the rows that a part has written remain."""
    script = tmp_path / "part.py"
    script.write_text(
        "import json, pathlib, sys, time\n"
        "_, request, rows = sys.argv[1:]\n"
        "name = json.loads(pathlib.Path(request).read_text())['name']\n"
        "found = {'rows': [{'images/s': 1234.5, 'note': 'a|b'}], 'machine': {'a': 1}}\n"
        "pathlib.Path(rows).write_text(json.dumps(found))\n"
        "time.sleep(60 if name == 'resume' else 0)\n"
        "sys.exit(name == 'graphs')\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(script))
    names = ("logits", "graphs", "resume", "folds")
    monkeypatch.setattr(gpu, "GRACE", 0.0)
    monkeypatch.setattr(gpu, "LEAST", 3.0)
    chosen = [text for name in names for text in ("--part", name)]
    assert gpu.main(["--out", str(tmp_path / "out"), "--minutes", "0.01", *chosen]) == 1
    result = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert [part["status"] for part in result["parts"].values()] == ["done", "failed", "stopped by its time", "done"]
    assert result["machine"] == {"a": 1} and all(part["rows"] for part in result["parts"].values())
    page = (tmp_path / "out" / "gpu.md").read_text()
    assert page.count("| 1234 | a/b |") == 4 and "its process ended with status 1" in page
    assert page.startswith("# Tried out without a GPU")


def test_an_error_within_a_part_keeps_its_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def part(settings: Any, report: Any) -> None:
        report(a=1.0)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setitem(gpu_parts.PARTS, "logits", part)
    asked = vars(gpu.options(["--out", str(tmp_path), "--device", "cpu", "--quick"]))
    request = {key: str(value) if isinstance(value, Path) else value for key, value in asked.items()}
    request |= {"name": "logits", "end": 0.0, "folder": str(tmp_path), "shared": str(tmp_path)}
    (tmp_path / "request.json").write_text(json.dumps(request))
    assert gpu.run_part(str(tmp_path / "request.json"), str(tmp_path / "rows.json")) == 1
    found = json.loads((tmp_path / "rows.json").read_text())
    assert found["rows"] == [{"a": 1.0}] and found["error"].startswith("RuntimeError: CUDA error: an illegal")
    assert found["machine"]["device"] == "cpu" and "Traceback" in found["traceback"]


def test_images_and_labels_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.options(["--out", "x", "--images", "y"])
    assert "go together" in capsys.readouterr().err
    assert isinstance(gpu.options(["--out", "x"]), argparse.Namespace)
