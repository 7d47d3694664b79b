"""A short soak, and that a soak would find what it looks for: a crash, a hang, a torn file, a warning that is ignored.

Each test runs Python anew, because a process forks soundly only as long as it has no threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the soak needs fork and /proc")

ENOUGH_S = 1500
"""Seconds for a short soak on a machine that is busy with other work; it takes 50 s of one core."""


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=ENOUGH_S)


def in_python(code: str, *arguments: str) -> Any:
    """Return what a program prints as JSON."""
    done = run_python("-c", code, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_short_soak_is_survived(tmp_path: Path) -> None:
    options = ["--minutes", str(ENOUGH_S / 60 - 1), "--scale", "0.01", "--json", str(tmp_path / "soak.json")]
    done = run_python("-m", "soak", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "soak.json").read_text())
    images = ("jpeg", "png", "bmp", "webp")
    assert list(results) == [*images, "configs", "labels", "workers", "starts", "kills", "disk", "artifacts"]
    for name, result in results.items():
        assert result["tried"] == result["requested"] and result["failures"] == {}, name
    tried = {name: result["tried"] for name, result in results.items()}
    assert tried["kills"] == 5 and tried["artifacts"] == 100 and tried["disk"] >= 25
    assert results["kills"]["counts"]["inside a save"] >= 1
    counts = results["disk"]["counts"]
    assert counts["kill before"] + counts["kill after"] >= 8 and counts["ENOSPC, exit 6"] >= 3
    assert "| mutated PNG | 100 | 100 | 100 |" in done.stdout


def test_an_unknown_kind_is_refused() -> None:
    done = run_python("-m", "soak", "--only", "kills,earthquakes")
    assert done.returncode == 1 and "no such kind: earthquakes" in done.stderr


LANES = """
import json, os, signal, sys, time
from soak.lanes import Outcome, run_trials

def trial(lane, number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 4:
        time.sleep(60)
    if number == 5:
        os._exit(7)
    if number == 6:
        raise ValueError("a fault of the trial")
    return Outcome("wrong" if number == 7 else "", {"tried": 1})

core = next(iter(os.sched_getaffinity(0)))
result = run_trials("x", trial, range(12), time.monotonic() + 60, 1.0, [core, core])
late = run_trials("x", lambda *_: time.sleep(0.1) or Outcome(), range(1000), time.monotonic() + 0.5, 60.0, [core])
print(json.dumps([result.tried, result.survived, result.failures, result.counts, late.tried]))
"""


def test_a_crash_a_hang_and_an_error_end_their_trial_alone() -> None:
    tried, survived, failures, counts, late = in_python(LANES)
    assert (tried, survived, counts) == (12, 7, {"tried": 8})
    assert failures.pop("6").rstrip().endswith("ValueError: a fault of the trial")
    assert failures == {
        "3": "crash: the process was ended by signal 11",
        "4": "hang: no end within 1 s",
        "5": "crash: the process ended with status 7",
        "7": "wrong",
    }
    assert 1 <= late < 30, "no trial begins after the deadline"


DISK = """
import json, sys
from pathlib import Path
from ensemble.errors import TheraError
from ensemble.runs import files
from soak import disk, tiny_run

folder = Path(sys.argv[1])
whole = {"file.txt": "a hash that no half of the file has"}

def atomic():
    files.write_whole(folder / "work/file.txt", b"new and long")

def plain():
    (folder / "work/file.txt").write_bytes(b"new and long")

def ended(write):
    try:
        write()
    except (TheraError, OSError) as error:
        return tiny_run.Ended(6, f"error: {error}")
    return tiny_run.Ended(0)

def torn(write):
    tiny_run.fresh(folder / "work")
    with open(folder / "log", "wb") as log:
        faults = disk._Faults(folder / "work")
        tiny_run.Child(lambda: faults.counted(lambda: ended(write), log.fileno())).ended()
    operations = (folder / "log").read_text().splitlines()
    bad, statuses = 0, set()
    for at in range(len(operations)):
        for kind in disk.KINDS:
            tiny_run.fresh(folder / "work")
            (folder / "work/file.txt").write_bytes(b"older")
            faults = disk._Faults(folder / "work", at, kind)
            statuses.add(tiny_run.Child(lambda: faults.applied(lambda: ended(write))).ended().status)
            content = (folder / "work/file.txt").read_bytes()
            assert len(tiny_run.torn(folder / "work", whole)) == 1
            bad += content not in (b"older", b"new and long")
    return [line.split()[0] for line in operations], bad, sorted(statuses)

print(json.dumps([torn(atomic), torn(plain)]))
"""


def test_faults_of_the_disk_tear_a_file_that_is_not_written_atomically(tmp_path: Path) -> None:
    atomic, plain = in_python(DISK, str(tmp_path))
    assert atomic == [["mkdir", "open", "write", "fsync", "replace", "fsync"], 0, [-9, 0, 6]]
    assert plain == [["open", "write"], 4, [-9, 6]]


IMAGES = """
import json, sys
from pathlib import Path
import ensemble.data.pixels as pixels
from soak import images

if sys.argv[1] == "lax":
    pixels._check_png_stream = lambda *_: None
    decode = pixels.simplejpeg.decode_jpeg
    pixels.simplejpeg.decode_jpeg = lambda *arguments, strict: decode(*arguments, strict=False)
failures = {}
for kind in ("png", "jpeg"):
    trial, _ = images.trials(Path(), 0, kind)
    failures[kind] = [outcome.failure for n in range(600) if (outcome := trial(0, n)).failure]
print(json.dumps(failures))
"""


def test_a_warning_of_a_decoder_that_is_ignored_is_found() -> None:
    assert in_python(IMAGES, "strict") == {"png": [], "jpeg": []}
    for kind, failures in in_python(IMAGES, "lax").items():
        assert [each for each in failures if "accepted, but the decoder says: " in each], kind
