"""Faults 30 and 32 of the table: weights and architectures of other trainers, from files and from the model hub."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants as hub
from safetensors.torch import save_file

from ensemble.cli import main
from ensemble.commands import train
from ensemble.config import ComputeConfig, DataConfig, MemberConfig
from ensemble.errors import ArtifactError, ConfigError, ResourceError, Stopped
from ensemble.members import backbones
from ensemble.members.backbones import build
from tests.tiny import write_tiny

FROM_SCRATCH = MemberConfig(arch="test_resnet", pretrained=False)
IN_HUB = "hf-hub:timm/test_resnet.r160_in1k"


def given_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return timm.create_model("test_resnet", num_classes=10).state_dict()


def stop(*_: object) -> None:
    raise Stopped("thera", "stopped before the training")


def loaded(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    notes: list[str] = []
    model = build(FROM_SCRATCH, 32, weights, notes.append).model
    return model.state_dict(), notes


@pytest.mark.parametrize("prefix", ["module.", "model.", "backbone.", "module.model.", ""])
def test_a_prefix_is_removed_with_a_note(prefix: str) -> None:
    given = given_weights()
    own, notes = loaded({prefix + key: value for key, value in given.items()})
    assert all(torch.equal(own[key], given[key]) for key in own if not key.startswith("fc."))
    assert notes == ([f"note: None: the prefix {prefix} of its keys is removed"] if prefix else [])


def test_keys_without_the_prefix_are_counted_and_a_file_needs_no_head() -> None:
    given = {f"backbone.{key}": value for key, value in given_weights().items() if not key.startswith("fc.")}
    given = {key: value for key, value in given.items() if not key.endswith("num_batches_tracked")}
    _, notes = loaded(given | {"neck.a": torch.ones(1), "neck.b": torch.ones(1)})
    assert notes[1] == "note: None: neck.a and 1 more without this prefix are not loaded"


def test_weights_that_do_not_fit_are_refused_by_the_name_of_what_does_not() -> None:
    given = given_weights()
    first = "conv1.0.weight"
    others = {
        rf"lacks {first}; give": {key: value for key, value in given.items() if key != first},
        rf"has {first} in another shape \(\(1, 2\), not \(": given | {first: torch.ones(1, 2)},
        r"has layer9\.a that the architecture lacks": given | {"layer9.a": torch.ones(1)},
        rf"{first} has values that are not finite": given | {first: given[first] * torch.nan},
        r"several times, with the prefixes none, ema\.;": given | {f"ema.{key}": value for key, value in given.items()},
        r"lacks conv1\.0\.weight and \d+ more, and has a that the": {"a": torch.ones(1)},
    }
    for message, weights in others.items():
        with pytest.raises(ArtifactError, match=message):
            loaded(weights)


def test_the_weights_of_a_deeper_network_are_refused() -> None:
    """Every tensor of resnet18 is there in resnet34, in the same shape."""
    with pytest.raises(ArtifactError, match=r"has layer1\.2\.conv1\.weight and \d+ more that the architecture lacks"):
        build(MemberConfig(arch="resnet18", pretrained=False), 32, timm.create_model("resnet34").state_dict())


def test_the_command_says_what_it_does_with_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny(tmp_path, 12, size=32)
    save_file({f"module.{key}": value for key, value in given_weights().items()}, tmp_path / "w.safetensors")
    torch.save(given_weights(), tmp_path / "w.pth")
    command = ["train-member", "--arch", "test_resnet", "--images", str(tmp_path / "img"), "--folds", "2"]
    command += ["--labels", str(tmp_path / "labels.txt"), "--run", str(tmp_path / "run"), "--epochs", "1"]
    command += [
        "--batch-size",
        "2",
        "--precision",
        "fp32",
        "--convolutions",
        "native",
        "--jobs",
        "1",
        "--device",
        "cpu",
    ]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--weights", str(tmp_path / "w.pth")])
    assert stopped.value.code == 4
    assert "is no safetensors file but one of torch.save" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setattr(train, "finish_folds", stop)
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--weights", str(tmp_path / "w.safetensors")])
    assert stopped.value.code == 75
    said = capsys.readouterr().err
    assert said.count(f"note: {tmp_path / 'w.safetensors'}: the prefix module. of its keys is removed") == 1


# --- the model hub ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put_into(cache: Path) -> dict[str, torch.Tensor]:
    """Put the repository of a small network into the cache of the hub's client."""
    snapshot = cache / "models--timm--test_resnet.r160_in1k" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("0" * 40)
    pretrained = timm.get_pretrained_cfg("test_resnet").to_dict() | {"mean": [0.1, 0.2, 0.3], "num_classes": 10}
    config = {"architecture": "test_resnet", "num_classes": 10, "pretrained_cfg": pretrained}
    (snapshot / "config.json").write_text(json.dumps(config, default=list))
    save_file(given_weights(), snapshot / "model.safetensors")
    return given_weights()


@pytest.mark.parametrize("scheme", ["hf-hub:", "hf_hub:"])
def test_an_architecture_of_the_hub_is_built_from_the_cache(cache: Path, scheme: str) -> None:
    given = put_into(cache)
    member = MemberConfig(arch=IN_HUB.replace("hf-hub:", scheme))
    network = build(member, 32)
    own = network.model.state_dict()
    assert all(torch.equal(own[key], given[key]) for key in own if not key.startswith("fc."))
    assert network.mean.flatten().tolist() == pytest.approx([25.5, 51, 76.5]), "the repository's own normalisation"


def test_a_member_of_the_hub_has_a_folder_of_one_level(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_into(cache)
    write_tiny(tmp_path, 12, size=32)
    monkeypatch.setattr(train, "finish_folds", stop)
    member = MemberConfig(arch=IN_HUB, batch_size=2, precision="fp32", convolutions="native")
    data = DataConfig(images=tmp_path / "img", labels=tmp_path / "labels.txt")
    with pytest.raises(Stopped):
        train.train_members(tmp_path / "run", [member], data, folds=2, compute=ComputeConfig(jobs=1, device="cpu"))
    assert [path.name for path in (tmp_path / "run/members").iterdir()] == ["hf-hub-timm-test_resnet.r160_in1k"]
    assert (tmp_path / "run/members/hf-hub-timm-test_resnet.r160_in1k/member.json").exists()


def test_an_architecture_that_is_not_in_the_cache(cache: Path) -> None:
    with pytest.raises(ResourceError) as caught:
        backbones.check(MemberConfig(arch=IN_HUB), 32)
    assert str(caught.value).startswith(f"architecture {IN_HUB}: is not in {cache} and cannot be downloaded (")
    assert str(caught.value).endswith(
        "(HF_HUB_OFFLINE forbids it); unset HF_HUB_OFFLINE, or give the architecture by its name in timm and "
        "--weights FILE.safetensors"
    )


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:a/b/c"])
def test_a_name_that_no_repository_can_have(cache: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"architecture {re.escape(name)}: names no repository of a timm network"):
        build(MemberConfig(arch=name, name="a"), 32)
