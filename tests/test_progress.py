"""Progress off a terminal and on one, and the two ways in which a signal ends the work."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from ensemble import progress as module
from ensemble.errors import Stopped
from ensemble.progress import hidden, progress, say, stoppable


class Clock:
    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    monkeypatch.setattr(Clock, "now", 1000.0)
    return Clock()


def python(code: str) -> subprocess.CompletedProcess[str]:
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=buffered)


# --- plain lines ------------------------------------------------------------------------------------------------------


def test_off_a_terminal_a_line_a_minute_and_one_at_the_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress(100, "decode") as bar:
        for _ in range(100):
            Clock.now += 1.3
            bar.advance()
    assert capsys.readouterr().err.splitlines() == [
        "decode: 47 of 100 images in 1:01, 1:09 left",
        "decode: 94 of 100 images in 2:02, 0:08 left",
        "decode: 100 of 100 images in 2:10",
    ]


def test_off_a_terminal_each_note_is_a_line_with_the_times(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress(40, "cnn, 2 folds") as bar:
        bar.say("member cnn fold 1 goes on at epoch 2 of 2")
        bar.skip(10)
        for epoch in (1, 2):
            Clock.now += 20
            bar.advance(10)
            bar.note(f"cnn fold 0 epoch {epoch}/2 loss 0.300")
        Clock.now += 20
        bar.advance(10)
        bar.note("cnn fold 1 epoch 2/2 loss 0.200")
    assert capsys.readouterr().err.splitlines() == [
        "member cnn fold 1 goes on at epoch 2 of 2",
        "cnn fold 0 epoch 1/2 loss 0.300 at 0:20, 0:40 left",
        "cnn fold 0 epoch 2/2 loss 0.300 at 0:40, 0:20 left",
        "cnn fold 1 epoch 2/2 loss 0.200 at 1:00",
        "cnn, 2 folds: 40 of 40 images in 1:00",
    ]


def test_a_short_bar_says_one_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress(3, "train", "folds") as bar:
        bar.advance(3)
    assert capsys.readouterr().err == "train: 3 of 3 folds in 0:00\n"


def test_hidden_progress_prints_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with hidden(), progress(2, "train", "folds") as bar:
        Clock.now += 4000
        bar.advance(2)
        bar.note("a note")
        bar.say("a line")
    assert capsys.readouterr().err == ""
    with progress(2, "train", "folds") as bar:
        bar.advance(2)
    assert capsys.readouterr().err == "train: 2 of 2 folds in 0:00\n"


def test_the_last_line_is_not_said_twice(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress(2, "train", "folds") as bar:
        for _ in range(2):
            Clock.now += 4000
            bar.advance()
    assert capsys.readouterr().err.splitlines() == [
        "train: 1 of 2 folds in 1:06:40, 1:06:40 left",
        "train: 2 of 2 folds in 2:13:20",
    ]


def test_a_bar_that_never_moved_and_one_that_failed_say_where_they_are(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress(0, "nothing"):
        pass
    with pytest.raises(ZeroDivisionError), progress(4, "broken") as bar:
        bar.advance()
        raise ZeroDivisionError
    assert capsys.readouterr().err.splitlines() == [
        "nothing: 0 images in 0:00",
        "broken: 1 of 4 images in 0:00, 0:00 left",
    ]
    assert module._open == []


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")


def test_bars_nest_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    on_terminal(monkeypatch)
    with progress(2, "outer", "folds") as outer, progress(5, "inner") as inner:
        inner.advance(5)
        outer.advance()
        assert (outer._tqdm.pos, inner._tqdm.pos) == (0, -1)
        assert (outer._tqdm.leave, inner._tqdm.leave) == (True, False)
        say("a note")
    shown = capsys.readouterr().err
    assert "outer" in shown
    assert "5/5" in shown
    assert "a note\n" in shown


@pytest.mark.parametrize("name", ["small_cnn_smooth", "tf_efficientnetv2_b3.in21k_ft_in1k"])
def test_a_bar_fits_80_columns_and_shows_epoch_loss_and_hter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    monkeypatch.setenv("TERM", "xterm")
    reached = "fold 0 epoch 3/20 loss 0.123 HTER 0.145"
    shown = b""
    with open(slave, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress(1_000_000, f"{name}, 5 folds") as bar:
            bar.advance(400_000)
            bar._tqdm.refresh()
            bar.note(f"{name} {reached}")
        while select.select([master], [], [], 0)[0]:  # a read may return a part
            shown += os.read(master, 100_000)
    os.close(master)
    lines = re.split("[\r\n]+", shown.decode())
    assert 70 < max(map(len, lines)) <= 80
    (counts,) = {line for line in lines if " 400000/1000000 images " in line}  # a slow machine draws it twice
    assert counts.startswith(name[:20])
    last = next(line for line in reversed(lines) if line.strip())
    assert last.startswith(" 40% ") and reached in last
    assert (f"{name} fold" in last) == (len(name) < 20)


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    on_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with progress(2, "decode") as bar:
        bar.advance(2)
    assert capsys.readouterr().err == "decode: 2 of 2 images in 0:00\n"


def test_a_line_is_one_line_and_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\nb \x1b[31m")
    assert capsys.readouterr().err == "a\\nb \\x1b[31m\n"


def test_a_closed_pipe_stops_no_work() -> None:
    code = """
import os, sys
from ensemble.progress import progress, say
read, write = os.pipe()
os.close(read); os.dup2(write, 2)
say("nobody reads this"); say("nor this")
with progress(3, "work") as bar:
    bar.advance(3)
print("done")
"""
    done = python(code)
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_work_at_the_next_step(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    reached = []
    with pytest.raises(Stopped) as caught, stoppable(), progress(9, "work") as bar:
        bar.advance()
        os.kill(os.getpid(), number)
        reached.append("after the signal")
        bar.advance()
        reached.append("after the step")
    assert reached == ["after the signal"]
    assert bar.done == 1
    message = f"stopped by {number.name}, what is finished is saved; run the same command again to go on"
    assert str(caught.value) == f"thera: {message}"
    assert signal.getsignal(number) == before
    with stoppable(), progress(1, "anew") as bar:
        bar.advance()


def test_a_bar_is_not_opened_after_a_signal() -> None:
    with pytest.raises(Stopped), stoppable():
        with progress(1, "first"):
            os.kill(os.getpid(), signal.SIGTERM)
        with progress(1, "second"):
            raise AssertionError("opened")
    assert module._open == []


def test_where_no_bar_is_open_a_signal_stops_the_work_at_once() -> None:
    with pytest.raises(Stopped), stoppable():
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("went on")


def test_what_a_library_makes_of_a_signal_is_a_stop_still() -> None:
    with pytest.raises(Stopped), stoppable():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except Exception as error:
            raise OSError("a download failed") from error


def test_a_second_signal_ends_the_process_at_once() -> None:
    code = """
import os, signal
from ensemble.progress import progress, stoppable
with stoppable(), progress(1, "work"):
    os.kill(os.getpid(), signal.SIGINT)
    print("one", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("two", flush=True)
"""
    done = python(code)
    line = "stopped by SIGTERM, what is finished is saved; run the same command again to go on\n"
    assert (done.stdout, done.stderr, done.returncode) == ("one\n", line, 75)
