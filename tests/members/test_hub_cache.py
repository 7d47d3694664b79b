"""Weights from the cache of the model hub: loaded as they are, and refused where the file is damaged."""

from __future__ import annotations

import hashlib
from pathlib import Path

import huggingface_hub.constants as hub
import pytest
import safetensors.torch
import timm
import torch

from ensemble.config import MemberConfig
from ensemble.errors import ArtifactError, TheraError
from ensemble.members.backbones import build

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


def test_weights_that_are_not_cached_are_a_resource_error(blob: Path) -> None:
    with pytest.raises(TheraError, match=r"are not in .* and cannot be downloaded") as caught:
        build(MemberConfig(arch="test_vit", pretrained=True), 160)
    assert caught.value.status == 6
