"""Members of a run: chosen for the decision, unfinished, removed, trained from scratch, trained for other epochs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import fails, listing, rewrite_json, write_tiny

from ensemble.cli import main
from ensemble.config import VIEWS, MemberConfig
from ensemble.errors import ConfigError
from ensemble.runs.files import write_logits
from ensemble.runs.locks import locked
from ensemble.runs.run import Run

TRAIN = ("--no-pretrained", "--epochs", "1", "--batch-size", "8", "--folds", "2", "--device", "cpu")


def train(folder: Path, name: str, *options: str) -> None:
    data = ["--images", f"{folder}/tiny/img", "--labels", f"{folder}/tiny/labels.txt"]
    given = ["train-member", "--arch", "test_resnet", "--name", name, "--run", f"{folder}/run", *data, *TRAIN]
    main([*given, *options])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run of the members a, b and c."""
    folder = tmp_path_factory.mktemp("trained")
    write_tiny(folder / "tiny", 48)
    write_tiny(folder / "new", 12, seed=1)
    for name in ("a", "b", "c"):
        train(folder, name)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the run."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def unfinish(run: Path, name: str, fold: int) -> None:
    """Let a member lack a fold, as after an interruption."""
    path = run / "members" / name / "member.json"
    facts = json.loads(path.read_text())
    del facts["folds"][str(fold)]
    rewrite_json(path, facts)
    shutil.rmtree(run / "members" / name / f"fold-{fold}")


def stacked(run: Path) -> list[str]:
    members = json.loads((run / "decision/decision.json").read_text())["tta"]["stacker"]["members"]
    assert isinstance(members, list)
    return members


# --- which members a decision uses ------------------------------------------------------------------------------------


def test_an_unfinished_member_is_left_out_and_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinish(run, "b", 1)
    capsys.readouterr()
    main(["fit-stacker", "--run", str(run)])
    err = capsys.readouterr().err
    assert (
        "warning: member b lacks fold 1 of 0 to 1 and is left out; to finish it, give its `thera train-member`" in err
    )
    assert stacked(run) == ["a", "c"]


def test_without_a_finished_member_nothing_is_fitted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c"):
        unfinish(run, name, 0)
    before = listing(run)
    line = fails(capsys, 4, "fit-stacker", "--run", run)
    assert "has no finished member: a lacks fold 0 of 0 to 1; give its `thera train-member` command again" in line
    assert listing(run) == before


def test_chosen_members_decide_and_prediction_needs_these_alone(
    run: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit-stacker", "--run", str(run), "--members", "c, a"])
    assert stacked(run) == ["a", "c"]
    shutil.rmtree(run / "members/b/fold-0")
    capsys.readouterr()
    main(["predict", "--run", str(run), "--images", str(trained / "new/img"), "--out", str(tmp_path / "l.txt")])
    assert "member b" not in capsys.readouterr().err, "it was left out on purpose"
    assert (run / "predictions/img-plain/predictions.csv").read_text().startswith("id,logit_a,logit_c,")
    assert len((tmp_path / "l.txt").read_text().splitlines()) == 12


def test_all_members_by_name_are_all_members(run: Path) -> None:
    main(["fit-stacker", "--run", str(run)])
    before = (run / "decision/decision.json").read_bytes()
    main(["fit-stacker", "--run", str(run), "--members", "a,b", "--members", "c"])
    assert (run / "decision/decision.json").read_bytes() == before


@pytest.mark.parametrize(
    ("members", "status", "message"),
    [
        ("a,z", 2, "error: --members: the run has no member z; it has a, b, c"),
        ("a,,b", 2, "--members must be names separated by commas, such as a,b"),
        ("a,b", 4, "error: member b: lacks fold 1 of 0 to 1; give its `thera train-member` command again"),
    ],
)
def test_members_that_cannot_be_chosen_are_refused(
    run: Path, members: str, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinish(run, "b", 1)
    before = listing(run)
    assert message in fails(capsys, status, "fit-stacker", "--run", run, "--members", members)
    assert listing(run) == before


def make_constant(run: Path, name: str) -> None:
    """Give all images of each fold one logit, as a collapsed training does."""
    member = Run(run).member(name)
    for fold in range(2):
        ids, logits = member.read_oof(fold, VIEWS)
        facts = json.loads((run / "members" / name / "member.json").read_text())
        sha256 = write_logits(member.fold(fold) / "oof.csv", ids, np.full_like(logits, fold - 3.0), VIEWS)
        facts["folds"][str(fold)]["oof_sha256"] = sha256
        rewrite_json(run / "members" / name / "member.json", facts)


def test_a_constant_member_is_left_out_unless_forced_by_the_option_that_the_warning_names(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_constant(run, "b")
    capsys.readouterr()
    main(["fit-stacker", "--run", str(run)])
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: member b")]
    assert warning.endswith("it is left out of the stack unless --force-members b is given")
    assert stacked(run) == ["a", "c"]
    main(["fit-stacker", "--run", str(run), *re.findall("--force-members b", warning)[0].split()])
    assert "member b gives the same logit" in capsys.readouterr().err
    assert stacked(run) == ["a", "b", "c"]
    line = fails(capsys, 2, "fit-stacker", "--run", run, "--force-members", "z")
    assert line == "error: --force-members: the run has no member z; it has a, b, c"


# --- removal ----------------------------------------------------------------------------------------------------------


def test_a_member_is_removed_with_its_logits_and_the_decision_is_stale(
    run: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict = ("predict", "--run", str(run), "--images", str(trained / "new/img"), "--out", str(tmp_path / "l.txt"))
    main(["fit-stacker", "--run", str(run)])
    main([*predict])
    others = {name: data for name, data in listing(run).items() if "/b/" not in name and name != "run.json"}
    capsys.readouterr()
    main(["remove-member", "--run", str(run), "b", "--yes"])
    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines() if line[:2] in ("a ", "c ")] == [["a", "2"], ["c", "2"]]
    assert "note: member b with 2 trained folds is removed" in err
    assert f"warning: the decision used b and is stale; run: thera fit-stacker --run {run}" in err
    assert {name: data for name, data in listing(run).items() if name != "run.json"} == others
    assert "remove-member b" in [entry.command for entry in Run(run).read().history]
    line = fails(capsys, 4, *predict)
    assert line.endswith(f"uses b, which the run no longer has; run: thera fit-stacker --run {run}")
    main(["fit-stacker", "--run", str(run)])
    main([*predict])
    assert stacked(run) == ["a", "c"]


def test_a_member_outside_the_decision_leaves_it_valid(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit-stacker", "--run", str(run), "--members", "a,c"])
    capsys.readouterr()
    main(["remove-member", "--run", str(run), "b", "--yes"])
    assert "stale" not in capsys.readouterr().err
    main(["report", "--run", str(run)])
    assert "warning" not in capsys.readouterr().err
    main(["remove-member", "--run", str(run), "c", "--yes"])
    assert "the decision used c and is stale" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("b",), 2, "error: member b: holds 2 trained folds; to remove it for good, add --yes"),
        (("z", "--yes"), 2, "has no member z; it has a, b, c"),
        (("../members/b", "--yes"), 2, "has no member ../members/b; it has a, b, c"),
    ],
)
def test_a_removal_that_is_refused_removes_nothing(
    run: Path, arguments: tuple[str, ...], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = listing(run)
    assert message in fails(capsys, status, "remove-member", "--run", run, *arguments)
    assert listing(run) == before


def test_a_member_that_is_being_trained_is_not_removed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(run / "members/b"):
        assert "works here" in fails(capsys, 5, "remove-member", "--run", run, "b", "--yes")
    assert (run / "members/b/member.json").exists()


def test_without_a_run_nothing_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "run.json: is not there" in fails(capsys, 4, "remove-member", "--run", tmp_path / "no", "b", "--yes")
    assert not (tmp_path / "no").exists()


# --- what a member starts from, and for how long it is trained --------------------------------------------------------


@pytest.mark.parametrize("arch", ["small_cnn", "simple_cnn", "lenet"])
def test_a_network_without_weights_starts_from_scratch_unless_requested(arch: str) -> None:
    assert MemberConfig(arch=arch).pretrained is False
    assert MemberConfig(arch=arch, pretrained=True).pretrained is True
    assert MemberConfig(arch="resnet18").pretrained is True


def test_it_is_noted_and_an_explicit_request_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--images", f"{trained}/tiny/img", "--labels", f"{trained}/tiny/labels.txt", "--run", f"{tmp_path}/run"]
    command = ["train-member", "--arch", "lenet", *data, *TRAIN[1:]]
    line = fails(capsys, 2, *command, "--pretrained", "yes")
    assert line.startswith(
        "error: architecture lenet: has no pretrained weights; train from scratch with --no-pretrained"
    )
    main(command)
    note = "note: lenet has no pretrained weights; member lenet starts from scratch"
    assert note in capsys.readouterr().err
    main([*command, "--no-pretrained"])  # the same member
    assert note not in capsys.readouterr().err


def test_other_epochs_are_a_new_member_and_the_message_says_how(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "copy")
    before = listing(tmp_path / "copy")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path / "copy", "a", "--epochs", "3")
    line = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 4 and "epochs was 1 and is 3" in line
    assert line.endswith("other epochs make a new member: give it another name, such as --name a-3")
    assert {k: v for k, v in listing(tmp_path / "copy").items() if "lock" not in k} == {
        k: v for k, v in before.items() if "lock" not in k
    }
    train(tmp_path / "copy", "a-3", "--epochs", "3")
    assert Run(tmp_path / "copy/run").member("a-3").has_oof(1)


def test_members_of_a_decision_in_python_are_names() -> None:
    from ensemble.config import DecisionConfig
    from ensemble.config_reading import validated

    assert DecisionConfig(members=("a", "b")).members == ("a", "b")
    assert validated(DecisionConfig, {"members": "a, b,a"}, "x").members == ("a", "b")
    with pytest.raises(ConfigError, match="members must"):
        validated(DecisionConfig, {"members": 3}, "x")
