"""The rules of the house, read off the sources: which wing imports which, and what no file does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "ensemble"
FILES = sorted(HOUSE.rglob("*.py"))

LAYERS = (
    {"errors"},
    {"extras", "hub_refusals"},
    {"config_fields"},
    {"predict_config"},
    {"config", "progress", "machine", "runs/files"},
    {"runs/locks"},
    {"config_reading", "fit_config", "bench_config", "clean_config", "explore_config", "report_config", "serve_config"},
    {"export_config", "push_config", "distil_config"},
    {"data"},
    {"runs"},
    {"runtime"},
    {"members", "decision"},
    {"prediction_results", "clean_results", "export_results", "push_results"},
    {"results", "bench_results", "explore_results"},
    {"distil_results"},
    {"reports", "bench", "cluster"},
    {"commands"},
    {"threshold_stacker"},
    {"estimator_images"},
    {"estimator"},
    {"command_options"},
    {"options"},
    {"cli"},
    {"__main__"},
)
"""Files and wings, the lowest first. A file imports from its own wing and from lower layers, so that two wings of one
layer do not know each other. The package's own `__init__` names the public face of all layers, lazily."""

OWNERS = {
    "torch": ("members/", "bench/", "cluster/", "runs/files.py"),
    "torchvision": ("members/",),
    "tensorboard": ("members/tensorboard_log.py",),
    "timm": ("members/", "bench/"),
    "albumentations": ("members/",),
    "cleanlab": ("decision/label_issues.py",),
    "sklearn": ("decision/", "data/pixel_maps.py", "estimator.py", "threshold_stacker.py"),
    "pandas": ("data/", "runs/", "commands/", "estimator.py"),
    "matplotlib": ("reports/",),
    "jinja2": ("reports/html.py",),
    "safetensors": ("runs/files.py",),
    "huggingface_hub": ("members/hub_", "reports/model_card.py", "commands/push.py"),
    "filelock": ("runs/locks.py",),
    "onnx": ("members/onnx_",),
    "onnxscript": ("members/onnx_graph.py",),
    "onnxruntime": ("runtime/classifier.py",),
    "openvino": ("runtime/openvino_file.py",),
    "fastapi": ("runtime/server.py",),
    "starlette": ("runtime/server.py",),
    "uvicorn": ("commands/serve.py",),
    "yaml": ("config_reading.py",),
    "pydantic": (
        "config.py",
        "config_fields.py",
        "fit_config.py",
        "explore_config.py",
        "clean_config.py",
        "export_config.py",
        "distil_config.py",
        "runtime/facts.py",
        "runtime/server.py",
        "config_reading.py",
        "predict_config.py",
        "push_config.py",
        "command_options.py",
        "options.py",
        "runs/files.py",
    ),
    "pydantic_core": ("decision/objective.py",),
    "typer": ("cli.py", "options.py"),
    "tqdm": ("progress.py",),
    "ray": ("cluster/",),
}
"""The files and wings that may import a library; a change of library stays within them."""

COMPUTING = ("members/", "bench/", "cluster/", "estimator", "threshold_stacker")
"""Wings and files that import what is slow to load at their top."""

SLOW = {
    "torch",
    "tensorboard",
    "timm",
    "albumentations",
    "cleanlab",
    "pandas",
    "sklearn",
    "scipy",
    "matplotlib",
    "pyarrow",
    "rich",
    "jinja2",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "ray",
}
"""Libraries that take long to load. Outside the wings that consist of them they are imported where they are used."""

PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def name_of(path: Path) -> str:
    return path.relative_to(HOUSE).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(node: ast.AST, lazy: bool = True) -> Iterator[str]:
    """Yield the dotted names that are imported; unless `lazy`, only those that importing the module imports."""
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


def imported_files(path: Path, lazy: bool = True) -> set[str]:
    """Return the files of the package that a file imports, such as `data/source.py`."""
    files = set()
    for dotted in imports(tree(path), lazy):
        parts = dotted.split(".")
        if parts[0] != "ensemble":
            continue
        for end in range(len(parts), 0, -1):
            stem = HOUSE.joinpath(*parts[1:end])
            if stem.with_suffix(".py").is_file():
                files.add(name_of(stem.with_suffix(".py")))
                break
            if (stem / "__init__.py").is_file():
                files.add(name_of(stem / "__init__.py"))
                break
        else:
            raise AssertionError(f"{name_of(path)} imports {dotted}, which is no file")
    return files


def unit_of(name: str) -> str:
    """Return the unit of `LAYERS` that a file belongs to."""
    stem = name.removesuffix(".py")
    return stem if any(stem in layer for layer in LAYERS) else stem.split("/")[0]


def layer_of(name: str) -> int:
    return next(index for index, layer in enumerate(LAYERS) if unit_of(name) in layer)


def test_the_reading_of_imports_sees_what_there_is() -> None:
    assert {"errors.py", "members/losses.py"} <= imported_files(HOUSE / "members" / "learner.py")
    assert "data/store.py" in imported_files(HOUSE / "commands" / "predict.py")
    assert "data/store.py" not in imported_files(HOUSE / "commands" / "predict.py", lazy=False)


@pytest.mark.parametrize("path", [path for path in FILES if path != HOUSE / "__init__.py"], ids=name_of)
def test_a_file_imports_from_its_wing_and_from_lower_layers(path: Path) -> None:
    name = name_of(path)
    for imported in imported_files(path) - {"__init__.py"}:
        same = unit_of(imported) == unit_of(name)
        assert same or layer_of(imported) < layer_of(name), f"{name} imports {imported}"


def test_decision_takes_nothing_of_data_but_the_fold_table() -> None:
    of_decision = [path for path in FILES if path.parent.name == "decision"]
    files = {file for path in of_decision for file in imported_files(path) if file.startswith("data/")}
    assert files == {"data/folds.py"}


def test_there_are_no_cycles() -> None:
    graph = {name_of(path): imported_files(path) - {name_of(path), "__init__.py"} for path in FILES}
    graph["__init__.py"] = set()  # its public names are imported lazily
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)


def test_a_command_is_in_the_file_of_its_name() -> None:
    """The name of a command is that of its file, or of a function in the file that the command line names."""
    from ensemble.cli import COMMANDS

    files = {path.stem for path in FILES if path.parent.name == "commands"}
    for name, command in COMMANDS.items():
        assert command.file in files
        functions = {
            node.name for node in tree(HOUSE / "commands" / f"{command.file}.py").body if hasattr(node, "name")
        }
        function = name.replace("-", "_")
        assert function in functions or f"{function}s" in functions, f"{name} is not in commands/{command.file}.py"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_library_is_imported_by_its_owners_alone(path: Path) -> None:
    for library in {dotted.split(".")[0] for dotted in imports(tree(path))} & set(OWNERS):
        if library == "pydantic" and name_of(path) == "decision/objective.py":
            continue
        annotations = {dotted.split(".")[0] for dotted in _for_annotations(path)}
        assert name_of(path).startswith(OWNERS[library]) or library in annotations, f"{library} in {name_of(path)}"


def _for_annotations(path: Path) -> set[str]:
    """Return what a file imports for type checkers alone."""
    return {dotted for node in ast.walk(tree(path)) if _for_types(node) for dotted in imports(node)}


def test_one_file_imports_the_cpu_kernels_and_through_one_door() -> None:
    outside = [path for path in FILES if "members/cpu" not in path.as_posix()]
    named = {
        name_of(path): {d for d in imports(tree(path)) if d.startswith("ensemble.members.cpu")} for path in outside
    }
    assert {name: doors for name, doors in named.items() if doors} == {
        "members/plans.py": {"ensemble.members.cpu.prepare"}
    }


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if not name_of(path).startswith(COMPUTING)],
    ids=name_of,
)
def test_what_is_slow_to_load_is_imported_where_it_is_used(path: Path) -> None:
    assert not SLOW & {dotted.split(".")[0] for dotted in imports(tree(path), lazy=False)}


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name == "commands"], ids=name_of)
def test_the_commands_start_without_torch(path: Path) -> None:
    assert not any(used.startswith(("members/", "bench/")) for used in imported_files(path, lazy=False))


def test_the_command_line_starts_light() -> None:
    assert imported_files(HOUSE / "cli.py", lazy=False) == {"__init__.py", "errors.py"}
    assert imported_files(HOUSE / "__init__.py", lazy=False) == set()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_catch_alls_and_no_pickle(path: Path) -> None:
    assert not {path.stem, path.parent.name} & {"utils", "common", "helpers", "misc"}
    for dotted in imports(tree(path)):
        assert not PICKLES & set(dotted.split(".")), f"{name_of(path)} imports {dotted}"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save")}, name_of(path)
        if isinstance(node, ast.keyword):
            assert node.arg != "allow_pickle" or ast.unparse(node.value) == "False", name_of(path)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_cores_are_counted_in_one_place(path: Path) -> None:
    counts = {"os.cpu_count", "os.sched_getaffinity", "multiprocessing.cpu_count"}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and name_of(path) != "machine.py":
            assert ast.unparse(node.func) not in counts, f"{name_of(path)}:{node.lineno}"


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "cli.py"], ids=name_of)
def test_only_the_command_line_prints_and_exits(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and path.name != "__main__.py":
            assert ast.unparse(node.func) not in {"print", "exit", "quit", "sys.exit"}, f"{name_of(path)}:{node.lineno}"
        if isinstance(node, ast.Raise) and node.exc is not None:
            assert "SystemExit" not in ast.unparse(node.exc), f"{name_of(path)}:{node.lineno}"


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda path: path.name)
def test_a_folder_opens_with_a_page_that_names_its_files(folder: Path) -> None:
    page = ast.get_docstring(tree(folder / "__init__.py")) or ""
    for path in folder.glob("*.py"):
        if not path.name.startswith("__"):
            assert re.search(rf"^{re.escape(path.name)}\b", page, re.MULTILINE), f"{path.name} is not on the page"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450
