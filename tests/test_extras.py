"""The extras: each command says in one line which one it lacks; the table of modules is that of pyproject.toml."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import hiding
import pytest

from ensemble import errors, extras
from ensemble.cli import COMMANDS

WITHOUT = {"recipes", "remove-member", "serve"}
"""Commands that do not need the training extra; `predict` does with --run alone."""

ARGUMENTS = {
    "fit": ["photos", "--run", "r"],
    "explore": ["photos"],
    "train-member": ["--arch", "resnet18", "--images", "photos", "--run", "r"],
    "fit-stacker": ["--run", "r"],
    "predict": ["--run", "r", "photos"],
    "evaluate": ["p.csv", "--labels", "l.csv"],
    "compare": ["a", "b"],
    "report": ["r"],
    "clean": ["r"],
    "distil": ["r"],
    "verify": ["r"],
    "run": ["c.yaml"],
    "trial": ["c.yaml"],
    "demo": [],
    "bench": [],
    "export": ["r"],
    "push": ["r", "owner/name"],
}
"""Arguments that are in order as far as they are read before the refusal."""

OF_TARGETS = {
    name: ["t" if argument == "r" else argument for argument in ARGUMENTS[name]]
    for name in ("fit-stacker", "predict", "report", "verify")
}
"""The commands that have a form for several targets, with a folder of them."""

EACH = """
import contextlib, io, json, time
from ensemble.cli import main
for name, arguments in json.loads(sys.argv[1]):
    out, started = io.StringIO(), time.perf_counter()
    with contextlib.redirect_stderr(out):
        try:
            status = main([name, *arguments])
        except SystemExit as end:
            status = end.code
    print(json.dumps([name, status, out.getvalue(), time.perf_counter() - started]))
"""
"""Runs each command in one process, and prints its exit status, what it says, and its seconds."""


def modules(requirements: list[str], project: dict[str, list[str]]) -> set[str]:
    """Return the modules of requirements such as scikit-learn>=1.6 and thera[train]."""
    names = set()
    for requirement in requirements:
        if inner := re.fullmatch(r"thera\[(.*)\]", requirement):
            names |= {name for extra in inner[1].split(",") for name in modules(project[extra], project)}
        else:
            name = re.split("[<>=]", requirement)[0]
            names.add("sklearn" if name == "scikit-learn" else name.replace("-", "_"))
    return names


def test_the_modules_of_each_extra_are_those_of_the_project() -> None:
    project = tomllib.loads((hiding.ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    for extra, names in extras.EXTRAS.items():
        assert set(names) == modules(optional[extra], optional), extra
    assert not modules(project["dependencies"], {}) & set(extras.TRAINING)


def test_every_other_command_names_the_training_extra(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t/targets.json").write_text("{}")
    (tmp_path / "c.yaml").write_text("run: r\nfolds: 2\ndata: {images: i, labels: l}\nmembers: [{arch: resnet18}]\n")
    before = sorted(tmp_path.rglob("*"))
    assert set(ARGUMENTS) | WITHOUT == set(COMMANDS)
    given = [*ARGUMENTS.items(), *OF_TARGETS.items()]
    done = hiding.run(EACH, json.dumps(given), folder=tmp_path)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, *_ in answers] == [name for name, _ in given], done.stderr
    for name, status, said, seconds in answers:
        option = " --run" if name == "predict" else ""
        names = "torch, timm, albumentations, scipy, sklearn …"
        exports = name in ("export", "push")
        lacks = f"the packages {names}" if exports else f"the training extra (not installed: {names})"
        extra = "export" if exports else "train"
        assert said == f"error: thera {name}{option}: needs {lacks}; pip install 'thera[{extra}]'\n"
        assert status == 6
        assert seconds < 5, name  # a busy machine; alone each takes some milliseconds
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("code", "where"),
    [
        ("thera.fit(thera.FitConfig(images='photos'))", "thera fit"),
        ("thera.evaluate('p.csv', 'l.csv')", "thera evaluate"),
        ("thera.TheraClassifier()", "thera.TheraClassifier"),
        ("from thera import ThresholdStacker", "thera.ThresholdStacker"),
    ],
)
def test_so_does_python(code: str, where: str, tmp_path: Path) -> None:
    done = hiding.run(f"import thera\n{code}", folder=tmp_path)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ensemble.errors.ResourceError: {where}: needs the training extra (not installed: torch, ")


def test_what_needs_no_extra_works_without(tmp_path: Path) -> None:
    done = hiding.run(hiding.COMMAND, "recipes", folder=tmp_path)
    assert done.returncode == 0 and "simple-cnn" in done.stdout, done.stderr
    code = "import thera; print(thera.fit_threshold([-2.0, 2.0], [0, 1]))"
    assert hiding.run(code, folder=tmp_path).stdout == "0.0\n"


def test_one_missing_module_of_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "cleanlab" else object())
    with pytest.raises(errors.ResourceError, match=r"needs the training extra \(not installed: cleanlab\); pip"):
        extras.refuse_missing("train", "thera fit")
    extras.refuse_missing("runtime", "prediction")
