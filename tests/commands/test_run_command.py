"""The whole main path on tiny images, through the command line, as a user runs it."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tiny import fails, prediction_facts, rewrite_json, write_tiny

from ensemble.cli import main
from ensemble.commands import run as run_command
from ensemble.commands import train

MEMBER = """
  - {arch: resnet10t, name: a, pretrained: false, epochs: 4, batch_size: 8, ema_decay: 0.9, augment: light}
  - {arch: test_resnet, name: b, pretrained: false, epochs: 4, batch_size: 8, ema_decay: 0.9, augment: light}
"""
CONFIG = """
run: {folder}/run
seed: 3
folds: 3
data: {{images: {folder}/tiny/img, labels: {folder}/tiny/labels.txt}}
members:{members}
predict: {{images: {folder}/new/img, out: {folder}/label_val.txt}}
"""


def write_config(folder: Path, members: str = MEMBER) -> Path:
    write_tiny(folder / "tiny", 48)
    write_tiny(folder / "new", 12, seed=1)
    (folder / "run.yaml").write_text(CONFIG.format(folder=folder, members=members))
    return folder / "run.yaml"


def results(run: Path) -> dict[str, str]:
    """Hash what a run is judged by: OOF logits, weights, decision, labels."""
    files = [*run.glob("members/*/fold-*/*.*"), *run.glob("decision/*.json"), *run.glob("predictions/img/*.*")]
    kept = [path for path in files if path.name not in ("history.jsonl", ".lock", "predictions.json")]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("done")
    main(["run", str(write_config(folder)), "--device", "cpu"])
    return folder


def test_labels_are_those_of_the_images(done: Path) -> None:
    labels = np.loadtxt(done / "label_val.txt", dtype=int)
    truth = np.loadtxt(done / "new" / "labels.txt", dtype=int)
    assert labels.shape == (12,)
    assert np.mean(labels == truth) >= 0.9
    assert (done / "label_val.txt").read_bytes() == (done / "run/predictions/img/label_val.txt").read_bytes()


def test_the_run_folder_holds_every_artifact(done: Path) -> None:
    run = done / "run"
    with open(run / "folds.csv") as file:
        folds = list(csv.DictReader(file))
    assert [row["id"] for row in folds] == [f"{i:03d}" for i in range(1, 49)]
    for name in ("a", "b"):
        seen = []
        for fold in range(3):
            with open(run / f"members/{name}/fold-{fold}/oof.csv") as file:
                rows = list(csv.DictReader(file))
            assert list(rows[0]) == ["id", "logit_identity", "logit_hflip"]
            assert {row["id"] for row in rows} == {row["id"] for row in folds if row["fold"] == str(fold)}
            seen += [row["id"] for row in rows]
            history = (run / f"members/{name}/fold-{fold}/history.jsonl").read_text().splitlines()
            assert [json.loads(line)["epoch"] for line in history] == [1, 2, 3, 4]
            assert not (run / f"members/{name}/fold-{fold}/state").exists()
        assert sorted(seen) == [row["id"] for row in folds]
        assert json.loads((run / f"members/{name}/member.json").read_text())["oof"]["nested"]["n_pos"] == 36
    stored = json.loads((run / "run.json").read_text())
    assert [entry["command"] for entry in stored["history"]] == [
        "train-member a b",
        "fit-stacker",
        "predict img",
    ]
    assert not list(run.rglob("*.tmp"))


def begun(folder: Path, images: Path, labels: Path | None = None) -> list[dict[str, str]]:
    """Return the rows of the folds.csv that a run of three folds is begun with."""
    from ensemble.config import DataConfig
    from ensemble.data.source import open_source
    from ensemble.data.store import load_dataset
    from ensemble.progress import silent
    from ensemble.runs.run import Run

    run, data = Run(folder), DataConfig(images=images, labels=labels, resize=None)
    dataset = load_dataset(open_source(images, labels), run.pixels)
    table = train._begin(run, [], dataset, data, 3, 0, silent)
    again = train._begin(run, [], dataset, data, 3, 0, silent)  # read, not assigned anew
    for first, second in ((table.fold_of, again.fold_of), (table.groups, again.groups)):
        assert np.array_equal(first, second) if first is not None else second is None
    with open(folder / "folds.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["group"]) for row in rows if "group" in row] == ([] if table.groups is None else list(table.groups))
    return rows


def members_of(rows: list[dict[str, str]]) -> set[frozenset[str]]:
    """Return the ids of each group."""
    return {frozenset(row["id"] for row in rows if row["group"] == group) for group in {row["group"] for row in rows}}


def test_images_that_are_the_same_to_the_byte_are_one_group(tmp_path: Path) -> None:
    write_tiny(tmp_path, 24)
    images, labels = tmp_path / "img", tmp_path / "labels.txt"
    rows = begun(tmp_path / "all-differ", images, labels)
    assert list(rows[0]) == ["id", "label", "fold"]
    for copy, of in (("006", "002"), ("010", "002"), ("017", "009")):
        shutil.copyfile(images / f"{of}.png", images / f"{copy}.png")
    rows = begun(tmp_path / "same", images, labels)
    assert list(rows[0]) == ["id", "label", "fold", "group"]
    together = {frozenset({"002", "006", "010"}), frozenset({"009", "017"})}
    assert {group for group in members_of(rows) if len(group) > 1} == together
    assert len(members_of(rows)) == 24 - 3
    fold_of = {row["id"]: row["fold"] for row in rows}
    assert all(len({fold_of[image] for image in group}) == 1 for group in together)


def test_groups_that_share_an_image_are_one_group(tmp_path: Path) -> None:
    labels = write_tiny(tmp_path, 24)
    shutil.copyfile(tmp_path / "img/002.png", tmp_path / "img/007.png")  # of groups 0 and 1
    lines = [f"img/{row:03d}.png,{label},{(row - 1) // 4}" for row, label in enumerate(labels.tolist(), 1)]
    (tmp_path / "set.csv").write_text("path,label,group\n" + "\n".join(lines) + "\n")
    groups = members_of(begun(tmp_path / "run", tmp_path / "set.csv"))
    assert sorted(map(len, groups)) == [4, 4, 4, 4, 8]


def test_predictions_follow_from_the_decision(done: Path) -> None:
    decision = json.loads((done / "run/decision/decision.json").read_text())["tta"]
    with open(done / "run/predictions/img/predictions.csv") as file:
        rows = list(csv.DictReader(file))
    logits = np.array([[float(row[f"logit_{name}"]) for name in ("a", "b")] for row in rows])
    stacker = decision["stacker"]
    stacked = logits @ np.array(stacker["weights"]) + stacker["bias"]
    np.testing.assert_allclose(stacked, [float(row["stacked_logit"]) for row in rows], atol=1e-4)
    labels = [int(row["label"]) for row in rows]
    facts = prediction_facts(done / "run/predictions/img/predictions.json")
    assert facts["threshold"] == decision["stacked"]["threshold"], "too few images to correct it"
    assert (facts["averaging_measured"], facts["correction"], facts["corrections"]) == (False, "none", {})
    assert labels == [int(x >= decision["stacked"]["threshold"]) for x in stacked]
    assert labels == np.loadtxt(done / "label_val.txt", dtype=int).tolist()
    thresholds = {member["name"]: member["threshold"] for member in decision["members"]}
    for row, (a, b) in zip(rows, logits, strict=True):
        assert (int(row["vote_a"]), int(row["vote_b"])) == (int(a >= thresholds["a"]), int(b >= thresholds["b"]))
        assert int(row["majority"]) == int(int(row["vote_a"]) + int(row["vote_b"]) >= 1)
    np.testing.assert_allclose([float(row["probability"]) for row in rows], 1 / (1 + np.exp(-stacked)), atol=1e-5)


def test_prediction_averages_folds_and_views(done: Path) -> None:
    """The logits of predictions.csv, computed anew with plain torch from the weights on disk."""
    import torch

    from ensemble.config import MemberConfig
    from ensemble.members.backbones import build
    from ensemble.runs.run import Run

    member = Run(done / "run").member("b")
    config = MemberConfig.model_validate(member.read().current_config)
    image = cv2.cvtColor(cv2.imread(str(done / "new/img/005.png")), cv2.COLOR_BGR2RGB)
    network, logits = build(config, 16).eval(), []
    for fold in range(3):
        network.load_state_dict(member.read_weights(fold))
        with torch.inference_mode():
            logits += [float(network(torch.from_numpy(x.copy())[None])) for x in (image, image[:, ::-1])]
    with open(done / "run/predictions/img/predictions.csv") as file:
        row = list(csv.DictReader(file))[4]
    assert row["id"] == "005"
    assert float(row["logit_b"]) == pytest.approx(np.mean(logits), abs=2e-4)


def test_report_is_the_same_on_screen_and_on_disk(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    main(["report", "--run", str(done / "run"), "--full"])
    shown = capsys.readouterr().out
    written = json.loads((done / "run/report.json").read_text())
    nested = written["decisions"]["tta"]["stack"]["nested"]["hter"]
    assert f"nested HTER {nested:.4f}" in shown
    assert f"nested HTER {nested:.4f}" in (done / "run/report.md").read_text()
    facts = written["predictions"]["img"]
    assert facts["images"] == 12 and facts["expectation"]["rates"]["hter"] == nested, "too few images to see averaging"
    assert "Label files: expected HTER" in shown
    main(["report", "--run", str(done / "run")])
    short = capsys.readouterr().out.splitlines()
    assert len(short) < 40 < len(shown.splitlines()) and max(map(len, short)) <= 80
    in_short = short[short.index("In short") + 1 :]
    assert len(in_short) <= 5 or max(map(len, in_short)) > 60, "a long path may be wrapped"
    assert in_short[0].startswith("Label file img: ") and in_short[1].startswith("Stack of 2 members: nested HTER ")
    assert f"nested HTER {nested:.4f}" in in_short[1]


def test_again_changes_nothing_and_trains_nothing(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemble.members import inference, training

    before = results(done / "run")
    for module, name in ((training, "train_fold"), (inference, "predict_logits")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("computed again"))
    main(["run", str(done / "run.yaml"), "--device", "cpu"])
    assert results(done / "run") == before


def test_another_decision_in_yaml_is_made_without_training(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`decision:`, and the prior and correction of `predict:`, on a run whose members and logits are there."""
    from ensemble.members import inference, training

    shutil.copytree(done / "run", tmp_path / "run")
    text = (done / "run.yaml").read_text().replace(f"run: {done}/run", f"run: {tmp_path}/run")
    text = text.replace(f"out: {done}/label_val.txt", f"out: {tmp_path}/l.txt, prior: 0.4, correction: none")
    (tmp_path / "c.yaml").write_text(text + "decision: {objective: 'cost:3,1', stacker: mean, repeats: 2}\n")
    for module, name in ((training, "train_fold"), (inference, "predict_logits")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("computed again"))
    monkeypatch.setenv("COLUMNS", "1000")
    main(["run", str(tmp_path / "c.yaml"), "--device", "cpu", "--full"])
    shown = capsys.readouterr().out
    decisions = json.loads((tmp_path / "run/decision/decision.json").read_text())
    for key in ("plain", "tta"):
        made = {name: decisions[key][name] for name in ("objective", "kind")}
        assert made == {"objective": "cost:3,1", "kind": "mean"}
        assert len(decisions[key]["repeated"]) == 2
    facts = prediction_facts(tmp_path / "run/predictions/img/predictions.json")
    assert (facts["objective"], facts["requested_correction"], facts["requested_prior"]) == ("cost:3,1", "none", 0.4)
    assert "the least weighted error (3 FPR + 1 FNR) / 4" in shown and "Nested HTER over 2 other partitions" in shown
    assert "where label 0 is 0.4000 of the images, as given" in shown
    for part in ("rule", "stacker", "least", "bound,", "set"):  # the head of each table of the decision
        assert any(line.split()[:1] == [part] for line in shown.splitlines()), part


def test_a_wrong_objective_begins_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    config.write_text(config.read_text() + "decision: {objective: 'cost:0,1'}\n")
    assert "objective: must be one of hter, cost:A,B" in fails(capsys, 2, "run", config, "--device", "cpu")
    assert not (tmp_path / "run").exists()


def test_unknown_members_of_the_decision_begin_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    config.write_text(config.read_text() + "decision: {members: [a, z]}\n")
    line = fails(capsys, 2, "run", config, "--device", "cpu")
    assert line == "error: decision.members: z is no member of the run; they are a, b"
    assert not (tmp_path / "run").exists()


def test_plain_prediction_has_its_own_decision(done: Path) -> None:
    main(["predict", "--run", str(done / "run"), "--images", str(done / "tiny/img"), "--out", str(done / "p.txt")])
    made = prediction_facts(done / "run/predictions/img-plain/predictions.json")
    assert made["requested_views"] == ["identity"] and made["images"] == 48
    main(["predict", "--tta", "--run", str(done / "run"), "--images", str(done / "new/img"), "--out", str(done / "q")])
    assert (done / "q").read_bytes() == (done / "label_val.txt").read_bytes()


def start(config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from ensemble.cli import main; main()", "run", str(config), "--device", "cpu"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists(), process.communicate()[1]


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_started_again_gives_the_same(done: Path, tmp_path: Path, kind: signal.Signals) -> None:
    config = write_config(tmp_path)
    process = start(config)
    wait_for(tmp_path / "run/members/a/fold-1/state/epoch-0001.json", process)
    os.kill(process.pid, kind)
    err = process.communicate()[1]
    if kind == signal.SIGTERM:
        assert process.returncode == 75, err
        assert "\nstopped by SIGTERM" in err and "Traceback" not in err
    assert "1" not in json.loads((tmp_path / "run/members/a/member.json").read_text())["folds"]
    main(["run", str(config), "--device", "cpu"])
    assert results(tmp_path / "run") == results(done / "run")


def test_the_second_start_of_a_member_names_the_process_that_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ensemble.runs.locks import locked

    config = write_config(tmp_path)
    with locked(tmp_path / "run/members/a"):
        message = fails(capsys, 5, "run", config)
    assert f"pid {os.getpid()} on " in message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("s/epochs: 4/epochs: 5/", "epochs was 4 and is 5"),
        ("s/seed: 3/seed: 4/", "seed was 3 and is 4"),
        ("s/folds: 3/folds: 2/", "folds was 3 and is 2"),
        ("image", "begun with other data: 1 image files changed (007)"),
        ("label", "begun with other data: 2 labels changed (001, 002)"),
    ],
)
def test_changed_run_is_refused(
    done: Path, tmp_path: Path, change: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = results(done / "run")
    text, data = (done / "run.yaml").read_text(), done / "tiny"
    if change.startswith("s/"):
        text = text.replace(*change.split("/")[1:3], 1)
    else:
        data = tmp_path / "tiny"
        write_tiny(data, 48)
        if change == "image":
            cv2.imwrite(str(data / "img/007.png"), np.full((16, 16, 3), 9, np.uint8))
        else:
            (data / "labels.txt").write_text((data / "labels.txt").read_text().replace("0\n1", "1\n0", 1))
    (tmp_path / "changed.yaml").write_text(text.replace(str(done / "tiny"), str(data)))
    assert named in fails(capsys, 4, "run", tmp_path / "changed.yaml")
    assert results(done / "run") == before


def test_faults_of_artifacts_are_named(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(done / "run", run)
    oof, weights = run / "members/b/fold-2/oof.csv", run / "members/a/fold-0/weights.safetensors"
    whole = oof.read_bytes()
    oof.write_bytes(whole.replace(b"0", b"1", 1))
    assert "hash differs" in fails(capsys, 4, "fit-stacker", "--run", run)
    oof.unlink()
    assert "members/b/fold-2/oof.csv: is not there; give its `thera train-member` command again" in fails(
        capsys, 4, "fit-stacker", "--run", run
    )
    oof.write_bytes(whole)
    data = bytearray(weights.read_bytes())
    data[-3] ^= 4
    weights.write_bytes(data)
    predict = ("predict", "--run", run, "--images", done / "new/img", "--out", tmp_path / "out.txt")
    shutil.rmtree(run / "predictions")  # with the logits there, no weights are read
    assert "weights.safetensors: is not the file that training wrote" in fails(capsys, 4, *predict)
    assert not (tmp_path / "out.txt").exists()
    stored: dict[str, Any] = json.loads((run / "members/a/member.json").read_text())
    stored["folds"]["0"]["oof_sha256"] = "0" * 64
    rewrite_json(run / "members/a/member.json", stored)
    assert "was fitted on other OOF logits" in fails(capsys, 4, *predict)
    (run / "run.json").write_text(json.dumps(json.loads((run / "run.json").read_text()) | {"schema": 99}))
    assert "has schema 99" in fails(capsys, 4, "report", "--run", run)


def test_images_of_another_size_are_refused(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny(tmp_path / "large", 4, size=24)
    message = fails(
        capsys, 3, "predict", "--run", done / "run", "--images", tmp_path / "large/img", "--out", tmp_path / "o"
    )
    assert "24 × 24" in message


def test_expected_hter_is_read_off_enough_images(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemble.decision import averaging, deploy

    write_tiny(tmp_path / "more", 40, seed=2)
    command = ["predict", "--tta", "--run", str(done / "run"), "--images", str(tmp_path / "more/img")]
    main([*command, "--out", str(tmp_path / "few")])
    (few,) = [path for path in (done / "run/predictions").glob("img-*/predictions.json") if _images(path) == 40]
    assert not prediction_facts(few)["averaging_measured"]
    few.unlink()
    for module in (averaging, deploy):
        monkeypatch.setattr(module, "LEAST_IMAGES", 40)
    main([*command, "--out", str(tmp_path / "unlike")])  # no g of 48 rows gives their rates
    assert not prediction_facts(few)["averaging_measured"]
    few.unlink()
    monkeypatch.setattr(averaging, "MOST_MISFIT", 1.0)
    main([*command, "--out", str(tmp_path / "enough")])
    facts = prediction_facts(few)
    assert facts["averaging_measured"]
    assert 0 <= facts["expected_interval"][0] <= facts["expected_interval"][1] <= 1
    assert facts["expected"]["hter"] == pytest.approx(sum(facts["expected"][k] for k in ("fpr", "fnr")) / 2)
    assert (tmp_path / "few").read_bytes() == (tmp_path / "enough").read_bytes()


def _images(path: Path) -> int:
    return int(json.loads(path.read_text())["images"])


def test_impossible_folds_begin_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    text = config.read_text()
    config.write_text(text.replace("folds: 3", "folds: 50"))
    assert "--folds" in fails(capsys, 3, "run", config)
    config.write_text(text.replace("folds: 3", "folds: 2").split("predict:")[0].split("  - {arch: test_resnet")[0])
    main(["run", str(config), "--device", "cpu"])


def test_sets_of_one_name_do_not_overwrite_each_other(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One image alone, too: it has a label, and no HTER to measure; and it is no shift."""
    write_tiny(tmp_path, 1)
    before = results(done / "run")
    main(
        [
            "predict",
            "--tta",
            "--run",
            str(done / "run"),
            "--images",
            str(tmp_path / "img"),
            "--out",
            str(tmp_path / "o"),
        ]
    )
    assert before.items() <= results(done / "run").items()
    assert (tmp_path / "o").read_text() in ("0\n", "1\n")
    assert "warning" not in capsys.readouterr().err


def test_a_first_start_that_fails_does_not_fix_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no-cache"))
    write_tiny(tmp_path / "tiny", 48)
    command = ["train-member", "--arch", "test_resnet", "--run", tmp_path / "run", "--images", tmp_path / "tiny/img"]
    command += ["--labels", tmp_path / "tiny/labels.txt", "--folds", 2, "--epochs", 1, "--batch-size", 8]
    command += ["--device", "cpu"]
    assert "or train from scratch with --no-pretrained" in fails(capsys, 6, *command)
    assert "did you mean" in fails(capsys, 2, *command[:2], "test_resnett", *command[3:])
    main([str(part) for part in [*command, "--no-pretrained"]])
    assert "pretrained was False and is True" in fails(capsys, 4, *command)


def test_lost_weights_are_trained_anew_to_the_same(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "run", tmp_path / "run")
    (tmp_path / "run/members/b/fold-1/weights.safetensors").unlink()
    config = tmp_path / "again.yaml"
    config.write_text((done / "run.yaml").read_text().replace(f"run: {done}/run", f"run: {tmp_path}/run"))
    main(["run", str(config), "--device", "cpu"])
    assert results(tmp_path / "run") == results(done / "run")


def test_a_member_outside_the_decision_is_named(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(done / "run", tmp_path / "run")
    shutil.copytree(tmp_path / "run/members/a", tmp_path / "run/members/late")
    capsys.readouterr()
    main(["report", "--run", str(tmp_path / "run")])
    assert "warning: member late is not in the decision; run: thera fit-stacker" in capsys.readouterr().err


def test_one_member_from_weights_through_the_single_commands(tmp_path: Path) -> None:
    """`train-member`, `fit-stacker`, `predict`, `report`, from a safetensors file, with groups from a manifest."""
    import timm
    from safetensors.torch import save_file

    labels = write_tiny(tmp_path / "tiny", 48)
    lines = [f"tiny/img/{row:03d}.png,{label},{(row - 1) // 8}" for row, label in enumerate(labels, 1)]
    (tmp_path / "set.csv").write_text("path,label,group\n" + "\n".join(lines) + "\n")
    save_file(timm.create_model("test_resnet", num_classes=10).state_dict(), tmp_path / "w.safetensors")
    run = str(tmp_path / "run")
    main(
        [
            "train-member",
            "--arch",
            "test_resnet",
            "--images",
            str(tmp_path / "set.csv"),
            "--run",
            run,
            "--folds",
            "2",
            "--epochs",
            "2",
            "--batch-size",
            "8",
            "--weights",
            str(tmp_path / "w.safetensors"),
            "--device",
            "cpu",
        ]
    )
    main(["fit-stacker", "--run", run])
    main(["predict", "--tta", "--run", run, "--images", str(tmp_path / "set.csv"), "--out", str(tmp_path / "l.txt")])
    main(["report", "--run", run])
    with open(tmp_path / "run/folds.csv") as file:
        rows = list(csv.DictReader(file))
    folds_of_group: dict[str, set[str]] = {}
    for row in rows:
        folds_of_group.setdefault(row["group"], set()).add(row["fold"])
    assert all(len(folds) == 1 for folds in folds_of_group.values())
    assert len((tmp_path / "l.txt").read_text().splitlines()) == 48


def test_demo_holds_its_result_against_the_best_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ensemble.config import MemberConfig

    config = run_command.load_config(run_command.demo_config())
    member = {"arch": "test_resnet", "pretrained": False, "epochs": 2, "batch_size": 8, "ema_decay": 0.9}
    small = config.model_copy(update={"members": (MemberConfig.model_validate(member),)})
    monkeypatch.setattr("ensemble.commands.run.load_config", lambda _: small)
    monkeypatch.setattr("ensemble.commands.run.DEMO_IMAGES", 96)
    capsys.readouterr()
    main(["demo", "--run", str(tmp_path / "demo"), "--device", "cpu"])
    shown = capsys.readouterr().out
    truth, given = (np.loadtxt(tmp_path / "demo/data" / name, dtype=int) for name in ("truth_val.txt", "given_val.txt"))
    y_pred = np.loadtxt(tmp_path / "demo/label_val.txt", dtype=int)
    for labels, what in ((given, "as given"), (truth, "true classes")):
        hter = (np.mean(y_pred[labels == 0] == 1) + np.mean(y_pred[labels == 1] == 0)) / 2
        line = next(
            line for line in shown.splitlines() if line.startswith("label_val.txt against the") and what in line
        )
        assert line.split()[-1] == f"{hter:.4f}"
    assert "(Bayes)" in shown and "0.1428" in shown
