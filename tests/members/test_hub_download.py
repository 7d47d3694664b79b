"""Pretrained weights from a hub on this machine: what a member starts from, and the line and time of every refusal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from hub_server import Answer, Hub, served, use
from huggingface_hub import constants
from tiny import fails, write_tiny

from ensemble import train_members
from ensemble.cli import main
from ensemble.commands import train as training_command
from ensemble.config import ComputeConfig, DataConfig, MemberConfig
from ensemble.errors import ArtifactError, ResourceError, Stopped
from ensemble.members import hub_download
from ensemble.members.backbones import build
from ensemble.members.hub_cache import hub_file
from ensemble.runs.run import Run

ROOT = Path(__file__).parents[2]
TINY = "timm/test_resnet.r160_in1k"
IN_HUB = "owner/faces"
DESIGN = ("resnet18", "mobilenetv2", "convnext_nano")
"""The three architectures of the exercise."""

FROM_SCRATCH = "give --weights FILE.safetensors, or train from scratch with --no-pretrained"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(hub_download, "_silent_until", {})
    monkeypatch.setattr(hub_download, "PAUSE", 0.05)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    yield from served(monkeypatch, tmp_path / "hub")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_tiny(folder, 24)
    return folder


def made_weights(arch: str, seed: int = 3, **values: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    state: dict[str, torch.Tensor] = timm.create_model(arch, **values).state_dict()
    return {key: value + 0.25 if "running" in key else value for key, value in state.items()}


def publish_tiny(hub: Hub, seed: int = 3) -> str:
    return hub.publish(TINY, {"model.safetensors": safetensors.torch.save(made_weights("test_resnet", seed))})


def publish_architecture(hub: Hub, weights: dict[str, torch.Tensor], **values: Any) -> str:
    """Publish a repository that names its architecture."""
    facts = timm.get_pretrained_cfg("test_resnet").to_dict() | {"mean": [0.1, 0.2, 0.3], "num_classes": 10}
    config = {"architecture": "test_resnet", "num_classes": 10, "pretrained_cfg": facts} | values
    files = {"model.safetensors": safetensors.torch.save(weights), "config.json": json.dumps(config).encode()}
    return hub.publish(IN_HUB, files)


def tiny_member(**values: Any) -> MemberConfig:
    return MemberConfig.model_validate({"arch": "test_resnet", "pretrained": True, **values})


def command(images: Path, run: Path, *more: str, arch: str = "test_resnet") -> list[str]:
    tiny = ["--folds", "2", "--epochs", "1", "--batch-size", "8", "--augment", "none", "--device", "cpu", "--jobs", "1"]
    plan = ["--precision", "fp32", "--convolutions", "native"]
    of_data = ["--images", str(images / "img"), "--labels", str(images / "labels.txt"), "--run", str(run)]
    return ["train-member", "--arch", arch, *of_data, *tiny, *plan, *more]


# --- what a member starts from ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", DESIGN)
def test_a_member_starts_from_the_file_of_the_hub(hub: Hub, arch: str) -> None:
    config = MemberConfig(arch=arch, pretrained=True)
    facts = timm.get_pretrained_cfg(config.timm_name)
    given = made_weights(config.timm_name)
    hub.publish(facts.hf_hub_id, {"model.safetensors": safetensors.torch.save(given)})
    network = build(config, 64)
    state, head = network.model.state_dict(), f"{facts.classifier}."
    assert {key for key in state if not key.startswith(head)} == {key for key in given if not key.startswith(head)}
    assert all(torch.equal(value, given[key]) for key, value in state.items() if not key.startswith(head))
    assert [len(value) for key, value in state.items() if key.startswith(head)] == [1, 1]
    assert network.mean.flatten().tolist() == pytest.approx([255 * each for each in facts.mean])
    assert network.std.flatten().tolist() == pytest.approx([255 * each for each in facts.std])
    assert {token for _, path, token in hub.requests if path.startswith("/lfs")} == {""}, "the storage gets no token"
    before = len(hub.requests)
    again = build(config, 64).model.state_dict()
    assert len(hub.requests) == before, "a second build does not contact the hub"
    assert all(torch.equal(value, given[key]) for key, value in again.items() if not key.startswith(head))


def test_the_command_records_the_commit_and_all_folds_start_from_it(
    hub: Hub, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that goes on with another cache, in which the newest commit is another, downloads the recorded one."""
    first = publish_tiny(hub)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_CACHE": constants.HF_HUB_CACHE, "HF_HUB_DISABLE_XET": "1"}
    subprocess.run(
        [sys.executable, "-m", "thera", *command(images, tmp_path / "run")], check=True, env=environment, timeout=900
    )
    member = Run(tmp_path / "run").member("test_resnet")
    recorded = member.read().pretrained_from
    assert recorded is not None
    assert (recorded.tag, recorded.repository, recorded.commit) == ("test_resnet", TINY, first)
    assert recorded.sha256 == next(path for _, path, _ in hub.requests if path.startswith("/lfs/"))[5:]
    weights = (member.fold(1) / "weights.safetensors").read_bytes()
    second = publish_tiny(hub, seed=4)
    assert second != first
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another-cache"))
    build(tiny_member(), 32)
    newest = hub_file("test_resnet")
    assert newest is not None and newest.commit == second
    (member.fold(1) / "weights.safetensors").unlink()
    before = len(hub.requests)
    train(images, tmp_path / "run", tiny_member())
    assert {path.split("/")[4] for _, path, _ in hub.requests[before:] if "/resolve/" in path} == {first}
    assert (member.fold(1) / "weights.safetensors").read_bytes() == weights
    assert member.read().pretrained_from == recorded


def train(images: Path, run: Path, member: MemberConfig) -> None:
    tiny = {"epochs": 1, "batch_size": 8, "augment": "none", "precision": "fp32", "convolutions": "native"}
    data = DataConfig(images=images / "img", labels=images / "labels.txt")
    member = MemberConfig.model_validate({**member.model_dump(exclude_unset=True), **tiny})
    train_members(run, [member], data, 2, 0, ComputeConfig(device="cpu", jobs=1))


def test_a_repository_names_its_architecture(hub: Hub) -> None:
    given = made_weights("test_resnet", num_classes=10)
    first = publish_architecture(hub, given)
    publish_architecture(hub, made_weights("test_resnet", 4, num_classes=10))
    network = build(MemberConfig(arch=f"hf-hub:{IN_HUB}@{first}", name="a"), 32)
    state = network.model.state_dict()
    assert all(torch.equal(state[key], given[key]) for key in state if not key.startswith("fc."))
    assert network.mean.flatten().tolist() == pytest.approx([25.5, 51, 76.5]), "the repository's own normalisation"
    assert {path.split("/")[4] for _, path, _ in hub.requests if "/resolve/" in path} == {first}


def test_weights_of_pytorch_are_used_where_there_are_no_others(hub: Hub, tmp_path: Path) -> None:
    given = made_weights("test_resnet")
    torch.save(given, tmp_path / "made.bin")
    hub.publish(TINY, {"pytorch_model.bin": (tmp_path / "made.bin").read_bytes()})
    state = build(tiny_member(), 32).model.state_dict()
    assert all(torch.equal(state[key], given[key]) for key in state if not key.startswith("fc."))


# --- weights that do not fit ------------------------------------------------------------------------------------------


def test_a_layer_of_another_shape_is_named(hub: Hub, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = made_weights("test_resnet") | {"layer1.0.conv1.weight": torch.ones(2, 3, 1, 1)}
    commit = hub.publish(TINY, {"model.safetensors": safetensors.torch.save(given)})
    line = fails(capsys, 4, *command(images, images / "run"))
    file = f"{constants.HF_HUB_CACHE}/models--timm--test_resnet.r160_in1k/snapshots/{commit}/model.safetensors"
    shape = tuple(made_weights("test_resnet")["layer1.0.conv1.weight"].shape)
    assert line.startswith(f"error: {file}: has layer1.0.conv1.weight in another shape ((2, 3, 1, 1), not {shape}); ")
    assert f"take another architecture, or {FROM_SCRATCH}" in line


def test_a_missing_tensor_is_never_left_random(hub: Hub) -> None:
    """timm loads a file for another number of classes without the check that it has all tensors."""
    given = made_weights("test_resnet")
    rest = {key: value for key, value in given.items() if not key.startswith("layer1.0.conv")}
    hub.publish(TINY, {"model.safetensors": safetensors.torch.save(rest)})
    lacking = f"layer1.0.conv1.weight and {len(given) - len(rest) - 1} more"
    with pytest.raises(ArtifactError, match=rf"model\.safetensors: lacks {lacking}; give --weights"):
        build(tiny_member(), 32)


def test_a_file_that_is_no_file_of_weights(hub: Hub) -> None:
    hub.publish(TINY, {"model.safetensors": b"version https://git-lfs.github.com/spec/v1\n"})
    with pytest.raises(ArtifactError, match=r"model\.safetensors: cannot be loaded \(.*\); delete it, and it is"):
        build(tiny_member(), 32)


def test_bytes_that_are_not_those_that_the_hub_states(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_tiny(hub)
    data = bytearray(hub.repositories[TINY]["files"]["model.safetensors"])
    data[-4000:] = bytes(4000)
    monkeypatch.setattr(Hub, "stored", lambda self, sha256: (200, {"ETag": f'"{sha256}"'}, bytes(data)))
    with pytest.raises(ArtifactError, match="is damaged: its SHA-256 is not the one that the hub states; delete it"):
        build(tiny_member(), 32)


# --- refusals ---------------------------------------------------------------------------------------------------------

SLOW = (503, {"X-Error-Message": "the database is down"}, {"error": "the database is down"})


def refusal(status: int, message: str, code: str = "", **headers: str) -> Answer:
    of_code = {"X-Error-Code": code} if code else {}
    return status, {**of_code, "X-Error-Message": message, **headers}, {"error": message}


@pytest.mark.parametrize(
    ("answer", "reason", "remedy", "tries"),
    [
        (
            refusal(403, "Access to model is restricted", "GatedRepo"),
            f"{TINY} is gated, 403: Access to model is restricted",
            f"ask for access on ADDRESS/{TINY} and log in with `hf auth login`",
            1,
        ),
        (
            refusal(404, "Repository not found", "RepoNotFound"),
            f"there is no {TINY}, or only for those who may read it, 404: Repository not found",
            "set HF_ENDPOINT to a hub that has it, or log in with `hf auth login`",
            1,
        ),
        (
            refusal(404, "Entry not found", "EntryNotFound"),
            f"{TINY} has no model.safetensors or pytorch_model.bin, 404: Entry not found",
            "name a repository of a timm network",
            2,
        ),
        (
            refusal(401, "Invalid credentials in Authorization header hf_good"),
            "the hub refuses the token, 401: Invalid credentials in Authorization header …",
            "log in with `hf auth login` again, or correct HF_TOKEN",
            1,
        ),
        (
            refusal(403, "Forbidden for this network"),
            f"the hub refuses {TINY}, 403: Forbidden for this network",
            "log in with `hf auth login` as a user who may read it",
            1,
        ),
        (
            refusal(429, "We had to rate limit your IP", **{"Retry-After": "300"}),
            "the hub limits requests, 429: We had to rate limit your IP",
            "give the same command again after 300 seconds",
            1,
        ),
        (
            refusal(429, "We had to rate limit your IP"),
            "the hub limits requests, 429: We had to rate limit your IP",
            "give the same command again later",
            2,
        ),
        (SLOW, "the hub fails, 503: the database is down", "give the same command again later", 2),
        (
            (200, {}, {"login": "please"}),
            "ADDRESS answers, but not as a model hub: it states no commit or no ETag",
            "correct HF_ENDPOINT or the settings of proxy and firewall",
            1,
        ),
    ],
)
def test_a_refusal_keeps_the_reason_of_the_server(
    hub: Hub,
    images: Path,
    capsys: pytest.CaptureFixture[str],
    answer: Answer,
    reason: str,
    remedy: str,
    tries: int,
) -> None:
    hub.refusals[f"/{TINY}/"] = answer
    started = time.monotonic()
    line = fails(capsys, 6, *command(images, images / "refused")).replace(hub.address, "ADDRESS")
    assert time.monotonic() - started < 30
    assert line == (
        f"error: pretrained weights of test_resnet: are not in {constants.HF_HUB_CACHE} and cannot be downloaded "
        f"({reason}); {remedy}, or {FROM_SCRATCH} (in a YAML file weights: FILE or pretrained: false)"
    )
    assert len([path for _, path, _ in hub.requests if path.startswith(f"/{TINY}/")]) == tries


@pytest.mark.parametrize(
    ("answer", "reason", "tries"),
    [
        (refusal(429, "slow down", **{"Retry-After": "300"}), "limits requests, 429: slow down", 1),
        (refusal(429, "slow down"), "limits requests, 429: slow down", 2),
        (refusal(403, "the signature has expired"), f"refuses {TINY}, 403: the signature has expired", 1),
    ],
)
def test_a_refusal_of_the_storage(
    hub: Hub, images: Path, capsys: pytest.CaptureFixture[str], answer: Answer, reason: str, tries: int
) -> None:
    publish_tiny(hub)
    hub.refusals["/lfs/"] = answer
    started = time.monotonic()
    assert f"cannot be downloaded (the hub {reason}); " in fails(capsys, 6, *command(images, images / "refused"))
    assert time.monotonic() - started < 30
    assert len([path for _, path, _ in hub.requests if path.startswith("/lfs/")]) == tries


def test_a_temporary_refusal_is_no_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_tiny(hub)
    resolve = Hub.resolve
    answers = [SLOW]

    def once(self: Hub, *given: str) -> Answer:
        return answers.pop() if answers else resolve(self, *given)

    monkeypatch.setattr(Hub, "resolve", once)
    build(tiny_member(), 32)
    assert not answers


@pytest.mark.parametrize("scheme", ["hf-hub:", "hf_hub:"])
def test_the_refusals_of_an_architecture_of_the_hub(
    hub: Hub, images: Path, capsys: pytest.CaptureFixture[str], scheme: str
) -> None:
    def line(name: str, status: int = 6) -> str:
        return fails(capsys, status, *command(images, images / "refused", arch=scheme + name))

    by_name = "give the architecture by its name in timm and --weights FILE.safetensors"
    publish_architecture(hub, made_weights("test_resnet", num_classes=10))
    where = f"error: architecture {scheme}"
    missing = f"is not in {constants.HF_HUB_CACHE} and cannot be downloaded ("
    assert line("owner/other") == (
        f"{where}owner/other: {missing}there is no owner/other, or only for those who may read it, 404: Repository not "
        f"found); correct the name, or log in with `hf auth login`, or {by_name}"
    )
    assert line(f"{IN_HUB}@v2") == (
        f"{where}{IN_HUB}@v2: {missing}{IN_HUB} has no revision v2, 404: Invalid rev id: v2); "
        f"give a revision that it has, or {by_name}"
    )
    hub.publish(IN_HUB, {"README.md": b"a model of another library"})
    assert f"({IN_HUB} has no config.json, 404: Entry not found); name a repository of a timm network" in line(IN_HUB)
    publish_architecture(hub, made_weights("test_resnet", num_classes=10), architecture="bert")
    assert "names no repository of a timm network (Unknown model (bert))" in line(IN_HUB, 2)


# --- a hub that is not there ------------------------------------------------------------------------------------------


def test_offline_by_the_environment(
    hub: Hub, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = fails(capsys, 6, *command(images, images / "refused"))
    assert f"cannot be downloaded (HF_HUB_OFFLINE forbids it); unset HF_HUB_OFFLINE, or {FROM_SCRATCH}" in line
    assert hub.requests == []


def test_a_hub_out_of_reach_is_waited_for_once(
    hub: Hub, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_tiny(hub)
    known = build(tiny_member(), 32).model.state_dict()
    use(monkeypatch, "http://127.0.0.1:9")  # nothing listens there
    tries, real = list[str](), hub_download.get_hf_file_metadata

    def counted(address: str, timeout: float) -> Any:
        tries.append(address)
        return real(address, timeout=timeout)

    monkeypatch.setattr(hub_download, "get_hf_file_metadata", counted)
    again = build(tiny_member(), 32).model.state_dict()
    assert all(torch.equal(again[key], known[key]) for key in known if not key.startswith("fc.")), "from the cache"
    line = fails(capsys, 6, *command(images, images / "refused", arch="test_vit"))
    assert "cannot be downloaded (http://127.0.0.1:9 does not answer: [Errno 111] Connection refused); connect" in line
    with pytest.raises(ResourceError, match=r"\(http://127\.0\.0\.1:9 does not answer\); connect, or"):
        build(tiny_member(arch="test_efficientnet"), 32)
    assert len(tries) == 2, "two tries, whatever is built"


def test_a_silent_hub(
    hub: Hub, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_tiny(hub)
    hub.silent.add(f"/{TINY}/")
    monkeypatch.setattr(hub_download, "TIMEOUT", 0.2)
    line = fails(capsys, 6, *command(images, images / "refused"))
    assert f"({hub.address} does not answer: timed out); connect, or {FROM_SCRATCH}" in line
    assert len(hub.requests) == 2


def test_a_silent_storage_is_given_up_after_the_limit(
    hub: Hub, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_tiny(hub)
    hub.silent.add("/lfs/")
    monkeypatch.setattr(hub_download, "LIMIT", 1.0)
    started = time.monotonic()
    line = fails(capsys, 6, *command(images, images / "refused"))
    assert time.monotonic() - started < 30
    assert f"({hub.address} sends nothing for 1 s); connect, or {FROM_SCRATCH}" in line


def test_the_waiting_times_stay_below_half_a_minute() -> None:
    longest = hub_download.TRIES * hub_download.TIMEOUT + (hub_download.TRIES - 1) * hub_download.LONGEST_PAUSE
    assert longest < hub_download.LIMIT < 30


def test_a_full_disk(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_tiny(hub)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub_download, "hf_hub_download", full)
    with pytest.raises(ResourceError, match=r"\(\[Errno 28\] No space left on device\); set HF_HUB_CACHE to a folder"):
        build(tiny_member(), 32)


def test_a_member_may_start_from_scratch_if_the_hub_refuses(
    hub: Hub, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise Stopped("thera", "stopped before the training")

    monkeypatch.setattr(training_command, "finish_folds", stop)
    hub.refusals[f"/{TINY}/"] = refusal(403, "Access to model is restricted", "GatedRepo")
    with pytest.raises(SystemExit):
        main(command(images, tmp_path / "run", "--pretrained", "if-possible"))
    said = capsys.readouterr().err
    assert f"({TINY} is gated, 403: Access to model is restricted); test_resnet starts from scratch" in said
    assert Run(tmp_path / "run").member("test_resnet").read().pretrained_from is None
