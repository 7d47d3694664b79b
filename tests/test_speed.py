"""What makes it fast changes no result: folds side by side, plans, precisions, and the guard on them."""

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny import rewrite_json, write_tiny

from ensemble.cli import main
from ensemble.members import inference, parallel, plans, processes
from ensemble.members.plans import Plan
from ensemble.members.precision import onednn_computes
from ensemble.runs.training_state import StateFolder

CORES = os.sched_getaffinity(0)
two_cores = pytest.mark.skipif(len(CORES) < 2, reason="this process may use one core only")
kernels = pytest.mark.skipif(not plans.CPU_KINDS, reason="members/cpu is not there")
half = pytest.mark.skipif(not onednn_computes(torch.bfloat16), reason="this CPU has no bfloat16")


@pytest.fixture(scope="module", autouse=True)
def _one_core() -> Iterator[None]:
    """Let this process use one core; `both` gives another back."""
    os.sched_setaffinity(0, {max(CORES)})
    yield
    os.sched_setaffinity(0, CORES)


@contextmanager
def both() -> Iterator[None]:
    os.sched_setaffinity(0, sorted(CORES)[-2:])
    yield
    os.sched_setaffinity(0, {max(CORES)})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tiny(folder / "tiny", 48)
    write_tiny(folder / "new", inference.COMPARED + 8, seed=1)
    save_file(timm.create_model("test_resnet", num_classes=10).state_dict(), folder / "w.safetensors")
    write_tiny(folder / "large", 48, size=32)
    write_tiny(folder / "large-new", inference.COMPARED + 8, seed=1, size=32)
    return folder


def training(data: Path, run: Path, *more: object, images: str = "tiny") -> list[str]:
    given = ["train-member", "--arch", "test_resnet", "--no-pretrained", "--folds", 2, "--epochs", 6]
    given += ["--batch-size", 8, "--ema-decay", 0.9, "--augment", "light", "--device", "cpu", "--run", run]
    given += ["--images", data / images / "img", "--labels", data / images / "labels.txt", *more]
    return [str(argument) for argument in given]


def results(run: Path) -> dict[str, str]:
    """Hash the weights and the OOF logits."""
    files = [path for name in ("weights.safetensors", "oof.csv") for path in run.glob(f"members/*/fold-*/{name}")]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def oof(run: Path) -> np.ndarray:
    files = sorted(run.glob("members/*/fold-*/oof.csv"))
    return np.concatenate([np.loadtxt(path, delimiter=",", skiprows=1) for path in files])


def member_json(run: Path) -> Any:
    return json.loads((run / "members/test_resnet/member.json").read_text())


# --- folds side by side -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def side_by_side(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two folds side by side, from weights that are given."""
    run = tmp_path_factory.mktemp("two") / "run"
    with both():
        main(training(data, run, "--jobs", 2, "--weights", data / "w.safetensors"))
    return run


@two_cores
def test_folds_side_by_side_are_those_one_after_the_other(data: Path, side_by_side: Path, tmp_path: Path) -> None:
    main(training(data, tmp_path / "run", "--jobs", 1, "--weights", data / "w.safetensors"))
    two, one = oof(side_by_side), oof(tmp_path / "run")
    assert np.array_equal(two[:, 0], one[:, 0])
    np.testing.assert_allclose(two[:, 1:], one[:, 1:], rtol=0, atol=1e-4)
    threads = [facts["threads"] for _, facts in sorted(member_json(side_by_side)["folds"].items())]
    assert threads == [1, 1]


def in_group(group: int) -> list[str]:
    """Return the living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = path.read_text().rsplit(")", 1)
        except OSError:
            continue
        state, _, own = rest.split()[:3]
        if int(own) == group and state != "Z":
            found.append(name)
    return found


@two_cores
def test_stopped_side_by_side_it_goes_on_to_the_same(data: Path, side_by_side: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = training(data, run, "--jobs", 2, "--weights", data / "w.safetensors")
    start = [sys.executable, "-c", "from ensemble.cli import main; main()", *given]
    with both():
        process = subprocess.Popen(
            start, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
        )
    begun, deadline = run / "members/test_resnet/fold-0/state/epoch-0001.json", time.monotonic() + 300
    while not begun.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGTERM)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 75, err
    assert "\nstopped by SIGTERM" in err and "Traceback" not in err
    deadline = time.monotonic() + 10
    while in_group(process.pid) and time.monotonic() < deadline:  # multiprocessing's own tracker ends last
        time.sleep(0.05)
    assert in_group(process.pid) == []
    assert "0" not in member_json(run)["folds"]
    with both():
        main(given)
    assert results(run) == results(side_by_side)


# --- plans ------------------------------------------------------------------------------------------------------------


@kernels
def test_a_member_goes_on_by_the_plan_that_it_was_begun_with(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, planned = tmp_path / "run", [Plan("fp32", "lowered")]
    monkeypatch.setattr("ensemble.members.probe.choose_plan", lambda *_: planned[-1])
    main(training(data, run, "--jobs", 1))
    assert (member_json(run)["precision"], member_json(run)["convolutions"]) == ("fp32", "lowered")
    before = results(run)
    (run / "members/test_resnet/fold-1/weights.safetensors").unlink()
    planned.append(Plan("fp32"))
    main(training(data, run, "--jobs", 1))
    assert results(run) == before and member_json(run)["convolutions"] == "lowered"
    main(training(data, tmp_path / "native", "--jobs", 1))
    assert results(tmp_path / "native") != before, "it is another plan"
    np.testing.assert_allclose(oof(tmp_path / "native"), oof(run), rtol=0, atol=1e-3)


def test_what_was_begun_in_bf16_goes_on_where_that_is_only_emulated(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished member is taken as it is, an unfinished one gets the same bytes; nothing new is begun so."""
    monkeypatch.setattr(plans, "onednn_computes", lambda dtype: True)
    given, warning = training(data, tmp_path / "run", "--jobs", 1, "--precision", "bf16", images="large"), "emulates"
    main(given)
    before = results(tmp_path / "run")
    assert member_json(tmp_path / "run")["precision"] == "bf16"
    monkeypatch.setattr(plans, "onednn_computes", lambda dtype: dtype == torch.float32)
    capsys.readouterr()
    main(given)
    assert warning not in capsys.readouterr().err and results(tmp_path / "run") == before
    (tmp_path / "run/members/test_resnet/fold-1/weights.safetensors").unlink()
    main(given)
    message = capsys.readouterr().err
    assert "warning: member test_resnet goes on in bf16 as it was begun, which this CPU only emulates" in message
    assert results(tmp_path / "run") == before
    main(training(data, tmp_path / "new", "--jobs", 1, "--precision", "bf16", images="large"))
    assert member_json(tmp_path / "new")["precision"] == "fp32"


def test_a_member_of_before_there_were_plans_goes_on(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    main(training(data, run, "--jobs", 1))
    before, path = results(run), run / "members/test_resnet/member.json"
    stored = json.loads(path.read_text())
    del stored["convolutions"], stored["config"]["convolutions"]
    stored["config"]["early_size"] = None  # an option that has been removed, at the value at which it did nothing
    rewrite_json(path, stored)
    (run / "members/test_resnet/fold-1/weights.safetensors").unlink()
    main(training(data, run, "--jobs", 1))
    assert results(run) == before
    for option in (["--input-size", 16], ["--convolutions", "lowered"]):
        with pytest.raises(SystemExit) as stopped:
            main(training(data, run, "--jobs", 1, *option))
        assert stopped.value.code == 4


# --- prediction -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two folds on images of 32 pixels, with a decision."""
    run = tmp_path_factory.mktemp("fitted") / "run"
    main(training(data, run, "--epochs", 12, "--jobs", 1, images="large"))
    main(["fit-stacker", "--run", str(run)])
    return run


def predicted(data: Path, fitted: Path, folder: Path, *more: str) -> tuple[np.ndarray, list[tuple[str, ...]]]:
    """Predict in a copy of the run; return the logits (n, k) and how each fold model's were computed."""
    shutil.copytree(fitted, folder / "run")
    given = ["predict", "--run", folder / "run", "--images", data / "large-new/img", "--out", folder / "out.txt"]
    main([*map(str, given), "--device", "cpu", "--jobs", "1", *more])
    place = folder / "run/predictions/img-plain"
    files = sorted(place.glob("logits/*/*.csv"))
    stored = json.loads((place / "logits/made_from.json").read_text())["files"].values()
    logits = [np.loadtxt(path, delimiter=",", skiprows=1)[:, 1] for path in files]
    return np.stack(logits, axis=1), [(facts["precision"], facts["convolutions"]) for facts in stored]


@pytest.fixture(scope="module")
def exact(data: Path, fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    logits, how = predicted(data, fitted, tmp_path_factory.mktemp("exact"), "--precision", "fp32")
    assert how == [("fp32", "native")] * 2
    return logits


@pytest.mark.parametrize(
    ("precision", "convolutions", "near"),
    [
        *(pytest.param("fp32", kind, 1e-4, marks=kernels) for kind in ("lowered", "fused")),
        pytest.param("bf16", "native", 0.1, marks=half),
        *(pytest.param("bf16", kind, 0.1, marks=[half, kernels]) for kind in ("lowered", "fused")),
    ],
)
def test_every_plan_gives_nearly_the_same_logits(
    data: Path, fitted: Path, exact: np.ndarray, tmp_path: Path, precision: str, convolutions: str, near: float
) -> None:
    more = ("--precision", precision, "--convolutions", convolutions)
    logits, how = predicted(data, fitted, tmp_path, *more)
    assert how == [(precision, convolutions)] * 2
    assert np.abs(logits - exact).max() <= near * exact.std()
    assert precision == "fp32" or not np.array_equal(logits, exact)


def test_logits_of_a_plan_that_was_replaced_are_kept(
    data: Path, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bf16 is requested and float32 computes the logits; the same command then computes nothing again."""
    monkeypatch.setattr(plans, "onednn_computes", lambda dtype: dtype == torch.float32)
    _, how = predicted(data, fitted, tmp_path, "--precision", "bf16")
    assert {precision for precision, _ in how} == {"fp32"}
    labels = (tmp_path / "out.txt").read_bytes()
    (tmp_path / "run/predictions/img-plain/predictions.json").unlink()
    monkeypatch.setattr(inference.FoldModels, "predict", lambda *_: pytest.fail("computed again"))
    shutil.move(tmp_path / "run", tmp_path / "as-it-is")
    predicted(data, tmp_path / "as-it-is", tmp_path, "--precision", "bf16")
    assert (tmp_path / "out.txt").read_bytes() == labels


@pytest.mark.parametrize("factor", [1.5, float("nan")])
def test_a_plan_that_deviates_gives_way_to_float32(
    data: Path, fitted: Path, exact: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    def spoilt(network: Any, plan: Plan) -> Any:
        if plan.convolutions == "lowered":
            network.register_forward_hook(lambda _, __, logits: logits * factor)
        return network

    monkeypatch.setattr(inference, "prepare", spoilt)
    logits, how = predicted(data, fitted, tmp_path, "--precision", "fp32", "--convolutions", "lowered")
    assert how == [("fp32", "native")] * 2 and np.array_equal(logits, exact)


@two_cores
def test_parts_side_by_side_are_the_whole(data: Path, fitted: Path, exact: np.ndarray, tmp_path: Path) -> None:
    with both():
        logits, how = predicted(data, fitted, tmp_path, "--precision", "fp32", "--jobs", "2")
    assert how == [("fp32", "native")] * 2
    np.testing.assert_allclose(logits, exact, rtol=0, atol=2e-5)
    with open(tmp_path / "run/predictions/img-plain/predictions.csv") as file:
        assert len(list(csv.DictReader(file))) == len(exact)


# --- several folds in one process, as on a GPU ------------------------------------------------------------------------


def test_a_gpu_has_all_folds_in_one_process_or_in_as_many_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "available_cores", lambda: [0, 1, 2, 3])
    place = parallel.Resources(torch.device("cuda"), 3, None)
    every = [[0, 1, 2, 3]] * 5
    assert parallel._groups(every, place) == [([0, 1, 2, 3, 4], [0, 1, 2, 3])]
    assert parallel._groups(every, replace(place, jobs=2)) == [([0, 2, 4], [0, 1]), ([1, 3], [2, 3])]
    assert [group for group, _ in parallel._groups(every, replace(place, jobs=9))] == [[0, 4], [1], [2], [3]]
    assert parallel._groups([], place) == []
    own = [[0, 1], [2, 3], [0, 1, 2, 3]]
    assert parallel._groups(own, replace(place, device=torch.device("cpu"))) == [([i], own[i]) for i in range(3)]


@pytest.mark.parametrize("clean", ["false", "true"])
def test_folds_in_one_process_give_the_same_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean: str
) -> None:
    """Two members of different kinds; each fold's files are its own, and no epoch is lost that was kept."""
    config, base = tmp_path / "c.yaml", "pretrained: false, batch_size: 8, ema_decay: 0.9"
    config.write_text(
        f"seed: 0\nfolds: 2\ndata: {{images: {data}/tiny/img, labels: {data}/tiny/labels.txt}}\nmembers:\n"
        f"  - {{arch: test_resnet, {base}, epochs: 6, augment: light, clean: {clean}}}\n"
        f"  - {{arch: lenet, {base}, epochs: 4, augment: light}}\nrun: {tmp_path}/alone\n"
    )
    main(["run", str(config), "--device", "cpu"])
    grouped = []

    def together(cores: Any, place: Any) -> Any:
        grouped.append(len(cores))
        return [(list(range(len(cores))), sorted(os.sched_getaffinity(0)))] if cores else []

    monkeypatch.setattr("ensemble.members.parallel._groups", together)
    really, saved = StateFolder.save, []

    def stopped(self: Any, tensors: Any, history: Any) -> None:
        really(self, tensors, history)
        saved.append(self)
        if len(saved) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(StateFolder, "save", stopped)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        main(["run", str(config), "--device", "cpu", "--run", str(tmp_path / "together")])
    main(["run", str(config), "--device", "cpu", "--run", str(tmp_path / "together")])
    assert results(tmp_path / "together") == results(tmp_path / "alone") and max(grouped) == 4
    epochs = 2 * 6 + 2 * 4 + (4 * 6 if clean == "true" else 0)
    assert len(saved) == epochs, "none is trained twice"
    assert len(results(tmp_path / "alone")) == 8


@two_cores
def test_folds_dealt_out_to_two_processes_give_the_same_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with --jobs 2 on a GPU: what they are to do and what comes back goes from process to process."""
    main(training(data, tmp_path / "alone", "--jobs", 1))
    with both():
        one, other = sorted(os.sched_getaffinity(0))
        monkeypatch.setattr("ensemble.members.parallel._groups", lambda cores, place: [([1], [one]), ([0], [other])])
        main(training(data, tmp_path / "apart"))
        monkeypatch.setattr("ensemble.members.parallel._groups", lambda cores, place: [([1, 0], [one])])
        main(training(data, tmp_path / "together"))
    assert results(tmp_path / "apart") == results(tmp_path / "together") == results(tmp_path / "alone")
