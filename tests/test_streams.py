"""The process of the `thera` command: signals at any moment, closed standard streams, colours, completion."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import listing, write_tiny

from ensemble.config import VIEWS
from ensemble.data.folds import FoldTable
from ensemble.runs.member import MemberIdentity
from ensemble.runs.run import Run, RunFacts

ROOT = Path(__file__).parents[1]
THERA = [sys.executable, "-m", "thera"]

STOPPED = "stopped by {}, what is finished is saved; run the same command again to go on\n"


def environ(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images, labels, and a run of one member with made-up OOF logits."""
    folder = tmp_path_factory.mktemp("streams")
    labels = write_tiny(folder, 40)
    ids = np.array([f"{row:03d}.png" for row in range(1, 41)])
    table = FoldTable(ids, labels, (np.arange(40) // 4 % 2).astype(np.int8), None)
    run = Run(folder / "run")
    run.begin(RunFacts(5, 2, 40, (16, 16), None, "f", "images", "labels"))
    run.write_folds(table)
    member = run.member("a")
    member.begin({"arch": "a"}, MemberIdentity("f", 5, "fp32"))
    logits = np.random.default_rng(0).normal(size=(40, len(VIEWS))) + labels[:, None]
    for fold in range(2):
        member.finish_fold(fold, {}, ids[table.fold_of == fold], logits[table.fold_of == fold], VIEWS)
    return folder


def shell(line: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `thera` is the command; the status is that of the last command that failed."""
    script = f'set -o pipefail; thera() {{ "{sys.executable}" -m thera "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", script],
        cwd=cwd,
        env=environ(**environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --- signals ----------------------------------------------------------------------------------------------------------


def start(arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    """Start the command, and return when it handles signals: Python itself takes some milliseconds to start."""
    process = subprocess.Popen(
        [*THERA, *arguments], cwd=cwd, env=environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None:
        (caught,) = re.findall(r"^SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
        if int(caught, 16) & 1 << (signal.SIGTERM - 1):
            break
        time.sleep(0.002)
    return process


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("delay", [0.02, 0.1, 0.3, 0.6])
@pytest.mark.parametrize(
    ("arguments", "statuses"),
    [
        (["--help"], {0, 75}),
        (["predict", "--run", "run", "--images", "img", "--out", "o.txt"], {4, 75}),  # the run has no decision
        (["train-member", "--run", "new", "--arch", "lenet", "--images", "img", "--labels", "labels.txt"], {75}),
    ],
    ids=["help", "predict", "train-member"],
)
def test_a_signal_in_the_first_second_is_one_line(
    arguments: list[str], statuses: set[int], delay: float, folder: Path
) -> None:
    number = signal.SIGTERM if delay == 0.1 else signal.SIGINT
    process = start(arguments, folder)
    time.sleep(delay)
    process.send_signal(number)
    err = process.communicate(timeout=60)[1]
    assert process.returncode in statuses, err
    if process.returncode == 75:
        assert re.sub(r"^(reading|read:|decode:) .*\n", "", err, flags=re.MULTILINE) == STOPPED.format(number.name)


AT_AN_IMPORT = """
import os, signal, sys

module = sys.argv.pop(1)

class Interrupted:
    def find_spec(name, path, target=None):
        if name == module:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except Exception:  # as many libraries do
                pass

sys.meta_path.insert(0, Interrupted)
from thera.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("module", ["ensemble.cli", "typer", "ensemble.options", "ensemble.commands.report", "scipy"])
def test_a_signal_during_an_import_ends_the_process(module: str, folder: Path) -> None:
    command = [sys.executable, "-c", AT_AN_IMPORT, module, "report", "--run", "run"]
    done = subprocess.run(command, cwd=folder, env=environ(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (75, "", STOPPED.format("SIGINT"))


# --- closed streams ---------------------------------------------------------------------------------------------------

CLOSED = [">&-", "2>&-", "<&-", "<&- >&- 2>&-", "| true", "2>&1 | true"]


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize(
    ("command", "status"),
    [("thera --help", 0), ("thera report --run none", 4), ("thera train", 2)],
)
def test_closed_streams_change_no_status(command: str, status: int, closed: str, tmp_path: Path) -> None:
    done = shell(f"{command} {closed}", tmp_path)
    assert done.returncode == status
    assert re.fullmatch(r"(error: .*\n)?", done.stderr)


def test_closed_streams_lose_no_work(folder: Path, tmp_path: Path) -> None:
    written = []
    for number, closed in enumerate(["", "<&- >&- 2>&-", "2>&1 | true"]):
        shutil.copytree(folder / "run", tmp_path / str(number) / "run")
        done = shell(f"thera remove-member a --run run --yes {closed}", tmp_path / str(number))
        assert done.returncode == 0
        assert (bool(done.stdout), bool(done.stderr)) == (closed == "", closed == "")
        files = listing(tmp_path / str(number))
        files["run/run.json"] = re.sub(rb'"(when|seconds|content_sha256)": .*', b"", files["run/run.json"])
        written.append(files)
    assert "run/members/a/member.json" in listing(folder)
    assert "run/members/a/member.json" not in written[0]
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("closed", CLOSED[:4])
def test_what_libraries_print_reaches_no_file_of_the_user(closed: str, tmp_path: Path) -> None:
    code = """
import os, subprocess
from thera.__main__ import open_streams
open_streams()
with open("labels.txt", "w") as file:
    for number in (1, 2):
        os.write(number, b"printed by a library")
    subprocess.run("echo printed by a process; echo another >&2", shell=True, check=True)
    print("printed")
    file.write("0")
"""
    (tmp_path / "code.py").write_text(code)
    assert shell(f'"{sys.executable}" code.py {closed}', tmp_path).returncode == 0
    assert (tmp_path / "labels.txt").read_text() == "0"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["thera --help", "thera --version", "thera recipes"])
def test_a_full_disk_is_an_error(command: str, unbuffered: str, tmp_path: Path) -> None:
    done = shell(f"{command} >/dev/full", tmp_path, PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr.count("\n")) == (6, 1)
    assert done.stderr.startswith("error: thera: No space left on device; ")


# --- terminals --------------------------------------------------------------------------------------------------------


def on_a_terminal(*arguments: str, **environment: str) -> tuple[int, str]:
    """Return the status, and what the command shows on a terminal."""
    terminal, its_end = pty.openpty()
    process = subprocess.Popen(
        [*THERA, *arguments], stdin=its_end, stdout=its_end, stderr=its_end, env=environ(**environment)
    )
    os.close(its_end)
    shown = b""
    with contextlib.suppress(OSError):  # the process has ended
        while read := os.read(terminal, 65536):
            shown += read
    os.close(terminal)
    return process.wait(60), shown.decode()


def test_a_terminal_that_is_closed_stops_no_work() -> None:
    code = """
import sys
from thera.__main__ import open_streams
open_streams()
print("begun", flush=True)
sys.stdin.readline()
for stream in (sys.stdout, sys.stderr):
    print("dropped", file=stream, flush=True)
"""
    terminal, its_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=its_end, stderr=its_end, env=environ()
    )
    os.close(its_end)
    assert os.read(terminal, 5) == b"begun"
    os.close(terminal)
    process.communicate(b"\n", timeout=60)
    assert process.returncode == 0


def test_there_are_no_colours_where_nobody_wants_them() -> None:
    colour = r"\x1b\[[0-9;]*(3[0-7]|9[0-7])m"
    status, shown = on_a_terminal("predict", "--help", TERM="xterm-256color", NO_COLOR="")
    assert status == 0 and re.search(colour, shown)
    status, shown = on_a_terminal("predict", "--help", TERM="xterm-256color", NO_COLOR="1")
    assert status == 0 and "Decision" in shown and not re.search(colour, shown)


# --- completion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("thera re", ["remove-member", "report", "recipes"]),
        ("thera --v", ["--version"]),
        ("thera train-member --l", ["--labels", "--label-column", "--log", "--lr", "--loss", "--label-smoothing"]),
        ("thera predict --combine ", ["mean", "vote"]),
        ("thera predict --images i", []),  # bash completes the names of files
    ],
)
def test_bash_completes(typed: str, expected: list[str], tmp_path: Path) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = shell("thera", tmp_path, _THERA_COMPLETE="complete_bash", **words)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, expected, "")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("thera repo", "\"report\":\"Print the members'' HTER and the stack''s.\""),
        ("thera train-member --lr", '"--lr":"Raise the learning rate of AdamW to this peak. [>0; default\\\\: 0.002]"'),
        ("thera predict --combine m", '"mean"'),
    ],
)
def test_zsh_completes_and_describes(typed: str, expected: str, tmp_path: Path) -> None:
    done = shell("thera", tmp_path, _THERA_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS=typed)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"_arguments '*: :(({expected}))'\n", "")


def test_bash_loads_the_completion(tmp_path: Path) -> None:
    done = shell('eval "$(_THERA_COMPLETE=source_bash thera)"; complete -p thera', tmp_path)
    assert done.stdout == "complete -o default -F _thera_completion thera\n"


def test_a_completion_imports_nothing_heavy(tmp_path: Path) -> None:
    code = """
import sys
from thera.__main__ import main
try:
    main()
finally:
    print([name for name in ("torch", "numpy", "rich", "pandas", "ensemble.commands") if sys.modules.get(name)])
"""
    (tmp_path / "code.py").write_text(code)
    words = {"COMP_WORDS": "thera predict --com", "COMP_CWORD": "2"}
    done = shell(f'"{sys.executable}" code.py', tmp_path, _THERA_COMPLETE="complete_bash", **words)
    assert done.stdout == "--combine\n[]\n"
