"""What reaches a task is what the driver has: pretrained weights, images and training states, without a cluster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from tiny import listing

pytest.importorskip("ray")

from ensemble.cluster import travel
from ensemble.cluster.relay import Relay, arrays_of, tensors_of
from ensemble.cluster.travel import RelayedStates, digest_of, open_pixels, open_states, pretrained_weights
from ensemble.config import MemberConfig
from ensemble.members import backbones
from ensemble.members.backbones import build
from ensemble.runs.training_state import StateFolder

HISTORY = [{"epoch": 1, "loss": 0.5, "lr": 0.1, "seconds": 1.0}]


class Handle:
    """Stands for the handle of the relay: a call is made at once, and `ray.get` returns what it gives."""

    def __init__(self) -> None:
        self.relay, self.calls = Relay(), list[str]()

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: Any) -> Any:
            self.calls.append(name)
            return getattr(self.relay, name)(*arguments)

        return SimpleNamespace(remote=remote)


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> Handle:
    monkeypatch.setattr(travel.ray, "get", lambda value: value)
    monkeypatch.setattr("ensemble.cluster.relay.ray.put", lambda value: value)
    return Handle()


@pytest.mark.parametrize("stem", ["standard", "half-stride"])
def test_a_job_with_the_weights_begins_as_one_that_loads_them(stem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbone has the weights, and the last layer is the one that the seed of the job draws."""
    create = timm.create_model

    def created(name: str, pretrained: bool = False, **options: Any) -> Any:
        model = create(name, **options)
        if pretrained:
            own = create(name, num_classes=10)
            for seed, value in enumerate(own.state_dict().values()):
                if value.is_floating_point():
                    value.copy_(torch.rand(value.shape, generator=torch.Generator().manual_seed(seed)))
            state = {key: value for key, value in own.state_dict().items() if not key.startswith("fc.")}
            model.load_state_dict(state, strict=False)
        return model

    monkeypatch.setattr(backbones.timm, "create_model", created)
    monkeypatch.setattr(backbones, "hub_source", lambda *_: None)
    config = MemberConfig.model_validate({"arch": "resnet18", "pretrained": True, "stem": stem})
    weights = pretrained_weights(config, 32)
    assert weights and not any(name.startswith("fc.") for name in weights)
    networks = []
    for given in (None, tensors_of(weights)):
        torch.manual_seed(7)
        networks.append(build(config, 32, given))
    loaded, brought = (network.state_dict() for network in networks)
    assert list(loaded) == list(brought)
    assert all(torch.equal(loaded[name], brought[name]) for name in loaded)


def test_a_file_is_used_where_the_node_sees_the_same_one(tmp_path: Path, handle: Handle) -> None:
    path = tmp_path / "pixels.npy"
    images = np.random.default_rng(0).integers(0, 256, (200, 16, 16, 3), np.uint8)
    np.save(path, images)
    digest = digest_of(str(path))
    assert open_pixels(str(path), digest, handle).is_mapped and handle.calls == []
    np.save(path, 255 - images)
    assert digest_of(str(path)) != digest
    assert (open_pixels(str(path), f"{digest} of another file", handle).array == 255 - images).all()
    assert handle.calls == ["pixels"]


def test_training_states_that_travel_are_the_same_files(tmp_path: Path, handle: Handle) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3), "r": torch.arange(9, dtype=torch.uint8)}
    here, there = StateFolder(tmp_path / "here"), RelayedStates(str(tmp_path / "there"), 60.0, handle)
    assert there.load() is None and there.save_every == 60.0
    for states in (here, there):
        states.save(tensors, HISTORY)
        states.save_state(tensors, HISTORY, 5)
        states.write_not_finite({"epoch": 2})
    assert listing(tmp_path / "here") == listing(tmp_path / "there")
    loaded, history = there.load() or ({}, [])
    assert history == HISTORY and loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    loaded["a"].add_(1)  # a training changes what it loads
    newest = next((tmp_path / "there/state").glob("*update*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    assert there.load() is not None and "is damaged; going on from an older state" in there.warnings[0]


def test_a_folder_is_shared_if_the_node_sees_what_is_put_there(
    tmp_path: Path, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(open_states(str(tmp_path / "fold-0"), 60.0, handle), StateFolder)
    monkeypatch.setattr(travel.Path, "exists", lambda path: False)
    assert isinstance(open_states(str(tmp_path / "fold-0"), 60.0, handle), RelayedStates)
    monkeypatch.undo()
    assert list((tmp_path / "fold-0").iterdir()) == []


def test_reports_are_collected_once() -> None:
    relay = Relay()
    relay.report("a", 0, "first")  # type: ignore[arg-type]
    relay.report("a", 0, "last")  # type: ignore[arg-type]
    relay.report("former", 1, "late")  # type: ignore[arg-type]
    assert relay.collect("a") == {0: "last"} and relay.collect("a") == {} and relay.collect("former") == {}


def test_arrays_of_the_store_may_be_read_only() -> None:
    arrays = arrays_of({"a": torch.ones(2)})
    arrays["a"].flags.writeable = False
    tensors_of(arrays)["a"].add_(1)
    assert arrays["a"].tolist() == [1, 1]
