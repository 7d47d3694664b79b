"""The progress of jobs on a cluster: each step counts once, whatever is repeated or lost."""

from __future__ import annotations

from typing import Any

import pytest

from ensemble.cluster import display
from ensemble.cluster.display import Display, Report, Subject

SUBJECTS = [Subject("lenet", "fold 0", 10), Subject("lenet", "fold 1", 10), Subject("resnet18", "fold 0", 20)]


class Shown:
    """A bar that keeps what it is given."""

    on_terminal = False

    def __init__(self) -> None:
        self.advanced, self.skipped, self.notes, self.said = 0, 0, list[str](), list[str]()

    def advance(self, n: int = 1) -> None:
        self.advanced += n

    def skip(self, n: int) -> None:
        self.skipped += n

    def note(self, text: str) -> None:
        self.notes.append(text)

    def say(self, line: str) -> None:
        self.said.append(line)


def report(attempt: int, advanced: int, skipped: int = 0, *notes: str, place: str = "a") -> Report:
    return Report(attempt, place, advanced, skipped, tuple(("note", note) for note in notes))


def test_a_retry_counts_once_and_lost_reports_do_not_matter() -> None:
    bar = Shown()
    shown = Display(SUBJECTS, bar)  # type: ignore[arg-type]
    shown.take(0, report(0, 4, 0, "epoch 1"))
    shown.take(0, report(0, 7, 0, "epoch 1", "epoch 2"))
    assert (bar.advanced, bar.skipped, bar.notes) == (7, 0, ["epoch 1 on a", "epoch 2 on a"])
    assert shown.end(0) == "a"
    shown.take(0, report(1, 0, 4, place="b"))  # it goes on from a saved state, which is behind
    shown.take(0, report(1, 2, 4, "epoch 2", place="b"))
    assert (bar.advanced, bar.skipped, shown.done[0]) == (7, 0, 7)
    shown.take(0, report(1, 6, 4, "epoch 2", "epoch 3", place="b"))
    shown.take(0, report(1, 2, 4, "epoch 2", place="b"))  # an earlier report arrives late
    shown.take(0, report(1, 6, 4, "epoch 2", "epoch 3", place="b"))
    assert (bar.advanced, shown.done[0], bar.notes[2:]) == (10, 10, ["epoch 2 on b", "epoch 3 on b"])
    shown.take(1, report(0, 3, 6))  # a former command had made 6 steps
    assert (bar.advanced, bar.skipped) == (13, 6)


def test_a_line_says_what_runs_where(monkeypatch: pytest.MonkeyPatch) -> None:
    bar, now = Shown(), [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    shown = Display(SUBJECTS, bar)  # type: ignore[arg-type]
    shown.take(0, report(0, 5, place="a"))
    shown.take(1, report(0, 1, place="b"))
    shown.take(2, report(0, 1, place="b"))
    shown.refresh()
    assert bar.said == []
    now[0] = 61.0
    shown.refresh()
    assert bar.said == ["lenet 30%: fold 0 on a, fold 1 on b; resnet18 5%: fold 0 on b"]
    shown.end(0)
    shown.end(1)
    now[0] = 122.0
    shown.refresh()
    assert bar.said[1:] == ["resnet18 5%: fold 0 on b"]


def test_on_a_terminal_each_member_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    bar, lines = Shown(), dict[str, Shown]()
    bar.on_terminal = True

    class Line:
        def __init__(self, total: int, what: str) -> None:
            lines[what] = self.bar = Shown()

        def __enter__(self) -> Any:
            return self.bar

        def __exit__(self, *_: object) -> None:
            self.bar.said.append("closed")

    monkeypatch.setattr(display, "progress", Line)
    shown = Display(SUBJECTS, bar)  # type: ignore[arg-type]
    shown.take(2, report(0, 5, place="b"))
    shown.refresh()
    shown.refresh()
    assert lines["resnet18"].notes == ["resnet18: fold 0 on b"] and lines["resnet18"].advanced == 5
    assert lines["lenet"].notes == ["lenet: waits"] and lines["lenet"].advanced == 0
    shown.close()
    assert [line.said for line in lines.values()] == [["closed"], ["closed"]]


def test_many_jobs_of_a_member_are_counted() -> None:
    shown = Display([Subject("lenet", f"fold {i}", 1) for i in range(9)], Shown())  # type: ignore[arg-type]
    for i in range(9):
        shown.take(i, report(0, 0))
    assert shown._where("lenet").endswith("fold 5 on a, 3 more")
