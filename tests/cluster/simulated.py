"""A Ray cluster of one-core nodes on this machine, jobs for it, and what its tests measure by."""

from __future__ import annotations

import math
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
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
"""Ports of a node that Ray's agents write to files once they have started. Ray ends a node whose files are not there
after 15 s, which is a constant, so that on a busy machine they are written before the agents start."""

SESSION = "session"
"""The name of the folder in which the processes of a cluster write files."""

RAY = "2.60.0"
"""The version of Ray whose files of ports, arguments of nodes and variables of the environment are used here."""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""The environment of Ray's processes: nothing is sent, and tasks have the priority of the tests."""

# Ray reads it when it is imported. A node that has not registered after so many seconds is given up.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "600")


class Simulated:
    """A head without cores, on which the driver and the relay run, and nodes of one core each.

    A blind node does not see the files of the driver, as one without a shared folder.
    """

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster

        if ray.__version__ != RAY:
            problem = f"it starts nodes of Ray {RAY} by details that other versions may not have; got {ray.__version__}"
            raise RuntimeError(f"{__file__}: {problem}; check how nodes start and change RAY")
        self._folder = tempfile.TemporaryDirectory(prefix="ray-")  # paths of sockets must be short
        self._cluster = Cluster()
        # nothing that only serves people: less to start
        lean = {"include_log_monitor": False, "no_monitor": True, "include_dashboard": False}
        place = {"temp_dir": self._folder.name, "session_name": SESSION}
        with environment(**QUIET):
            self._start(num_cpus=0, object_store_memory=150 * 2**20, _system_config=SETTINGS, **lean, **place)
        self.address: str = self._cluster.address
        self.nodes: list[Any] = []

    def add(self, blind: bool = False) -> Any:
        """Start a node of one core; those that see the files come first in `nodes`."""
        folders = [str(HERE / "blind") if blind else "", str(HERE), os.environ.get("PYTHONPATH", "")]
        path = os.pathsep.join(filter(None, folders))
        with environment(PYTHONPATH=path, THERA_TEST_BLIND="1" if blind else "", **QUIET):
            node = self._start(num_cpus=1, object_store_memory=100 * 2**20)
        self.nodes.insert(len(self.nodes) if blind else 0, node)
        return node

    def add_up_to(self, n: int) -> None:
        """Start nodes that see the files until there are n, of which the last one is blind."""
        if not self.nodes:
            self.add(blind=True)
        while len(self.nodes) < n:
            self.add()

    def _start(self, **options: Any) -> Any:
        """Start a node, with an id by which its files of ports are found."""
        from ray import NodeID
        from ray._raylet import persist_port

        node, given = NodeID.from_random().hex(), ports()
        session = Path(self._folder.name, SESSION)
        session.mkdir(exist_ok=True)
        for name, port in given.items():
            persist_port(str(session), node, name, port)
        with environment(RAY_OVERRIDE_NODE_ID_FOR_TESTING=node):
            return self._cluster.add_node(wait=False, **options, **given)

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
        self._folder.cleanup()


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
