"""README and docs: every command in them parses, snippets run, the references are complete, and the site builds."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from tiny import write_tiny

from ensemble import options
from ensemble.cli import COMMANDS

# Networks of a few updates differ from fold to fold.
pytestmark = pytest.mark.filterwarnings("ignore:the fold models differ:UserWarning")

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:^ {4}|`)(?:taskset -c 0 )?thera ([a-z][a-z-]*)([^`\n]*)", re.MULTILINE)
"""A command of thera in a block of code or between backticks: its name and the rest of the line."""

EXTERNAL = re.compile(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="?(?:https?:)?//[^">\s]+')
"""An element that would load something from another server."""


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run_thera(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "thera", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import reference

    return reference


# --- the commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_of_a_page_exist(page: Path) -> None:
    for name, rest in COMMAND.findall(text_of(page)):
        assert name in COMMANDS, f"{page.name}: thera {name}"
        built = options.build_command(name, "", lambda **_: None, rich=False)
        known = {option for parameter in built.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", rest.split("#")[0]))
        assert used <= known | {"--help"}, f"{page.name}: thera {name}{rest}"


def blocks_of_commands() -> list[str]:
    lines = [line.split("#")[0].rstrip() for page in PAGES for line in text_of(page).splitlines()]
    return sorted({line.strip() for line in lines if re.match(r" {4}thera [a-z]", line)})


@pytest.mark.parametrize("line", blocks_of_commands())
def test_a_command_line_in_a_block_of_code_is_complete(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    built = options.build_command(name, "", lambda **_: None, rich=False)
    values = built.make_context(name, arguments).params
    options.checked(name, values)  # raises ConfigError where a value is missing or wrong


def test_every_command_is_documented() -> None:
    readme = text_of(ROOT / "README.md")
    assert [name for name in COMMANDS if f"`thera {name}`" not in readme] == []


def test_own_data_of_the_readme_runs(tmp_path: Path) -> None:
    labels = write_tiny(tmp_path / "data", 40)
    for row, label in enumerate(labels.tolist(), 1):
        target = tmp_path / "photos" / ("hat", "nohat")[label] / f"IMG_{row}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "img" / f"{row:03d}.png").rename(target)
    truth = write_tiny(tmp_path / "new", 12, seed=1)
    (tmp_path / "new_photos").mkdir()
    rows = ["name,label"]
    for path, label in zip(sorted((tmp_path / "new" / "img").iterdir()), truth.tolist(), strict=True):
        path.rename(tmp_path / "new_photos" / f"new {path.name}")
        rows.append(f"new {path.name},{('hat', 'nohat')[label]}")
    (tmp_path / "truth.csv").write_text("\n".join(rows) + "\n")
    section = text_of(ROOT / "README.md").split("## Your own data")[1].split("\n## ")[0]
    lines = [line.strip() for line in section.splitlines() if line.startswith("    thera ")]
    assert len(lines) == 4
    for line in lines:
        _, *arguments = shlex.split(line)
        small = ["--folds", "2", "--device", "cpu", "--jobs", "1", "--time", "40s"]
        done = run_thera(*arguments, *(small if arguments[0] == "fit" else []), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    labelled = (tmp_path / "checkpoints" / "photos" / "labels.csv").read_text().splitlines()
    assert labelled[0] == "name,label" and len(labelled) == 13


READMES = [*PAGES, *sorted((ROOT / "tests").rglob("README.md")), *sorted((ROOT / "checkpoints").glob("*/README.md"))]


@pytest.mark.parametrize("page", READMES, ids=lambda page: str(page.relative_to(ROOT)))
def test_scripts_of_a_page_exist(page: Path) -> None:
    text = text_of(page)
    scripts = set(re.findall(r"python\s+((?:tests|docs)/[\w/]+\.py)", text))
    if page.parent.name == "benchmarks":  # the table of this page names the scripts by their paths in its folder
        scripts |= {f"tests/benchmarks/{name}" for name in re.findall(r"`([\w/]+\.py)`", text.split("\n## ")[0])}
    assert [script for script in sorted(scripts) if not (ROOT / script).is_file()] == []


# --- Python -----------------------------------------------------------------------------------------------------------


def test_snippets_of_the_python_page_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    blocks = python_blocks(text_of(ROOT / "docs" / "python.md"))
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) >= 5


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    y = write_tiny(tmp_path, 40)
    images = np.stack([cv2.imread(str(path))[..., ::-1] for path in sorted((tmp_path / "img").iterdir())])
    section = text_of(ROOT / "README.md").split("## Python")[1].split("\n## ")[0]
    code = "\n".join(line[4:] for line in section.splitlines() if line.startswith("    "))
    names: dict[str, object] = {"images": images, "labels": y, "new_images": images[:4]}
    exec(compile(code.replace("epochs=10", "epochs=1"), "README.md", "exec"), names)
    assert len(code.splitlines()) == 5


# --- the references and the site --------------------------------------------------------------------------------------


def test_the_command_reference_has_every_command_and_option(reference: object) -> None:
    text = reference.command_reference()  # type: ignore[attr-defined]
    for name in COMMANDS:
        chapter = text.split(f"## thera {name}\n")[1].split("\n## ")[0]
        built = options.build_command(name, "", lambda **_: None, rich=False)
        shown = [each for each in built.params if each.get_help_record(typer.Context(built))]
        assert [each.opts[0] for each in shown if each.opts[0].startswith("--") and each.opts[0] not in chapter] == []


def test_the_config_reference_has_every_model_and_key(reference: object) -> None:
    text = reference.config_reference()  # type: ignore[attr-defined]
    taken = {part.model for parts in options.PARTS.values() for part in parts if part.model.__name__[0] != "_"}
    for model in taken:
        chapter = text.split(f"## {model.__name__}\n")[1].split("\n## ")[0]
        assert [key for key in model.model_fields if f"| `{key}` |" not in chapter] == []


def test_links_between_pages_hold_on_the_site(reference: object) -> None:
    moved = reference.site_links("[a](docs/speed.md#x) [b](tests/benchmarks/README.md)", "index.md")  # type: ignore[attr-defined]
    assert moved == "[a](speed.md#x) [b](measurements.md)"
    assert reference.site_links("[c](../README.md)", "speed.md") == "[c](index.md)"  # type: ignore[attr-defined]


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        loads = [each for each in EXTERNAL.findall(text_of(page)) if 'rel="canonical"' not in each]
        assert loads == [], page.name


def test_the_readme_is_short() -> None:
    text = text_of(ROOT / "README.md")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1300
