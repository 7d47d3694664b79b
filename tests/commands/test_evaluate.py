"""`thera evaluate` and `thera compare`, through the command line, on label files and on runs of made-up OOF logits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import rewrite_json

from ensemble.cli import main
from ensemble.commands import evaluate as command
from ensemble.commands import fit_stacker as fit_stacker_command
from ensemble.config import VIEWS, DecisionConfig
from ensemble.data.folds import FoldTable
from ensemble.decision.assessment import Candidate, compare_nested
from ensemble.decision.comparison import compare_predictions, measure_predictions
from ensemble.decision.cross_fitting import OofLogits, stack
from ensemble.decision.rates import error_rates
from ensemble.runs.member import MemberIdentity
from ensemble.runs.run import Run, RunFacts

N = 240
IDS = np.array([f"{row:03d}" for row in range(1, N + 1)])
LABELS = (np.arange(N) % 4 > 0).astype(np.int8)
FOLD_OF = (np.arange(N) // 4 % 3).astype(np.int8)


def write_run(
    folder: Path,
    members: dict[str, float],
    order: np.ndarray | None = None,
    labels: np.ndarray = LABELS,
    ids: np.ndarray = IDS,
    groups: np.ndarray | None = None,
    fit: bool = True,
    fold_of: np.ndarray = FOLD_OF,
) -> Path:
    """Write a run whose members' logits lie at ± their separation, noise 1, with its rows in the given order."""
    run, order = Run(folder), np.arange(N) if order is None else order
    run.begin(RunFacts(5, 3, N, (8, 8), None, "f", "images", "labels"))
    table = FoldTable(ids[order], labels[order], fold_of[order], None if groups is None else groups[order])
    run.write_folds(table)
    for name, separation in members.items():
        noise = np.random.default_rng(sum(map(ord, name))).normal(size=(N, len(VIEWS)))
        logits = (noise + separation * (2.0 * LABELS[:, None] - 1))[order]
        member = run.member(name)
        member.begin({"arch": name}, MemberIdentity("f", 5, "fp32"))
        for fold in range(3):
            rows = np.flatnonzero(table.fold_of == fold)
            member.finish_fold(fold, {}, table.ids[rows], logits[rows], VIEWS)
    if fit:
        fit_stacker_command.fit_stacker(folder, DecisionConfig(), lambda _: None)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the runs `good` (members strong, weak), `poor` (weak) and label files."""
    folder = tmp_path_factory.mktemp("made")
    write_run(folder / "good", {"strong": 2.0, "weak": 0.6})
    write_run(folder / "poor", {"weak": 0.6})
    write_labels(folder / "truth.txt", LABELS)
    write_labels(folder / "a.txt", flipped(60))
    write_labels(folder / "b.txt", flipped(20))
    return folder


def write_labels(path: Path, labels: np.ndarray) -> Path:
    path.write_text("".join(f"{label}\n" for label in labels.tolist()))
    return path


def flipped(count: int) -> np.ndarray:
    return np.where(np.arange(N) < count, 1 - LABELS, LABELS).astype(np.int8)


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    """Return the lines of all tables, in a terminal that is wide enough for each line."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "1000")
        main([*map(str, arguments), "--full"])
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def fails(capsys: pytest.CaptureFixture[str], status: int, *arguments: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert (stopped.value.code, out, err.count("\n")) == (status, "", 1), err
    return err.removeprefix("error: ").rstrip()


def row(lines: list[str], start: str) -> list[str]:
    (found,) = [line for line in lines if line.startswith(start)]
    return found.removeprefix(start).replace("[", "").replace("]", "").replace(",", "").split()


# --- evaluate ---------------------------------------------------------------------------------------------------------


def test_evaluate_prints_rates_confusion_and_report(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "evaluate", made / "a.txt", "--labels", made / "truth.txt")
    assert lines[0].startswith("a.txt against truth.txt: HTER 0.2500 [")
    assert row(lines, "FPR ")[:3] == ["15", "60", "0.2500"]
    assert row(lines, "FNR ")[:3] == ["45", "180", "0.2500"]
    low, high = map(float, row(lines, "HTER ")[1:])
    assert low < 0.25 < high
    assert row(lines, "label 0") == ["45", "15", "60"] and row(lines, "label 1") == ["45", "135", "180"]
    assert row(lines, "1  ") == ["0.9000", "0.7500", "0.8182", "180"]
    assert "Accuracy 0.7500, balanced accuracy 0.7500." in lines


@pytest.mark.parametrize("form", ["\ufeff{}", "{}\n"], ids=["byte-order mark", "one more newline"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_a_label_file_from_any_editor_reads_the_same(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, newline: str
) -> None:
    for name in ("a.txt", "truth.txt"):
        text = form.format((made / name).read_text()).replace("\n", newline)
        (tmp_path / name).write_bytes(text.encode())
    expected = shown(capsys, "evaluate", made / "a.txt", "--labels", made / "truth.txt")
    assert shown(capsys, "evaluate", tmp_path / "a.txt", "--labels", tmp_path / "truth.txt") == expected


@pytest.mark.parametrize(
    ("called", "truth", "said"),
    [
        ("1\n" * 3, "0\n1\n", "{called}: 3 lines for the 2 labels of {truth}; give one line for each image"),
        ("1\n", "0\n1\n", "{called}: 1 lines for the 2 labels of {truth}; give one line for each image"),
        ("0\n1\n", "1\n1\n", "{truth}: HTER needs both classes; all 2 labels are 1"),
        ("0\n1\n", "0\n0\n", "{truth}: HTER needs both classes; all 2 labels are 0"),
        ("0\n2\n", "0\n1\n", "{called}: line 2: must be 0 or 1; got '2'"),
        ("0\n1\n", "0\nx\n", "{truth}: line 2: must be 0 or 1; got 'x'"),
        ("", "0\n1\n", "{called}: holds no labels"),
        (None, "0\n1\n", "{called}: cannot be read: No such file"),
        ("0\n1\n", None, "{truth}: cannot be read: No such file"),
    ],
)
def test_what_cannot_be_evaluated_is_a_data_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], called: str | None, truth: str | None, said: str
) -> None:
    paths = {"called": tmp_path / "called.txt", "truth": tmp_path / "truth.txt"}
    for path, text in zip(paths.values(), (called, truth), strict=True):
        if text is not None:
            path.write_text(text)
    assert fails(capsys, 3, "evaluate", paths["called"], "--labels", paths["truth"]).startswith(said.format(**paths))
    if called is not None and truth is not None:
        message = fails(capsys, 3, "compare", paths["called"], paths["called"], "--labels", paths["truth"])
        assert message.startswith(said.format(**paths))


def test_evaluate_needs_labels(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--labels is missing" in fails(capsys, 2, "evaluate", made / "a.txt")
    assert "holds no images" in fails(capsys, 3, "evaluate", made, "--labels", made / "truth.txt")


# --- compare: label files ---------------------------------------------------------------------------------------------


def test_label_files_are_compared(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "compare", made / "a.txt", made / "b.txt", "--labels", made / "truth.txt")
    compared = compare_predictions(LABELS, flipped(60), flipped(20))
    for name, y_pred in (("A: a.txt", flipped(60)), ("B: b.txt", flipped(20))):
        counted = measure_predictions(LABELS, y_pred).hter
        assert row(lines, name)[7:] == [f"{counted.low:.4f}", f"{counted.high:.4f}"]
    assert row(lines, "A: a.txt")[::3] == ["0.2500"] * 3
    assert row(lines, "B: b.txt")[::3] == [f"{rate:.4f}" for rate in (5 / 60, 15 / 180, 1 / 12)]
    value, low, high = map(float, row(lines, "B minus A ")[6:])
    assert (low, value, high) == pytest.approx(
        (compared.hter.interval.low, -1 / 6, compared.hter.interval.high), abs=5e-5
    )
    assert row(lines, "all ")[:4] == ["0", "40", "180", "20"]
    (said,) = [line for line in lines if line.startswith("b.txt's")]
    assert said.startswith("b.txt's HTER is 0.1667 lower than a.txt's (95 %: ") and said.endswith("beyond chance.")


def test_files_of_one_name_are_reported_apart_by_their_path(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_labels(tmp_path / "a.txt", flipped(0))
    lines = shown(capsys, "compare", made / "a.txt", tmp_path / "a.txt", "--labels", made / "truth.txt")
    assert any(line.startswith(f"{tmp_path}/a.txt's HTER is 0.2500 lower than {made}/a.txt's") for line in lines)
    assert row(lines, f"B: {tmp_path}/a.txt")[::3] == ["0.0000"] * 3


def test_identical_predictions_are_reported_as_such(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "compare", made / "a.txt", made / "a.txt", "--labels", made / "truth.txt")
    assert f"{made}/a.txt and {made}/a.txt predict the same for all 240 images." in lines
    assert set(row(lines, "B minus A ")) == {"+0.0000"}


def test_a_command_line_that_cannot_be_meant(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, 2, "compare", made / "a.txt", made / "b.txt")
    assert message == "compare: two label files need the true labels; give --labels"
    for pair in ((made / "good", made / "a.txt"), (made / "a.txt", made / "good")):
        message = fails(capsys, 2, "compare", *pair, "--labels", made / "truth.txt")
        assert message.startswith(
            f"compare: {made}/good is a folder and {made}/a.txt a label file; give two label files"
        )
    message = fails(capsys, 3, "compare", made / "good", made / "god")
    assert message.startswith(f"{made}/god: does not exist; name a run's folder")
    assert fails(capsys, 2, "compare", made / "good").startswith("thera compare: Missing argument 'B'; ")


# --- compare: runs and members ----------------------------------------------------------------------------------------


def test_runs_and_members_are_compared_by_their_nested_predictions(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    lines = shown(capsys, "compare", made / "poor", made / "good/members/strong")
    decision = json.loads((made / "good/decision/decision.json").read_text())["tta"]
    poor = json.loads((made / "poor/decision/decision.json").read_text())["tta"]
    (strong,) = [member for member in decision["members"] if member["name"] == "strong"]
    for start, stored in (("A: poor", poor["stacked"]), ("B: strong", strong)):
        found, nested = row(lines, start), stored["nested"]
        assert found[::3] == [f"{x:.4f}" for x in (nested["fpr"], nested["fnr"], (nested["fpr"] + nested["fnr"]) / 2)]
        assert stored["refitted"]
        for at, name in ((1, "fpr"), (4, "fnr"), (7, "interval")):
            ends = [f"{stored[name][end]:.4f}" for end in ("low", "high")]
            assert found[at : at + 2] == ends, "with the replicates of the report"
    assert any(line.startswith("strong's HTER is ") and line.endswith("beyond chance.") for line in lines)
    assert "A is the stack of weak at the least HTER, B is the member strong alone at the least HTER." in lines
    assert any(line.startswith("Nested: ") and "; views identity + hflip. The intervals" in line for line in lines)
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before


def test_the_stacks_nested_predictions_are_those_of_its_report(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, key in (("--tta", "tta"), ("--no-tta", "plain")):
        nested = json.loads((made / "good/decision/decision.json").read_text())[key]["stacked"]["nested"]
        lines = shown(capsys, "compare", made / "good", made / "poor", option)
        assert row(lines, "A: good")[:4:3] == [f"{nested[rate]:.4f}" for rate in ("fpr", "fnr")]
        assert any("views identity. The intervals" in line for line in lines) == (key == "plain")
    assert shown(capsys, "compare", made / "good", made / "poor") != lines, "--tta is the default"


def test_swapping_the_sides_turns_the_sign(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = shown(capsys, "compare", made / "good", made / "poor")
    other = shown(capsys, "compare", made / "poor", made / "good")
    assert row(one, "A: good") == row(other, "B: good")
    assert row(one, "B minus A ")[::3] == [f"{-float(value):+.4f}" for value in row(other, "B minus A ")[::3]]
    assert "higher than good's" in "".join(one) and "lower than poor's" in "".join(other)


def test_rows_are_joined_by_id(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed = write_run(tmp_path / "good", {"strong": 2.0, "weak": 0.6}, np.random.default_rng(1).permutation(N))
    lines = shown(capsys, "compare", made / "good", mixed)
    assert f"{made}/good and {mixed} predict the same for all 240 images." in lines
    swapped = shown(
        capsys, "compare", mixed, made / "poor", "--labels", write_labels(tmp_path / "l", mixed_labels(mixed))
    )
    assert (
        row(swapped, "B minus A ")[::3]
        == row(shown(capsys, "compare", made / "good", made / "poor"), "B minus A ")[::3]
    )


def mixed_labels(folder: Path) -> np.ndarray:
    return Run(folder).read_folds().labels


def test_a_member_needs_no_stacker_and_a_run_does(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfitted = write_run(tmp_path / "unfitted", {"strong": 2.0}, fit=False)
    lines = shown(capsys, "compare", unfitted / "members/strong", made / "good/members/weak")
    assert "A is the member strong alone at the least HTER, B is the member weak alone at the least HTER." in lines
    message = fails(capsys, 4, "compare", unfitted, made / "good")
    assert message.endswith(f"decision.json: is not there; run: thera fit-stacker --run {unfitted}")


def test_a_folder_may_be_named_from_inside(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = shown(capsys, "compare", made / "good/members/strong", made / "good/members/weak")
    monkeypatch.chdir(made / "good/members/strong")
    assert shown(capsys, "compare", ".", "../weak/") == expected


def test_groups_are_heeded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = np.arange(N) // 4 % 3 + 3 * (np.arange(N) // 48)  # 15 groups of 16 rows, each in one fold
    for name, given in (("plain", None), ("grouped", groups)):
        write_run(tmp_path / name, {"strong": 1.0, "weak": 0.9}, groups=given)
    plain, grouped, mixed = (
        shown(capsys, "compare", tmp_path / a / "members/strong", tmp_path / b / "members/weak")
        for a, b in (("plain", "plain"), ("grouped", "grouped"), ("plain", "grouped"))
    )
    assert row(plain, "A: strong")[::3] == row(grouped, "A: strong")[::3]
    assert row(plain, "B minus A ") != row(grouped, "B minus A ") == row(mixed, "B minus A ")
    strong, weak = (command.read_side(tmp_path / "grouped/members" / name).rule for name in ("strong", "weak"))
    interval = compare_nested(strong, weak, groups, seed=5).hter.interval
    assert row(grouped, "B minus A ")[7:] == [f"{interval.low:+.4f}", f"{interval.high:+.4f}"]
    assert interval != compare_nested(strong, weak, seed=5).hter.interval


def test_runs_of_other_folds_and_another_order_are_compared_row_by_row(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each side keeps its own folds, and its rows are joined by id, in the nested predictions and the replicates."""
    members, other_folds = {"strong": 2.0, "weak": 0.6}, (np.arange(N) // 8 % 3).astype(np.int8)
    order = np.random.default_rng(3).permutation(N)
    moved = write_run(tmp_path / "moved", members, order, fold_of=other_folds)
    in_place = write_run(tmp_path / "in_place", members, fold_of=other_folds)
    compared = command.compare(made / "poor", moved).comparison
    assert compared == command.compare(made / "poor", in_place).comparison
    assert compared.b.rates == error_rates(LABELS, command.read_side(in_place).rule.nested.y_pred)

    def candidate(folder: Path, names: tuple[str, ...], fold_of: np.ndarray) -> Candidate:
        """Return the stack of a run's members, by the ids of their logits."""
        run, table, logits = Run(folder), Run(folder).read_folds(), np.empty((N, len(names)))
        at = np.searchsorted(IDS, table.ids)
        for column, name in enumerate(names):
            logits[at, column] = run.member(name).oof_logits(table, VIEWS).mean(axis=1)
        return Candidate.of("side", OofLogits(FoldTable(IDS, LABELS, fold_of), names, logits), stack("nonnegative"))

    sides = candidate(made / "poor", ("weak",), FOLD_OF), candidate(moved, ("strong", "weak"), other_folds)
    assert compared == compare_nested(*sides, seed=5)
    assert command.read_side(made / "good").rule.nested.folds != sides[1].nested.folds
    lines = shown(capsys, "compare", made / "poor", moved)
    assert float(row(lines, "B minus A ")[7]) == pytest.approx(compared.hter.interval.low, abs=5e-5)


def test_equally_good_sides_are_not_told_apart_by_the_luck_of_their_thresholds(made: Path, tmp_path: Path) -> None:
    """The interval of the difference includes that both thresholds are fitted, so it is wider than that of the calls
    alone."""
    folder = write_run(tmp_path / "run", {"first": 0.8, "other": 0.8}, fit=False)
    a, b = (folder / "members" / name for name in ("first", "other"))
    interval = command.compare(a, b).comparison.hter.interval
    kept = compare_predictions(LABELS, *(command.read_side(side).rule.nested.y_pred for side in (a, b))).hter.interval
    assert interval.low <= 0 <= interval.high
    assert interval.high - interval.low > 1.05 * (kept.high - kept.low)


def test_groups_of_two_runs_are_linked() -> None:
    joint = command._joint_groups(np.array([1, 1, 2, 3, 4]), np.array([7, 8, 8, 9, -9]))
    assert joint is not None and joint.tolist() == [0, 0, 0, 3, 4]
    one = np.array([4, 4, 5])
    assert command._joint_groups(None, one) is one and command._joint_groups(one, None) is one
    assert command._joint_groups(None, None) is None


def test_runs_on_other_images_or_labels_are_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = IDS.copy()
    ids[:3] = ["x1", "x2", "x3"]
    other = write_run(tmp_path / "other", {"weak": 0.6}, ids=ids)
    message = fails(capsys, 4, "compare", made / "good", other)
    assert message == (
        f"{made}/good and {other}: 6 images are in one of the two only (001, 002, 003, x1, x2 …); "
        "compare what was trained on the same images"
    )
    labels = LABELS.copy()
    labels[[10, 20]] = 1 - labels[[10, 20]]
    relabelled = write_run(tmp_path / "relabelled", {"weak": 0.6}, labels=labels, order=np.arange(N)[::-1])
    message = fails(capsys, 4, "compare", made / "good/members/weak", relabelled / "members/weak")
    assert "2 images have another label in one than in the other (011, 021); " in message


def test_labels_given_with_runs_must_be_theirs(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = made / "good", made / "poor"
    assert shown(capsys, "compare", *pair, "--labels", made / "truth.txt") == shown(capsys, "compare", *pair)
    path = write_labels(tmp_path / "l.txt", flipped(7))
    message = fails(capsys, 3, "compare", *pair, "--labels", path)
    expected = f"{path}: 7 labels are not those of {made}/good (001, 002, 003, 004, 005 …); leave --labels out"
    assert message.startswith(expected)
    write_labels(path, LABELS[:-1])
    message = fails(capsys, 3, "compare", *pair, "--labels", path)
    assert message.startswith(f"{path}: 239 lines for the 240 images of {made}/good; ")


def test_what_a_run_lacks_is_named(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, 4, "compare", made / "good/members", made / "poor")
    assert message.startswith(f"{made}/good/members: is neither a run nor a member: no run.json, no member.json; name ")
    run = write_run(tmp_path / "run", {"strong": 2.0, "weak": 0.6})
    (run / "members/weak/fold-1/oof.csv").write_text("id,logit_identity,logit_hflip\n")
    assert "fold-1/oof.csv: is not the file that " in fails(capsys, 4, "compare", run, made / "good")
    stored = json.loads((run / "members/weak/member.json").read_text())
    del stored["folds"]["1"]
    rewrite_json(run / "members/weak/member.json", stored)
    message = fails(capsys, 4, "compare", run / "members/weak", made / "good")
    assert message.startswith("member weak: lacks OOF logits for fold 1; ")
    shown(capsys, "compare", run / "members/strong", made / "good")


def test_the_nested_predictions_are_fitted_without_their_fold(made: Path) -> None:
    """The threshold of each fold's calls is the best on the other folds, found by trying them all."""
    nested = command.read_side(made / "good/members/weak").rule.nested
    table = Run(made / "good").read_folds()
    logits = Run(made / "good").member("weak").oof_logits(table, VIEWS).mean(axis=1)
    for fold in range(3):
        inside = table.fold_of == fold
        least = min(error_rates(LABELS[~inside], logits[~inside] >= cut).hter for cut in logits[~inside])
        called = nested.y_pred[inside].astype(bool)
        low, high = logits[inside][~called].max(), logits[inside][called].min()
        assert low < high
        cuts = [cut for cut in logits[~inside] if low < cut <= high] + [high]
        reached = min(error_rates(LABELS[~inside], logits[~inside] >= cut).hter for cut in cuts)
        assert reached == pytest.approx(least)


# --- what it takes ----------------------------------------------------------------------------------------------------


def test_neither_command_imports_torch(made: Path) -> None:
    code = """
import sys
from ensemble.cli import main
main(["evaluate", "a.txt", "--labels", "truth.txt"])
main(["compare", "a.txt", "b.txt", "--labels", "truth.txt"])
main(["compare", "good", "good/members/strong"])
print("heavy:", sorted({"torch", "timm", "albumentations", "cv2"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=made)
    assert done.stdout.splitlines()[-1] == "heavy: []"
