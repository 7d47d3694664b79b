"""Fault 26 of the table: names that are HTML or Markdown stay text in a report."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble.reports.documents import report_markdown
from ensemble.reports.table import Table
from ensemble.results import ReportResult

HOSTILE = "<img src=x> ![a](http://b) c|d"


def test_a_hostile_name_is_text_in_every_part_of_a_table() -> None:
    shown = Table(HOSTILE, (HOSTILE, "n"), ((HOSTILE, HOSTILE),), (HOSTILE,)).markdown()
    assert shown.count("&lt;img src=x> ![a]\\(http://b) c") == 5
    assert "<" not in shown and "](" not in shown


def test_a_hostile_name_is_text_in_the_title_and_the_notes_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble.reports.documents.report_tables", lambda _: [])
    monkeypatch.setattr("ensemble.reports.documents.report_summary", lambda _: Table("In short", (), (), ()))
    shown = report_markdown(ReportResult(Path("x") / HOSTILE.replace("/", "_"), 4, 2, (), data_notes=(HOSTILE,)))
    assert shown.startswith("# Run &lt;img src=x> ![a]\\(http:__b) c")
    assert "\nData: &lt;img src=x> ![a]\\(http://b) c|d\n" in shown
    assert "<" not in shown and "](" not in shown
