"""`thera demo --people` draws people and trains nothing."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from ensemble.cli import main
from ensemble.commands.run import demo_people
from ensemble.data.synthetic_people import bayes_rates


def test_people_are_drawn_and_their_bayes_rates_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["demo", "--people", "6", "--run", str(tmp_path / "people")])
    out = capsys.readouterr().out
    with (tmp_path / "people/people.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 42
    assert sorted(path.name for path in (tmp_path / "people").iterdir()) == ["images", "people.csv", "people.json"]
    assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 80
    for name, best in bayes_rates().items():
        (line,) = (line for line in out.splitlines() if line.split()[:1] == [name] and line.split()[1:2] != ["joins"])
        assert line.split()[3:] == [f"{rate:.4f}" for rate in (best.error, best.mean_error, best.macro_f1)]
    assert demo_people(6, tmp_path / "people").rows[3].classes == 18


def test_too_few_people_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--people", "5", "--run", str(tmp_path / "people")])
    assert stopped.value.code == 2 and "--people must be >= 6; got 5" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
