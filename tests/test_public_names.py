"""The library's face: what `import ensemble` and `import thera` give, and what they cost."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ensemble
import thera

ROOT = Path(ensemble.__file__).parents[1]
NAMES = {
    *("open_source", "load_dataset", "train_members", "fit_stacker", "predict", "evaluate", "compare", "report"),
    *("fit_threshold", "Objective", "error_rates", "load_config", "TheraClassifier", "ThresholdStacker"),
    *("explore", "ExploreConfig", "export", "ExportConfig", "OnnxClassifier", "serve", "ServeConfig", "create_app"),
    *("distil", "DistilConfig", "StudentConfig"),
    *("push", "PushConfig"),
    *("fit", "FitConfig", "clean", "CleanConfig", "ReportConfig"),
    *("MemberConfig", "DataConfig", "DecisionConfig", "PredictConfig", "ComputeConfig", "RunConfig", "AugmentConfig"),
    *("TheraError", "ConfigError", "DataError", "ArtifactError", "LockedError", "ResourceError", "Stopped"),
    "__version__",
}


def python(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    given = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=folder, env=given)


def test_the_public_names() -> None:
    assert set(ensemble.__all__) == NAMES
    assert set(dir(ensemble)) >= NAMES
    assert dir(thera) == sorted(NAMES)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_public_name_is_the_same_in_both_packages(name: str) -> None:
    assert getattr(thera, name) is getattr(ensemble, name)
    assert name == "__version__" or getattr(ensemble, name).__doc__


def test_type_checkers_see_the_same_names() -> None:
    (block,) = (node for node in ast.parse(Path(ensemble.__file__).read_text()).body if isinstance(node, ast.If))
    imported = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == ensemble._HOMES
    assert set(imported) | {"__version__"} == NAMES


@pytest.mark.parametrize("package", [ensemble, thera])
def test_an_unknown_name_is_an_attribute_error(package: object) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'train_menbers'"):
        package.train_menbers  # type: ignore[attr-defined]  # noqa: B018


def test_importing_costs_nothing(tmp_path: Path) -> None:
    done = python("-X", "importtime", "-c", "import ensemble, thera; thera.__version__", folder=tmp_path)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"ensemble", "thera"} <= loaded
    assert not loaded & {"numpy", "pydantic", "typer", "yaml", "torch", "ensemble.config"}


def test_star_imports_give_the_public_names(tmp_path: Path) -> None:
    code = "from thera import *; print(fit_threshold([-2.0, 2.0], [0, 1]), __version__)"
    assert python("-c", code, folder=tmp_path).stdout == f"0.0 {ensemble.__version__}\n"


@pytest.mark.parametrize("package", ["thera", "ensemble"])
def test_a_package_can_be_run(package: str, tmp_path: Path) -> None:
    done = python("-m", package, "--version", folder=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == (f"thera {ensemble.__version__}\n", "", 0)
    assert python("-m", package, "report", folder=tmp_path).returncode == 2


def test_the_installed_script_and_its_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"thera": "thera.__main__:main"}
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["ensemble", "thera"]
    assert (ROOT / project["tool"]["hatch"]["version"]["path"]).samefile(ensemble.__file__)


# --- a user's own module of the name ----------------------------------------------------------------------------------

WORKER = """
import multiprocessing
from thera.__main__ import prefer_home

if __name__ == "__main__":
    prefer_home()
    from ensemble.errors import printable
    for method in ("spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        context.set_forkserver_preload(["ensemble.errors"])
        with context.Pool(1) as pool:
            print(pool.apply(printable, ("seen",)))
    import ensemble
    print(ensemble.__version__)
"""


@pytest.fixture
def hidden(tmp_path: Path) -> Path:
    """Return a folder with a module named like the package."""
    (tmp_path / "ensemble.py").write_text("def mean_of_models(p):\n    return sum(p) / len(p)\n")
    return tmp_path


@pytest.mark.parametrize("path", [".", "", "a"], ids=["on the path", "in the working directory", "elsewhere"])
def test_a_users_own_ensemble_module_does_not_break_the_command(path: str, hidden: Path) -> None:
    done = python("-m", "thera", "--version", folder=hidden, PYTHONPATH=os.pathsep.join((path, str(ROOT))))
    assert (done.stdout, done.returncode) == (f"thera {ensemble.__version__}\n", 0)


def test_nor_its_worker_processes(hidden: Path) -> None:
    (hidden / "work.py").write_text(WORKER)
    done = python("work.py", folder=hidden, PYTHONPATH=os.pathsep.join((".", str(ROOT))))
    assert done.stdout == f"seen\nseen\n{ensemble.__version__}\n", done.stderr


def test_the_library_names_the_module_that_hides_it(hidden: Path) -> None:
    code = "import thera; thera.MemberConfig"
    done = python("-c", code, folder=hidden, PYTHONPATH=os.pathsep.join((".", str(ROOT))))
    message = f"another module named ensemble hides thera's own: {hidden / 'ensemble.py'}; rename it"
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: {message}")
