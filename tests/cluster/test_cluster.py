"""Runs and predictions on a cluster of four nodes have the bytes of one machine, also where nodes and drivers are lost.

One of the nodes is blind: it does not see the driver's files, so that images and training states travel. The tests
share the nodes, and a node that a test ends is replaced only where a later test needs it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated import Simulated, always, once, place_of, squares, total, when, wrong
from tiny import fails, listing, write_tiny

from ensemble.cli import main
from ensemble.cluster.display import Display, Report
from ensemble.cluster.pool import ClusterPool
from ensemble.cluster.resources import resources_of
from ensemble.config import ComputeConfig, MemberConfig
from ensemble.errors import ConfigError, ResourceError
from ensemble.progress import progress

pytest.importorskip("ray")

EPOCHS = 20
"""Enough for a node to end before the last one."""

MEMBER = "arch: test_resnet, pretrained: false, batch_size: 8, lr: 0.005"

TIMES = ("member.json", "run.json", "report.md", "README.md", "report.html", "history.jsonl")
"""Names of files that hold times or dates, or hashes of such files."""


@pytest.fixture(scope="module")
def started() -> Iterator[Simulated]:
    simulated = Simulated()
    try:
        yield simulated
    finally:
        simulated.close()


@pytest.fixture
def cluster(started: Simulated) -> Simulated:
    """A cluster of at least two nodes."""
    started.add_up_to(2)
    return started


@pytest.fixture
def blind(started: Simulated) -> Simulated:
    """A cluster of one node, which does not see the driver's files."""
    started.add_up_to(1)
    for node in started.nodes[:-1]:
        started.kill(node)
    return started


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tiny(folder / "train", 48)
    write_tiny(folder / "new", 24, seed=1)
    (folder / "c.yaml").write_text(
        f"run: {folder}/local\nfolds: 2\ndata: {{images: {folder}/train/img, labels: {folder}/train/labels.txt}}\n"
        f"members:\n  - {{{MEMBER}, name: a, epochs: {EPOCHS}}}\n  - {{{MEMBER}, name: b, epochs: {EPOCHS}}}\n"
        f"predict: {{images: [{folder}/new/img]}}\n"
    )
    return folder


@pytest.fixture(scope="module")
def local(data: Path) -> dict[str, bytes]:
    """The files of the run on one core of this machine, without those that hold times."""
    with one_core():
        main(["run", str(data / "c.yaml"), "--device", "cpu"])
    return results(data / "local")


@contextmanager
def one_core() -> Iterator[None]:
    """Let this process compute as on a machine of one core, as the nodes have."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("members.processes", "members.predictor", "cluster.nodes"):
            patch.setattr(f"ensemble.{module}.available_cores", lambda: [0])
        yield


def results(run: Path) -> dict[str, bytes]:
    """Return the files of a run with a prediction, without those that hold times."""
    kept = without_times(run)
    named = {name.rpartition("/")[2] for name in kept}
    assert named >= {"label_val.txt", "predictions.csv", "predictions.json", "weights.safetensors", "oof.csv"}
    return kept


def without_times(run: Path) -> dict[str, bytes]:
    return {name: content for name, content in listing(run).items() if not name.endswith(TIMES)}


def compute(cluster: Simulated, **values: Any) -> ComputeConfig:
    return ComputeConfig(cluster=cluster.address, device="cpu", **values)


def running(run: Path) -> set[Path]:
    """Return the folders of training states that hold one."""
    return {path.parent for path in run.glob("members/*/fold-*/state/epoch-*.json")}


def test_a_node_of_four_is_lost_in_a_run(
    started: Simulated,
    data: Path,
    local: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each node trains a fold. The one that ends has saved an epoch, and another node goes on from there."""
    import ray

    from ensemble.cluster.nodes import join

    started.add_up_to(4)
    run, nodes, states = tmp_path / "run", list(started.nodes), dict[str, Path]()
    take = Display.take

    def taken(display: Display, index: int, report: Report) -> None:
        take(display, index, report)
        states[report.place.rpartition("-")[2]] = run / f"members/{'ab'[index // 2]}/fold-{index % 2}/state"

    monkeypatch.setattr(Display, "take", taken)
    ray.get(join(started.address, "cpu", print).relay.collect.remote("any"))  # its process starts, or reports come late
    with when(lambda: states.get(place_of(nodes[0])) in running(run), partial(started.kill, nodes[0])) as killed:
        main(["run", str(data / "c.yaml"), "--run", str(run), "--device", "cpu", "--cluster", started.address])
    said, note = capsys.readouterr()[::-1]
    assert "note: a cluster of 4 nodes with 4 cores computes\n" in note
    assert killed and "was lost on" in said and "goes on at epoch" in said
    assert all(f"{name} fold {fold} epoch {EPOCHS}/{EPOCHS}" in said for name in "ab" for fold in range(2))
    assert all(f"-{place_of(node)}" in said for node in nodes), "all four nodes have trained"
    assert results(run) == local
    assert not list(run.rglob("*.tmp"))


def test_a_node_is_lost_in_prediction(cluster: Simulated, capsys: pytest.CaptureFixture[str]) -> None:
    from ensemble.members.backbones import build
    from ensemble.members.inference import NetworkSpec
    from ensemble.members.plans import Plan
    from ensemble.members.predictor import FoldModel, Predictor

    images = np.random.default_rng(0).integers(0, 256, (2 * 4096, 16, 16, 3), dtype=np.uint8)
    config = MemberConfig(arch="test_resnet", pretrained=False, input_size=32)
    weights = build(config, 16).state_dict()
    resources = resources_of(compute(cluster))
    spec = NetworkSpec(config, 16, Plan("fp32"), resources.device)
    models = [FoldModel("test_resnet", fold, spec, partial(dict, weights)) for fold in range(2)]
    cluster.add_up_to(3)  # one of them ends, and the next test needs two
    node = cluster.nodes[0]

    def predicted(pool_of: Any, act: Any) -> dict[int, np.ndarray]:
        with (
            Predictor(images, 4, pool_of) as predictor,
            progress(4 * len(images), "predict", "views") as bar,
            when(lambda: bar.done > 256, act),
        ):
            return {i: values for i, values, _ in predictor.predict(models, ("identity", "hflip"), bar)}

    logits = predicted(resources, partial(cluster.kill, node))
    assert "was lost on" in capsys.readouterr().err
    with one_core():
        alone = predicted(resources_of(ComputeConfig(device="cpu")), lambda: None)
    assert all((logits[i] == alone[i]).all() for i in range(2))


def test_the_driver_is_killed_and_started_again(
    cluster: Simulated, data: Path, local: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    given = ["run", str(data / "c.yaml"), "--run", str(run), "--device", "cpu", "--cluster", cluster.address]
    driver = subprocess.Popen([sys.executable, "-m", "ensemble", *given], stderr=subprocess.DEVNULL)
    try:
        while not running(run):
            assert driver.poll() is None
            time.sleep(0.02)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert not (run / "predictions").exists()
    main(given)
    assert "goes on at epoch" in capsys.readouterr().err
    assert results(run) == local


def test_the_relay_is_lost(cluster: Simulated) -> None:
    """It starts again, and the counts are complete."""
    import ray

    from ensemble.cluster.nodes import join

    relay = join(cluster.address, "cpu", print).relay
    with (
        resources_of(compute(cluster)).pool() as pool,
        progress(40, "test") as bar,
        when(lambda: bar.done > 4, lambda: ray.kill(relay, no_restart=False)) as killed,
    ):
        found = dict(pool.run(squares, [(number, 20, 0.1) for number in range(2)], [[0]] * 2, bar))
    assert killed and [found[number][0] for number in range(2)] == [0, 1] and bar.done == 40
    assert join(cluster.address, "cpu", print).relay is relay
    ray.get(relay.collect.remote("any"), timeout=60)


def test_lost_tasks_and_errors(
    cluster: Simulated, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensemble.cluster.pool.LOST_LIMIT", 2)
    pool = resources_of(compute(cluster)).pool()
    with pool, progress(2, "test") as bar:
        assert dict(pool.run(once, [(str(tmp_path), number) for number in range(2)], [[0]] * 2, bar)) == {0: 0, 1: 1}
        assert capsys.readouterr().err.count("was lost on") == 2
        with pytest.raises(ResourceError, match=r"was lost 2 times without progress \(its process has ended\); "):
            list(pool.run(always, [()], [[0]], bar))
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            list(pool.run(wrong, [()], [[0]], bar))
        images = np.full((4, 2, 2, 3), 7, np.uint8)
        np.save(tmp_path / "p.npy", images)
        from ensemble.members.processes import MappedPixels

        mapped, kept = MappedPixels(np.load(tmp_path / "p.npy", mmap_mode="r")), MappedPixels(images)
        calls = [(mapped,)] * 4 + [(kept,)] * 2
        found = dict(pool.run(total, calls, [[0, 1]] * 6, bar))
        assert {found[i][0] for i in range(6)} == {7 * 48} and {found[i][2] for i in range(6)} == {2}


def test_what_a_cluster_refuses(cluster: Simulated, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"^--task-cores: no node has 2 cores; use at most 1"):
        resources_of(compute(cluster, task_cores=2))
    with pytest.raises(ConfigError, match=r"^--device: cuda: no node of the cluster has a GPU"):
        resources_of(ComputeConfig(cluster=cluster.address, device="cuda"))


def test_another_version_of_ray_is_refused_by_these_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.__version__", "3.0.0")
    with pytest.raises(RuntimeError, match=r"nodes of Ray 2\.60\.0 .*; got 3\.0\.0; check how"):
        Simulated()


def test_unequal_nodes_are_not_joined(cluster: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from ensemble.cluster import nodes
    from ensemble.cluster.facts import facts_of_this_machine

    here = facts_of_this_machine()
    there = replace(here, host="b", hardware={**here.hardware, "CPU capability": "NEON"})
    monkeypatch.setattr(nodes, "_joined", {})
    monkeypatch.setattr(nodes, "_facts_of", lambda nodes: [here, there])
    with pytest.raises(ResourceError, match=r"differ: CPU capability is \w+ and NEON; use nodes of one kind"):
        resources_of(compute(cluster))


def test_stopped_it_cancels_its_tasks(cluster: Simulated) -> None:
    import ray

    from ensemble.errors import Stopped
    from ensemble.progress import stoppable

    pool = resources_of(compute(cluster)).pool()
    with (
        pytest.raises(Stopped),
        stoppable(),
        progress(10**6, "test") as bar,
        pool,
        when(lambda: bar.done > 2, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    ):
        list(pool.run(squares, [(number, 10**6, 0.1) for number in range(2)], [[0]] * 2, bar))
    ends = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < 2:
        assert time.monotonic() < ends, "tasks still run"
        time.sleep(0.1)


def test_a_node_is_lost_while_it_computes_a_shard(
    cluster: Simulated, data: Path, local: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock is free then, and the shard is computed elsewhere, with the bytes of one machine."""
    monkeypatch.setattr("ensemble.runs.shards.ROWS", 4)
    given = ["predict", "--run", str(data / "local"), str(data / "new/img"), "--device", "cpu", "--shards"]
    with one_core():
        main([*given, str(tmp_path / "here")])
    claims, node = tmp_path / "shared/there/_claims", cluster.nodes[0]
    with when(lambda: list(claims.glob("*/.lock")), partial(cluster.kill, node)) as killed:
        main([*given, str(tmp_path / "shared/there"), "--cluster", cluster.address])
    here, there = listing(tmp_path / "here"), listing(tmp_path / "shared/there")
    parts = [name for name in here if name.endswith(".parquet") or "_done/" in name]
    assert killed and len(parts) == 6 * 5 + 1  # of 6 shards the list, and part and note of logits and labels; inputs
    assert {name: there[name] for name in parts} == {name: here[name] for name in parts}


def test_tars_are_listed_by_tasks(
    cluster: Simulated, data: Path, local: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lists are the same as those of one process, and nothing else is left."""
    images = sorted((data / "new/img").iterdir())
    for number in range(3):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for image in images[number::3]:
                tar.add(image, image.name)
    given = ["predict", "--run", str(data / "local"), str(tmp_path / "*.tar"), "--device", "cpu", "--shards"]
    with one_core():
        main([*given, str(tmp_path / "here")])
    monkeypatch.setattr("ensemble.commands.shard_listing.PROCESSES_PAY", 0)
    ran, run = list[str](), ClusterPool.run
    monkeypatch.setattr(
        ClusterPool, "run", lambda self, work, *rest: ran.append(work.__name__) or run(self, work, *rest)
    )
    main([*given, str(tmp_path / "shared/there"), "--cluster", cluster.address])
    here, there = listing(tmp_path / "here"), listing(tmp_path / "shared/there")
    assert ran[0] == "list_tar"
    plans = [{name: each[name] for name in each if name.startswith("_plan/")} for each in (here, there)]
    assert plans[0] == plans[1] and any(name.endswith(".parquet") for name in plans[0])


@pytest.mark.parametrize("what", ["list_tar", "predict_shard"])
def test_a_node_that_does_not_see_the_shards_is_refused(
    what: str,
    blind: Simulated,
    data: Path,
    local: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It makes no folder and no lock there."""
    images = [data / "new/img"]
    if what == "list_tar":
        images = [tmp_path / "0.tar", tmp_path / "1.tar"]
        for path in images:
            with tarfile.open(path, "w") as tar:
                tar.add(data / "new/img/001.png", "001.png")
        monkeypatch.setattr("ensemble.commands.shard_listing.PROCESSES_PAY", 0)
    shards = tmp_path / "shards"
    given = ["--run", data / "local", *images, "--device", "cpu", "--shards", shards, "--cluster", blind.address]
    line = fails(capsys, 6, "predict", *given)
    assert line == (
        f"error: --shards {shards}: is not visible on node {socket.gethostname()}; put it on storage that all nodes "
        "share, or leave out --cluster"
    )
    left = {name for name in listing(shards) if not name.endswith(".parquet")}
    assert left == {".lock"} | ({"_plan/plan.json", "_plan/request.json"} if what == "predict_shard" else set())


@pytest.mark.parametrize("command", ["train-member", "distil", "fit"])
def test_other_commands_have_the_bytes_of_one_machine(
    command: str,
    blind: Simulated,
    data: Path,
    local: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All that is read and written travels. The run's folder is relative to a directory in which no task runs."""
    network = {"arch": "test_resnet", "pretrained": False, "epochs": 2, "batch_size": 8}
    monkeypatch.setattr(
        "ensemble.commands.fit.members_for", lambda *_: [MemberConfig(name=name, **network) for name in "ab"]
    )
    student = ["--arch", "test_resnet", "--pretrained", "no", "--epochs", "2", "--batch-size", "8"]
    labelled = [str(data / "train/img"), "--labels", str(data / "train/labels.txt"), "--folds", "2"]
    given = {
        "train-member": [*student, "--cleaning", "flip", "--images", *labelled],
        "distil": [*student, "--unlabelled", str(data / "new/img")],
        "fit": [*labelled, "--predict", str(data / "new/img")],
    }[command]
    files = {}
    for place, address in (("here", None), ("there", blind.address)):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        if command == "distil":
            shutil.copytree(data / "local", "run")
        with one_core() if address is None else nullcontext():
            main([command, *given, "--run", "run", "--device", "cpu", *(["--cluster", address] if address else [])])
        files[place] = without_times(Path("run"))
    said = capsys.readouterr().err
    assert f"-{place_of(blind.nodes[0])}" in said
    assert any(name.endswith("weights.safetensors") for name in files["here"]) and files["there"] == files["here"]


def test_local_starts_a_cluster_on_this_machine(
    data: Path, local: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A start is tried three times, because Ray gives it up after 15 s, which do not suffice on a busy machine."""
    import ray

    given = ["run", str(data / "c.yaml"), "--run", str(tmp_path / "run"), "--device", "cpu", "--cluster", "local"]
    ray.shutdown()  # or the cluster that this process has joined would compute
    try:
        with one_core():
            for attempt in range(3):
                try:
                    main(given)
                    break
                except SystemExit as ended:
                    assert ended.code == 6 and attempt < 2, capsys.readouterr().err
    finally:
        ray.shutdown()
    assert "note: a cluster of 1 node with 1 core computes" in capsys.readouterr().err
    assert results(tmp_path / "run") == local
