"""Mistakes in a training command: refused in one line, before torch is imported, with nothing left on disk."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ensemble.commands.checks import timm_names

CODE = """
import sys
from ensemble.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
print(status, [name for name in ("torch", "timm", "albumentations", "pandas", "scipy") if name in sys.modules])
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of four empty files with image names, and the labels 0 1 1 1 beside it."""
    folder = tmp_path / "img"
    folder.mkdir()
    for number in range(1, 5):
        (folder / f"{number}.png").touch()
    (tmp_path / "labels.txt").write_text("0\n1\n1\n1\n")
    return folder


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--images", "none"], 3, "error: none: does not exist; name a folder of images, a zip, a manifest or images"),
        (["--labels", "none.txt"], 3, "error: none.txt: cannot be read: No such file or directory"),
        ([], 3, "error: labels.txt: 1 image of class 0 cannot fill 5 folds; add images of this class"),
        (["--arch", "resnet81"], 2, "error: architecture resnet81: is not known to timm; did you mean resnet18, "),
        (["--device", "gpu"], 2, "error: --device: must be auto, cpu, mps, cuda or cuda:N; got gpu"),
        (["--weights", "none.safetensors"], 4, "error: none.safetensors: is no file that can be read; give a "),
    ],
)
def test_a_mistake_is_refused_before_torch_is_imported(
    options: list[str], status: int, message: str, images: Path, tmp_path: Path
) -> None:
    command = ["train-member", "--run", "r", "--arch", "resnet18", "--images", "img", "--labels", "labels.txt"]
    before = sorted(tmp_path.rglob("*"))
    ended = subprocess.run(
        [sys.executable, "-c", CODE, *command, *options],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stdout == f"{status} []\n"
    assert ended.stderr.startswith(message)
    assert ended.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_images_that_cannot_be_decoded_leave_no_run(images: Path, tmp_path: Path) -> None:
    from ensemble.commands.train import train_members
    from ensemble.config import ComputeConfig, DataConfig, MemberConfig
    from ensemble.errors import DataError

    (tmp_path / "labels.txt").write_text("0\n1\n0\n1\n")
    said: list[str] = []
    data = DataConfig(images=images, labels=tmp_path / "labels.txt")
    with pytest.raises(DataError, match="4 of 4 images cannot be used"):
        train_members(
            tmp_path / "r", [MemberConfig(arch="small_cnn")], data, 2, 0, ComputeConfig(device="cpu"), said.append
        )
    assert said == [f"reading 4 images from {images}"]
    assert not (tmp_path / "r").exists()


def test_the_names_read_off_the_source_are_those_of_timm() -> None:
    import timm
    from timm.models import _registry

    import ensemble.members.backbones  # noqa: F401  registers the small networks

    assert set(timm.list_models()) <= timm_names()
    assert set(_registry._deprecated_models) <= timm_names()
    assert all(map(timm.is_model, timm_names()))


# --- every command ----------------------------------------------------------------------------------------------------


def cpu_seconds_of_children() -> float:
    """Return the user and system seconds of the processes that have ended; how they are divided varies by half."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def refused(command: list[str], folder: Path) -> tuple[int, str, float]:
    """Return the exit status of a command, its last line on standard error, and the seconds of CPU that it took."""
    before = cpu_seconds_of_children()
    ended = subprocess.run(
        [sys.executable, "-m", "thera", *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    seconds = cpu_seconds_of_children() - before
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stderr.splitlines()[-1], seconds


@pytest.fixture(scope="module")
def seconds_of_typer() -> float:
    """The CPU seconds of the import of typer, which no command line can be faster than; the median of five."""
    seconds = []
    for _ in range(5):
        before = cpu_seconds_of_children()
        subprocess.run([sys.executable, "-c", "import typer"], check=True)
        seconds.append(cpu_seconds_of_children() - before)
    return sorted(seconds)[2]


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        ("train-member --arch resnet18 --run r --images none", 3, "none: does not exist"),
        (
            "train-member --arch resnet18 --run r --images img --labels labels.txt --device cuda:99",
            2,
            "--device: cuda:99",
        ),
        ("fit none", 3, "none: does not exist"),
        ("fit img --labels labels.txt --device gpu", 2, "--device: must be auto, cpu, mps, cuda or cuda:N; got gpu"),
        ("fit img --labels labels.txt --folds 2 --predict none", 3, "none: does not exist"),
        ("fit-stacker --run none", 4, "none/run.json: is not there"),
        ("predict --run none img", 4, "none/run.json: is not there"),
        ("report none", 4, "none/run.json: is not there"),
        ("evaluate none --labels none", 3, "none: cannot be read"),
        ("compare none none", 3, "none: does not exist"),
        ("remove-member a --run none", 4, "none/run.json: is not there"),
        ("run none.yaml", 2, "none.yaml: cannot be read"),
        ("run simple-cnn --images none --run r", 3, "none: does not exist"),
        ("run simple-cnn --images img --labels labels.txt --predict none", 3, "none: does not exist"),
        (
            "run simple-cnn --images img --labels labels.txt --predict img --out img --run r",
            2,
            "--out img: is a folder",
        ),
        ("demo --run d --device gpu", 2, "--device: must be auto, cpu, mps, cuda or cuda:N; got gpu"),
        ("trial simple-cnn --fold 7", 2, "--fold: must be 0 to 4; got 7"),
        ("bench --images none", 2, "--images: must be a folder of image files"),
    ],
)
def test_every_command_refuses_soon_and_leaves_nothing(
    command: str, status: int, message: str, images: Path, tmp_path: Path, seconds_of_typer: float
) -> None:
    (tmp_path / "labels.txt").write_text("0\n1\n0\n1\n")
    before = sorted(tmp_path.rglob("*"))
    if "cuda" in command and Path("/dev/nvidiactl").exists():
        pytest.skip("torch alone knows which GPUs this machine has")
    code, line, seconds = refused(command.split(), tmp_path)
    assert line.startswith(f"error: {message}")
    assert code == status
    assert sorted(tmp_path.rglob("*")) == before
    assert seconds < 12 * seconds_of_typer, f"{seconds / seconds_of_typer:.1f} times the import of typer"


def test_a_run_without_a_trained_epoch_begins_anew_with_other_folds(tmp_path: Path) -> None:
    from tiny import write_tiny

    from ensemble.commands.train import train_members
    from ensemble.config import ComputeConfig, DataConfig, MemberConfig
    from ensemble.errors import ArtifactError
    from ensemble.runs.locks import locked
    from ensemble.runs.run import Run

    write_tiny(tmp_path, 40)
    data = DataConfig(images=tmp_path / "img", labels=tmp_path / "labels.txt")
    member = MemberConfig(arch="lenet", epochs=1, input_size=32, precision="fp32", convolutions="native")
    said: list[str] = []

    def train(folds: int, seed: int = 0) -> None:
        train_members(tmp_path / "run", [member], data, folds, seed, ComputeConfig(device="cpu"), said.append)

    class Broken(Exception):
        pass

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Broken):  # the run is bound, and nothing is trained
        patch.setattr("ensemble.commands.train.finish_folds", lambda *_: (_ for _ in ()).throw(Broken))
        train(5)
    run = Run(tmp_path / "run")
    assert run.read().folds == 5 and run.read_folds().k == 5
    with locked(run.folder / "members" / "other"), pytest.raises(ArtifactError, match="folds was 5 and is 2"):
        train(2)  # another process may be in its first epoch
    train(2)
    assert "begins anew: folds was 5 and is 2" in "\n".join(said)
    assert run.read().folds == 2 and run.read_folds().k == 2
    with pytest.raises(ArtifactError, match="seed was 0 and is 1"):
        train(2, seed=1)
