"""A member that starts from the fold models of another member: which fold model, what is refused, what is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import write_tiny

from ensemble.commands import fold_jobs
from ensemble.commands.starting_weights import starting_weights
from ensemble.commands.train import train_members
from ensemble.config import ComputeConfig, DataConfig, MemberConfig
from ensemble.data.source import open_labelled
from ensemble.data.store import load_dataset
from ensemble.errors import ArtifactError
from ensemble.runs.run import Run

TINY = {"arch": "test_resnet", "pretrained": False, "epochs": 1, "batch_size": 8, "augment": "none"}
COMPUTE = ComputeConfig(device="cpu", jobs=1)


def member(name: str, **values: Any) -> MemberConfig:
    return MemberConfig.model_validate(TINY | {"name": name} | values)


def data(folder: Path) -> DataConfig:
    return DataConfig(images=folder / "img", labels=folder / "labels.txt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with tiny images, and a run with the member `first` in three folds."""
    folder = tmp_path_factory.mktemp("first")
    write_tiny(folder / "tiny", 48)
    train_members(folder / "run", [member("first")], data(folder / "tiny"), 3, 0, COMPUTE)
    return folder


def test_each_fold_starts_from_the_fold_model_that_has_not_seen_its_images(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Run(trained / "run").member("first")
    started: dict[int, dict[str, np.ndarray]] = {}
    real = fold_jobs.train_jobs

    def recording(jobs: Any, *rest: Any) -> Any:
        started.update({each.job.fold: each.job.weights for each in jobs})
        return real(jobs, *rest)

    monkeypatch.setattr(fold_jobs, "train_jobs", recording)
    second = member("second", weights=first.folder)
    train_members(trained / "run", [second], data(trained / "tiny"), 3, 0, COMPUTE)
    for fold in range(3):
        expected = first.read_weights(fold)
        assert set(started[fold]) == set(expected)
        assert all(torch.equal(torch.from_numpy(started[fold][key].copy()), value) for key, value in expected.items())
    recorded = Run(trained / "run").member("second").read().config["weights"]
    assert recorded == [first.weights_sha256(fold) for fold in range(3)]


def test_other_folds_of_the_same_images_are_refused(trained: Path, tmp_path: Path) -> None:
    weights = Run(trained / "run").member("first").folder
    with pytest.raises(ArtifactError, match="its fold models have seen images that fold 0 holds out"):
        train_members(tmp_path / "run", [member("b", weights=weights)], data(trained / "tiny"), 3, 1, COMPUTE)
    assert not (tmp_path / "run" / "members" / "b").exists()


def test_any_fold_model_serves_for_other_images(trained: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path / "other", 48, seed=5)
    first = Run(trained / "run").member("first")
    train_members(tmp_path / "run", [member("a")], data(tmp_path / "other"), 4, 0, COMPUTE)
    run = Run(tmp_path / "run")
    dataset = load_dataset(open_labelled(data(tmp_path / "other")), run.pixels)
    weights, hashes = starting_weights(member("b", weights=first.folder), dataset, run.read_folds(), range(4))
    assert hashes == [first.weights_sha256(fold) for fold in (0, 1, 2, 0)]
    for fold, of_fold in zip((0, 1, 2, 0), weights, strict=True):
        assert of_fold is not None
        assert all(torch.equal(of_fold[key], value) for key, value in first.read_weights(fold).items())


def test_an_unfinished_member_is_refused(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy" / "members" / "first"
    for path in (trained / "run").rglob("*"):
        if path.is_file() and "fold-2" not in path.parts and "second" not in path.parts:
            target = tmp_path / "copy" / path.relative_to(trained / "run")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    with pytest.raises(ArtifactError, match="lacks the weights of fold 2"):
        train_members(tmp_path / "new", [member("b", weights=folder)], data(trained / "tiny"), 3, 0, COMPUTE)


def test_a_config_may_name_the_member_of_a_run() -> None:
    weights = {"from": "checkpoints/age/resnet18"}
    assert member("b", weights=weights).weights == Path("checkpoints/age/members/resnet18")
    with pytest.raises(ValueError, match="weights"):
        member("b", weights={"from": "a", "fold": 1})
