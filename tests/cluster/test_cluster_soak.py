"""Fifty kills, of tasks, nodes, relays and drivers at random, and then the bytes of one machine; on request only.

THERA_CLUSTER_KILLS=50 python -m pytest tests/cluster/test_cluster_soak.py -s
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from simulated import Simulated
from test_cluster import data as data
from test_cluster import local as local
from test_cluster import results, running

KILLS = int(os.environ.get("THERA_CLUSTER_KILLS", "0"))

pytestmark = pytest.mark.skipif(not KILLS, reason="set THERA_CLUSTER_KILLS to a number of kills")


def test_many_kills(data: Path, local: dict[str, bytes], tmp_path: Path) -> None:
    """Four nodes, one of them blind. A run that is finished is compared, and the next one begins."""
    rng, done, runs = random.Random(0), Counter[str](), 0
    cluster = Simulated()
    for number in range(4):
        cluster.add(blind=number == 3)
    try:
        while sum(done.values()) < KILLS:
            run = tmp_path / f"run-{runs}"
            given = ["run", str(data / "c.yaml"), "--run", str(run), "--device", "cpu", "--cluster", cluster.address]
            command = [sys.executable, "-m", "ensemble", *given]
            while True:
                with (tmp_path / "said.txt").open("a") as said:
                    driver = subprocess.Popen(command, stderr=said, stdout=said)
                while driver.poll() is None and sum(done.values()) < KILLS:
                    time.sleep(rng.uniform(1, 8))
                    done.update(_kill(rng, cluster, driver))
                if (status := driver.wait()) == 0:
                    break
                assert status == -signal.SIGKILL, (tmp_path / "said.txt").read_text()[-2000:]
            assert results(run) == local
            runs += 1
            print(f"{runs} runs, {dict(done)}", flush=True)
    finally:
        cluster.close()


@pytest.mark.parametrize("lost", ["gcs_server", "raylet"])
def test_a_lost_cluster_is_exit_status_6(lost: str, data: Path, tmp_path: Path) -> None:
    """What the whole cluster is lost with ends: the head's server, or Ray on the node of the driver."""
    cluster = Simulated()
    cluster.add()
    command = ["run", str(data / "c.yaml"), "--run", str(tmp_path / "run"), "--device", "cpu"]
    try:
        with (tmp_path / "said.txt").open("w") as said:
            driver = subprocess.Popen(
                [sys.executable, "-m", "ensemble", *command, "--cluster", cluster.address], stderr=said, stdout=said
            )
            while not running(tmp_path / "run"):
                assert driver.poll() is None
                time.sleep(0.02)
            cluster.kill_head(lost)
            assert driver.wait(timeout=120) == 6
    finally:
        cluster.close()
    (line,) = [each for each in (tmp_path / "said.txt").read_text().splitlines() if each.startswith("error: ")]
    assert line.startswith("error: --cluster: ") and line.endswith("; the same command goes on once the cluster runs")


def _kill(rng: random.Random, cluster: Simulated, driver: subprocess.Popen[bytes]) -> list[str]:
    """End something at random, and return what, or nothing where none of the kind runs."""
    kind = rng.choice(["task", "task", "node", "node", "relay", "driver"])
    if kind == "driver":
        driver.kill()
    elif kind == "node":
        node = rng.choice(cluster.nodes)
        blind = node is cluster.nodes[-1]
        cluster.kill(node)
        cluster.add(blind)
    else:
        found = cluster.processes("ray::work" if kind == "task" else "ray::Relay")
        if not found:
            return []
        os.kill(rng.choice(found), signal.SIGKILL)
    return [kind]
