"""`thera push`: what arrives at the hub, what is asked before, and every refusal with the server's reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, served
from tiny import listing, write_tiny

from ensemble import DataConfig, DecisionConfig, PushConfig, cli, export, fit_stacker, push, report, train_members
from ensemble.commands.model_card_file import MARK
from ensemble.config import ComputeConfig, MemberConfig
from ensemble.errors import ArtifactError, ConfigError, ResourceError, TheraError

pytest.importorskip("onnx", reason="the extra thera[export] is not installed")
pytest.importorskip("onnxscript", reason="the extra thera[export] is not installed")
pytest.importorskip("onnxruntime", reason="the extra thera[runtime] is not installed")

pytestmark = [
    # Networks of a few updates differ from fold to fold.
    pytest.mark.filterwarnings("ignore:the fold models differ:UserWarning"),
    # The hub's client calls its HTTP library in a form that is deprecated there.
    pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning"),
]

ROOT = Path(__file__).parents[2]
NAME = "owner/faces"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of one member with a decision, a model card and an exported model."""
    folder = tmp_path_factory.mktemp("pushed")
    write_tiny(folder / "train", 24)
    data = DataConfig(images=folder / "train/img", labels=folder / "train/labels.txt")
    member = MemberConfig(arch="test_resnet", pretrained=False, epochs=1, batch_size=8)
    train_members(folder / "faces", [member], data, 2, 0, ComputeConfig(device="cpu", jobs=1))
    fit_stacker(folder / "faces", DecisionConfig())
    report(folder / "faces")
    export(folder / "faces")
    return folder / "faces"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Return a hub on this machine, with a token that it accepts."""
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between tries
    yield from served(monkeypatch)


def given(run: Path, **values: object) -> PushConfig:
    return PushConfig.model_validate({"name": NAME, "model": run / "export/faces.onnx", "yes": True, **values})


def test_bundle_and_card_arrive_in_a_new_repository(run: Path, hub: Hub) -> None:
    said = list[str]()
    result = push(run, given(run), said.append)
    files = hub.repositories[NAME]["files"]
    assert set(files) == {"faces.onnx", "faces.json", "README.md"} and not hub.repositories[NAME]["private"]
    assert files["faces.onnx"] == (run / "export/faces.onnx").read_bytes()
    assert files["faces.json"] == (run / "export/faces.json").read_bytes()
    card = files["README.md"].decode()
    written = (run / "README.md").read_text()
    assert card.startswith("---\n") and written.startswith(card.split("\n## The files of this repository")[0])
    assert "thera predict --model faces.onnx new_photos" in card and MARK not in card
    assert str(run) not in card + files["faces.json"].decode()
    assert said[0] == f"upload to {hub.address}/{NAME}, a new public repository:"
    assert [line.split()[0] for line in said[1:4]] == ["faces.onnx", "faces.json", "README.md"]
    assert (result.address, result.commit, result.is_new) == (f"{hub.address}/{NAME}", "a" * 40, True)
    assert {token for _, path, token in hub.requests if NAME in path} == {"hf_good"}
    for path, content in listing(run).items():
        assert b"hf_good" not in content, path
    assert not push(run, given(run)).is_new


def test_without_a_model_the_run_is_exported_first(run: Path, hub: Hub) -> None:
    model = run / "export/faces.onnx"
    before = model.read_bytes()
    model.unlink()
    push(run, given(run, model=None, private=True))
    assert hub.repositories[NAME]["files"]["faces.onnx"] == model.read_bytes() == before
    assert hub.repositories[NAME]["private"]


@pytest.mark.parametrize("answer", [True, False])
def test_the_user_is_asked_once_everything_is_shown(run: Path, hub: Hub, answer: bool) -> None:
    said, asked = list[str](), list[int]()

    def ask(question: str) -> bool:
        asked.append(len(said))
        assert question == "Upload these files?"
        assert not [path for method, path, _ in hub.requests if method != "GET"], "nothing is sent before the answer"
        return answer

    config = given(run, yes=False)
    if answer:
        push(run, config, said.append, ask)
        assert NAME in hub.repositories
    else:
        with pytest.raises(ConfigError, match="not confirmed, nothing is uploaded"):
            push(run, config, said.append, ask)
        assert hub.repositories == {}
    assert asked == [4]


def test_no_answer_is_no(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*_: object, **__: object) -> bool:
        raise cli.typer.Abort  # standard input has ended

    monkeypatch.setattr(cli.typer, "confirm", ended)
    assert cli._confirmed("Upload these files?") is False


def test_nobody_to_ask_is_a_refusal_before_any_request(run: Path, hub: Hub) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "thera", "push", str(run), NAME]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"error: thera push {NAME}: uploads nothing without being asked, and there is no terminal to ask at; "
        "give --yes\n"
    )
    assert hub.requests == []


def test_the_command_line_uploads_and_shows_the_files(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["push", str(run), NAME, "--model", str(run / "export/faces.onnx"), "--yes"]) in (0, None)
    shown = capsys.readouterr()
    assert "faces.onnx" in shown.out and f"{hub.address}/{NAME}" in shown.out and "hf_good" not in shown.out + shown.err


def test_a_private_upload_never_reaches_a_public_repository(run: Path, hub: Hub) -> None:
    hub.repositories[NAME] = {"private": False, "files": {}}
    with pytest.raises(ConfigError, match="--private: owner/faces is there already and is public"):
        push(run, given(run, private=True))
    assert hub.repositories[NAME]["files"] == {}
    hub.repositories[NAME]["private"] = True
    assert push(run, given(run, private=True)).private


ECHO = "no permission for hf_good"


@pytest.mark.parametrize(
    ("path", "refusal", "message"),
    [
        (
            "/api/repos/create",
            (403, {"X-Error-Message": ECHO}, {"error": ECHO}),
            r"\(403: no permission for …\); use a",
        ),
        ("/api/models", (403, {"X-Error-Code": "GatedRepo"}, {"error": "ask first"}), r"is gated \(403: ask first\)"),
        ("/api/repos/create", (404, {}, {"error": "no such owner"}), r"\(404: no such owner\); see whether OWNER"),
        ("/api/repos/create", (409, {}, {"error": "being renamed"}), r"\(409: being renamed\); give the same command"),
        (f"/api/models/{NAME}/commit", (409, {}, {"error": "a commit has happened since"}), "a commit has happened"),
        (f"/api/models/{NAME}/preupload", (429, {"Retry-After": "30"}, {"error": "slow down"}), "after 30 seconds"),
        (f"/{NAME}.git/info/lfs", (507, {}, {"error": "the quota is full"}), r"\(507: the quota is full\)"),
        ("/api/validate-yaml", (400, {}, {"errors": [{"message": "license is wrong"}]}), "license is wrong"),
        ("/lfs", (403, {}, {"error": "expired"}), r"\(403: expired\)"),
    ],
)
def test_a_refusal_keeps_the_reason_of_the_server(
    run: Path, hub: Hub, path: str, refusal: tuple[int, dict[str, str], object], message: str
) -> None:
    hub.refusals[path] = refusal
    with pytest.raises(ResourceError, match=message) as caught:
        push(run, given(run))
    assert str(caught.value).startswith(f"{hub.address}/{NAME}: ")
    assert "hf_good" not in str(caught.value) and "\n" not in str(caught.value)
    hub.refusals.clear()
    push(run, given(run))  # the same command goes on


def test_a_wrong_token_and_none(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    with pytest.raises(ResourceError, match=r"\(401: Invalid credentials in Authorization header\); log in") as caught:
        push(run, given(run))
    assert "hf_bad" not in str(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ResourceError, match="there is no token for the hub; log in with `hf auth login`"):
        push(run, given(run))


def test_offline_and_out_of_reach(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ResourceError, match="HF_HUB_OFFLINE forbids any access to the hub; unset it"):
        push(run, given(run))
    assert hub.requests == []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(ResourceError, match=r"http://127\.0\.0\.1:9/owner/faces: cannot be reached"):
        push(run, given(run))


def test_a_file_that_the_repository_ignores_is_named(run: Path, hub: Hub) -> None:
    hub.ignored.add("faces.json")
    with pytest.raises(TheraError, match=r"was uploaded without faces\.json; see \.gitignore"):
        push(run, given(run))


# --- what is uploaded -------------------------------------------------------------------------------------------------


def test_a_model_that_is_damaged_or_of_another_decision_is_refused(run: Path, hub: Hub, tmp_path: Path) -> None:
    from dataclasses import replace

    from ensemble.runtime.onnx_file import opened, sealed

    data = (run / "export/faces.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match=r"cut\.onnx: is cut short"):
        push(run, given(run, model=tmp_path / "cut.onnx"))
    entry = data.rindex(b"\x72", 0, data.index(b"thera.schema"))
    other = replace(opened(run / "export/faces.onnx").facts, decision_sha256="0" * 64)
    (tmp_path / "other.onnx").write_bytes(sealed(data[:entry], other))
    with pytest.raises(ArtifactError, match="was exported from another decision than the run has now"):
        push(run, given(run, model=tmp_path / "other.onnx"))
    assert hub.repositories == {}


def test_an_edited_card_is_uploaded_as_it_is_and_a_file_of_others_is_not(run: Path, hub: Hub, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "faces"
    shutil.copytree(run, copy)
    edited = (copy / "README.md").read_text().replace("## Intended use", "## Meant for")
    (copy / "README.md").write_text(edited)
    push(copy, given(copy))
    assert "## Meant for" in hub.repositories[NAME]["files"]["README.md"].decode()
    (copy / "README.md").write_text("# Notes of somebody else\n")
    with pytest.raises(ArtifactError, match="has no model card; run: thera report"):
        push(copy, given(copy))
    (copy / "decision/decision.json").rename(tmp_path / "decision.json")
    with pytest.raises(ArtifactError, match="fit-stacker"):
        push(copy, given(copy))
    (tmp_path / "decision.json").rename(copy / "decision/decision.json")
    report(copy)  # it writes model-card.md beside the file of others
    push(copy, given(copy))
    assert "## Intended use" in hub.repositories[NAME]["files"]["README.md"].decode()


@pytest.mark.parametrize("name", ["faces", "a/b/c", "-a/b", "a/b--c", "a/b.git", "a/..", "ä/b", "a/" + 97 * "b"])
def test_a_name_that_the_hub_would_refuse_is_refused_at_once(name: str) -> None:
    with pytest.raises(ValueError, match="must be OWNER/NAME"):
        PushConfig(name=name)


def test_the_names_of_the_hub_are_allowed() -> None:
    from huggingface_hub.utils import validate_repo_id

    for name in ("owner/faces", "A1/b.c_d-e", "0/0"):
        validate_repo_id(PushConfig(name=name).name)


def test_the_run_records_the_upload(run: Path, hub: Hub) -> None:
    push(run, given(run))
    assert "push owner/faces" in json.dumps(json.loads((run / "run.json").read_text()))
