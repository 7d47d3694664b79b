"""Weights from the cache of the model hub: loaded as they are, and refused where the file is damaged."""

from __future__ import annotations

import hashlib
from pathlib import Path

import huggingface_hub.constants as hub
import pytest
import safetensors.torch
import timm
import torch
from tiny import write_tiny

from ensemble import ComputeConfig, DataConfig, train_members
from ensemble.config import MemberConfig
from ensemble.errors import ArtifactError, ResourceError
from ensemble.members.backbones import build
from ensemble.runs.member import HubFile
from ensemble.runs.run import Run

COMMIT = "0123456789012345678901234567890123456789"
CONFIG = MemberConfig(arch="test_resnet", pretrained=True)


@pytest.fixture
def blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put made weights of test_resnet into a cache, as the hub's client does, and use only the cache."""
    torch.manual_seed(3)
    data = safetensors.torch.save(timm.create_model("test_resnet", pretrained=False).state_dict())
    folder = tmp_path / "models--timm--test_resnet.r160_in1k"
    blob = folder / "blobs" / hashlib.sha256(data).hexdigest()
    snapshot = folder / "snapshots" / COMMIT
    for each in (blob.parent, snapshot, folder / "refs"):
        each.mkdir(parents=True)
    blob.write_bytes(data)
    (folder / "refs/main").write_text(COMMIT)
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs") / blob.name)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    return blob


def test_every_tensor_but_the_head_is_that_of_the_file(blob: Path) -> None:
    network = build(CONFIG, 64)
    stored, state = safetensors.torch.load_file(blob), network.model.state_dict()
    head = [name for name in state if name.startswith("fc.")]
    assert len(head) == 2 and all(state[name].shape[0] == 1 for name in head)
    for name, value in state.items():
        if name not in head:
            torch.testing.assert_close(value, stored[name], rtol=0, atol=0)


@pytest.mark.parametrize("place", [-1, 0])
def test_a_damaged_file_is_named(blob: Path, place: int) -> None:
    """Zeroed bytes at the end are valid weights, and at the beginning no safetensors file at all."""
    data = bytearray(blob.read_bytes())
    data[slice(-4000, None) if place else slice(0, 8)] = bytes(4000 if place else 8)
    blob.write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        build(CONFIG, 64)
    assert str(caught.value) == (
        f"{blob}: is damaged: its SHA-256 is not the one that the hub states; delete it; it is then downloaded again"
    )


def test_the_member_records_the_file_and_goes_on_with_no_other(blob: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path / "train", 40)
    data = DataConfig(images=tmp_path / "train/img", labels=tmp_path / "train/labels.txt")
    config = MemberConfig(arch="test_resnet", pretrained=True, epochs=1, batch_size=8)
    compute = ComputeConfig(device="cpu", jobs=1)
    train_members(tmp_path / "run", [config], data, 2, 0, compute)
    member = Run(tmp_path / "run").member("test_resnet")
    expected = HubFile("test_resnet", "timm/test_resnet.r160_in1k", COMMIT, "model.safetensors", blob.name)
    assert member.read().pretrained_from == expected
    (member.fold(1) / "weights.safetensors").unlink()  # so that fold 1 is trained again
    folder, other = blob.parents[1], "9" * 40
    (folder / "snapshots" / COMMIT).rename(folder / "snapshots" / other)
    (folder / "refs/main").write_text(other)
    with pytest.raises(ResourceError, match=f"test_resnet at commit {COMMIT}: are not in .*HF_HUB_OFFLINE forbids it"):
        train_members(tmp_path / "run", [config], data, 2, 0, compute)
