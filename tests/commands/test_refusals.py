"""Mistakes in a training command: refused in one line, before torch is imported, with nothing left on disk."""

from __future__ import annotations

import os
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
        (["--images", "none"], 3, "error: none: does not exist; name a folder of images, a zip or a manifest"),
        (["--labels", "none.txt"], 3, "error: none.txt: cannot be read: No such file or directory"),
        ([], 3, "error: labels: 1 images of class 0 cannot fill 5 folds; more images of it are needed"),
        (["--arch", "resnet81"], 2, "error: architecture resnet81: is not known to timm; did you mean resnet18, "),
        (["--device", "gpu"], 2, "error: --device: must be auto, cpu, cuda or cuda:N; got gpu"),
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
