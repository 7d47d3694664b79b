"""The rules of the house, read off the sources: who imports whom, and what nobody does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "ensemble"
FILES = sorted(HOUSE.rglob("*.py"))
WINGS = ("data", "members", "decision", "reports", "bench")
FOR_ALL = {"config", "errors", "progress"}
"""Rooms beside the wings that each wing may use."""

OWNERS = {
    "torch": ("members/", "bench/"),
    "torchvision": ("members/",),
    "timm": ("members/", "bench/"),
    "albumentations": ("members/", "bench/"),
    "cleanlab": ("decision/label_issues.py",),
    "sklearn": ("decision/", "reports/", "bench/"),
    "matplotlib": ("reports/",),
    "jinja2": ("reports/",),
    "safetensors": ("storage.py",),
    "yaml": ("config.py",),
    "pydantic": ("config.py",),
    "typer": ("cli.py",),
    "tqdm": ("progress.py",),
}
"""Who alone may import a library."""

PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def name_of(path: Path) -> str:
    return path.relative_to(HOUSE).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(node: ast.AST, lazy: bool = True) -> Iterator[str]:
    """Return the dotted names that are imported; unless `lazy`, only those of a plain import of the module."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif lazy or not (isinstance(child, ast.FunctionDef) or _for_types(child)):
            yield from imports(child, lazy)


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def rooms(path: Path, lazy: bool = True) -> set[str]:
    """Return the files of the house that a file imports, as `data/source.py`."""
    found = set()
    for dotted in imports(tree(path), lazy):
        parts = dotted.split(".")
        if parts[0] != "ensemble":
            continue
        for end in (len(parts), len(parts) - 1):
            stem = HOUSE.joinpath(*parts[1:end])
            if stem.with_suffix(".py").is_file():
                found.add(name_of(stem.with_suffix(".py")))
                break
            if (stem / "__init__.py").is_file():
                found.add(name_of(stem / "__init__.py"))
                break
        else:
            raise AssertionError(f"{name_of(path)} imports {dotted}, which is no file")
    return found


def test_the_reading_of_imports_sees_what_there_is() -> None:
    assert {"errors.py", "config.py", "members/sampling.py"} <= rooms(HOUSE / "members" / "training.py")
    assert {"errors.py", "progress.py"} <= rooms(HOUSE / "members" / "processes.py")
    assert "data/folds.py" in rooms(HOUSE / "pipeline.py")
    assert "data/folds.py" not in rooms(HOUSE / "pipeline.py", lazy=False)
    assert "decision/rates.py" in rooms(HOUSE / "decision" / "stacker.py")


def test_the_wings_are_those_of_the_plan() -> None:
    folders = {path.name for path in HOUSE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(WINGS)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_library_is_imported_by_its_owners_alone(path: Path) -> None:
    own, lazy = tree(path), name_of(path) == "storage.py"
    if lazy:  # tensors pass through here, but torch is imported only to read or write one
        assert not {"torch", "safetensors"} & {dotted.split(".")[0] for dotted in imports(own, lazy=False)}
    for library in {dotted.split(".")[0] for dotted in imports(own)} & set(OWNERS):
        allowed = (*OWNERS[library], *(("storage.py",) if library == "torch" else ()))
        assert name_of(path).startswith(allowed), f"{library} is imported in {name_of(path)}"


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name in WINGS], ids=name_of)
def test_a_wing_imports_only_where_data_has_passed(path: Path) -> None:
    wing = path.parent.name
    allowed = set(WINGS[: WINGS.index(wing) + 1]) - ({"members"} if wing == "decision" else set())
    for room in rooms(path):
        top = room.split("/")[0].removesuffix(".py")
        assert top in allowed | FOR_ALL, f"{name_of(path)} imports {room}"


@pytest.mark.parametrize(
    ("room", "may"),
    [
        ("errors.py", set()),
        ("config.py", {"errors.py"}),
        ("progress.py", {"errors.py"}),
        ("storage.py", {"errors.py"}),
        ("runs.py", {"errors.py", "storage.py"}),
    ],
)
def test_the_ground_floor_stands_on_little(room: str, may: set[str]) -> None:
    assert rooms(HOUSE / room) <= may


def test_only_the_verbs_above_import_the_pipeline_and_nothing_imports_the_command() -> None:
    above = ["cli.py", "evaluation.py", "examples.py"]
    assert [name_of(path) for path in FILES if "pipeline.py" in rooms(path)] == above
    assert [name_of(path) for path in FILES if "evaluation.py" in rooms(path)] == ["cli.py"]
    assert [name_of(path) for path in FILES if "examples.py" in rooms(path)] == ["cli.py"]
    assert [name_of(path) for path in FILES if "cli.py" in rooms(path)] == []
    verbs = ["engine.py", "evaluation.py", "examples.py", "pipeline.py", "prediction.py", "trainer.py"]
    assert [name_of(path) for path in FILES if "runs.py" in rooms(path)] == verbs
    assert [name_of(path) for path in FILES if "prediction.py" in rooms(path)] == ["engine.py", "pipeline.py"]


STOREYS = (
    {"intervals.py", "label_issues.py", "mixture.py", "rates.py", "shift.py"},
    {"comparison.py", "floor.py", "stacker.py", "threshold.py"},
    {"cascade.py", "rules.py"},
    {"refit.py"},
    {"assessment.py", "averaging.py"},
    {"decision.py"},
)
"""The rooms of decision, from the ground up; a room stands on `rates` and on storeys below its own."""


def test_each_room_of_decision_stands_on_those_below() -> None:
    assert set.union(*STOREYS) == {path.name for path in FILES if path.parent.name == "decision"} - {"__init__.py"}
    storey = {f"decision/{room}": height for height, rooms_ in enumerate(STOREYS) for room in rooms_}
    for room, height in storey.items():
        for used in rooms(HOUSE / room) & set(storey) - {"decision/rates.py"}:
            assert storey[used] < height, f"{room} imports {used}"


def test_decision_takes_nothing_of_data_but_the_folds() -> None:
    taken = {room for path in FILES if path.parent.name == "decision" for room in rooms(path) if room[:5] == "data/"}
    assert taken == {"data/folds.py"}
    assert [name_of(path) for path in FILES if "decision/label_issues.py" in rooms(path)] == [
        "decision/floor.py",
        "trainer.py",
    ]


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name not in {"members", "bench"}], ids=name_of)
def test_what_is_slow_to_load_is_imported_where_it_is_used(path: Path) -> None:
    slow = {
        "torch",
        "timm",
        "albumentations",
        "cleanlab",
        "pandas",
        "sklearn",
        "scipy",
        "matplotlib",
        "pyarrow",
        "rich",
    }
    assert not slow & {dotted.split(".")[0] for dotted in imports(tree(path), lazy=False)}


def test_there_are_no_cycles() -> None:
    graph = {name_of(path): rooms(path) - {name_of(path)} for path in FILES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)


def test_the_command_and_the_pipeline_start_light() -> None:
    assert rooms(HOUSE / "cli.py", lazy=False) == {"errors.py"}
    for room in ("engine.py", "evaluation.py", "examples.py", "pipeline.py", "prediction.py", "trainer.py"):
        assert not any(used.startswith("members/") for used in rooms(HOUSE / room, lazy=False))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_catch_alls_and_no_pickle(path: Path) -> None:
    assert not {path.stem, path.parent.name} & {"utils", "common", "helpers"}
    for dotted in imports(tree(path)):
        assert not PICKLES & set(dotted.split(".")), f"{name_of(path)} imports {dotted}"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save")}, name_of(path)
        if isinstance(node, ast.keyword):
            assert node.arg != "allow_pickle" or ast.unparse(node.value) == "False", name_of(path)


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "cli.py"], ids=name_of)
def test_only_the_command_prints_and_exits(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in {"print", "exit", "quit", "sys.exit"}, f"{name_of(path)}:{node.lineno}"
        if isinstance(node, ast.Raise) and node.exc is not None:
            assert "SystemExit" not in ast.unparse(node.exc), f"{name_of(path)}:{node.lineno}"
