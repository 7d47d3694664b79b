"""A Ray cluster of one-core nodes on this machine, jobs for it, and what its tests measure by."""

from __future__ import annotations

import functools
import inspect
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

HERE = Path(__file__).parent
SETTINGS = {
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 10,
    "health_check_timeout_ms": 60_000,
    "agent_register_timeout_ms": 600_000,
    "worker_register_timeout_seconds": 600,
}
"""Ray's settings by which a node that has ended is noticed within seconds, and one that is slow is waited for."""

PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
"""Ports of a node that its agents write down; a node that does not find them within 15 s ends."""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""The environment of Ray's processes: nothing is sent, and tasks have the priority of the tests."""

PATIENCE = 20
"""The factor by which time passes more slowly for the start of a node, which Ray gives up after 30 s."""


class Simulated:
    """A head without cores, on which the driver and the relay run, and nodes of one core each.

    A blind node does not see the files of the driver, as one without a shared folder.
    """

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        _make_ray_patient()
        # nothing that only serves people: less to start
        lean = {"include_log_monitor": False, "no_monitor": True, "include_dashboard": False}
        store = {"object_store_memory": 150 * 2**20}
        with environment(**QUIET):
            self._cluster = Cluster(
                initialize_head=True,
                head_node_args={"num_cpus": 0, "_system_config": SETTINGS} | lean | store | ports(),
            )
        self.address: str = self._cluster.address
        self.nodes: list[Any] = []

    def add(self, blind: bool = False) -> Any:
        """Start a node of one core; those that see the files come first in `nodes`."""
        folders = [str(HERE / "blind") if blind else "", str(HERE), os.environ.get("PYTHONPATH", "")]
        path = os.pathsep.join(filter(None, folders))
        with environment(PYTHONPATH=path, THERA_TEST_BLIND="1" if blind else "", **QUIET):
            node = self._cluster.add_node(wait=False, num_cpus=1, object_store_memory=100 * 2**20, **ports())
        self.nodes.insert(len(self.nodes) if blind else 0, node)
        return node

    def kill(self, node: Any) -> None:
        """End a node and its processes without a warning."""
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_head(self, process: str) -> None:
        """End a process of the head, by the name that Ray gives its kind: ``gcs_server`` or ``raylet``."""
        self._cluster.head_node.all_processes[process][0].process.kill()

    def processes(self, title: str) -> list[int]:
        """Return the processes of this cluster that Ray has given a title that begins so, such as ``ray::work``."""
        nodes = [self._cluster.head_node, *self.nodes]
        raylets = {each.process.pid for node in nodes for each in node.all_processes.get("raylet", [])}
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                if parent in raylets and (path / "cmdline").read_bytes().startswith(title.encode()):
                    found.append(int(path.name))
            except OSError:
                continue  # it has ended
        return found

    def close(self) -> None:
        import ray

        ray.shutdown()
        self._cluster.shutdown()


def _make_ray_patient() -> None:
    """Let Ray wait for nodes and their agents, which start slowly on a busy machine; its own limits are constants."""
    from ray._private import node, services
    from ray._raylet import persist_port

    if node.time is not time:
        return
    node.time = SimpleNamespace(monotonic=lambda: time.monotonic() / PATIENCE, sleep=time.sleep, time=time.time)
    start, signature = services.start_raylet, inspect.signature(services.start_raylet)

    @functools.wraps(start)
    def start_with_ports(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        for name, port in ports().items():
            persist_port(given["session_dir"], given["node_id"], name, given.get(name) or port)
        return start(*args, **kwargs)

    services.start_raylet = start_with_ports


def ports() -> dict[str, int]:
    """Return a free port for each of `PORTS`."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in PORTS]
        for each in sockets:
            each.bind(("", 0))
        return {name: each.getsockname()[1] for name, each in zip(PORTS, sockets, strict=True)}


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables, for the processes that are started in the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def when(condition: Callable[[], Any], act: Callable[[], None]) -> Iterator[list[Any]]:
    """Act in a thread once a condition holds while the block runs; the list then holds what the condition returned."""
    ended, held = threading.Event(), list[Any]()

    def wait() -> None:
        while not ended.wait(0.02):
            if value := condition():
                held.append(value)
                act()
                return

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield held
    finally:
        ended.set()
        thread.join()


def place_of(node: Any) -> str:
    """Return the end of a node's name in the display."""
    return str(node.node_id)[:4]


# --- jobs -------------------------------------------------------------------------------------------------------------


class Forgotten:
    """A checkpoint that keeps nothing."""

    save_every = math.inf

    def load(self) -> None:
        return None

    def save(self, tensors: Any, history: Any, updates: int = 0) -> None:
        pass


def cpu_seconds(*arguments: Any) -> float:
    """Train as `train_together` does, and return the CPU seconds that it took of this process."""
    from ensemble.members.parallel import train_together

    started = time.process_time()
    train_together(*arguments)
    return time.process_time() - started


def nothing(number: int, bar: Any) -> int:
    return number


def squares(number: int, steps: int, seconds: float, bar: Any) -> tuple[int, int]:
    """Take so many steps, and return the square of the number and the process."""
    for step in range(steps):
        time.sleep(seconds)
        bar.advance(1)
        bar.note(f"{number} step {step}")
    return number**2, os.getpid()


def total(mapped: Any, bar: Any) -> tuple[int, bool, int]:
    """Return the sum of images, whether they are a memory map, and torch's threads."""
    import torch

    return int(mapped.array.sum(dtype=np.int64)), isinstance(mapped.array, np.memmap), torch.get_num_threads()


def once(folder: str, number: int, bar: Any) -> int:
    """End the process the first time; the second time, return the number."""
    mark = Path(folder, str(number))
    if not mark.exists():
        mark.touch()
        os._exit(1)
    return number


def always(bar: Any) -> None:
    """End the process."""
    os._exit(1)


def wrong(bar: Any) -> None:
    raise ZeroDivisionError("of nothing")
