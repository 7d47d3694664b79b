"""Join a Ray cluster, and check that its nodes are equal."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ensemble.cluster.facts import MachineFacts, facts_of_this_machine, refuse_unequal
from ensemble.cluster.relay import Relay
from ensemble.errors import ConfigError, ResourceError, first_line, printable
from ensemble.machine import available_cores
from ensemble.progress import Say

ENDED = (
    ray.exceptions.NodeDiedError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.TaskUnschedulableError,
)
"""The errors that Ray raises for a task whose node has ended, or ends before the task begins."""

REMEDIES = {
    "auto": "start one by: ray start --head, or use --cluster local",
    "local": "run the same command again; Ray gives up a start that takes longer than 15 s",
}
"""What to do if a cluster cannot be joined, by the address that was given."""

START_S = 300.0
"""The number of seconds in which a node must have started a process and imported torch."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster: its id, its cores and its GPUs."""

    id: str
    cores: int
    gpus: int


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process has joined.

    Attributes
    ----------
    connection : str
        The address of the cluster, and Ray's id of this process in it.
    relay : Any
        The handle of the actor on this node.
    nodes : tuple of Node
        The nodes that compute.
    facts : MachineFacts
        The software and hardware of the nodes, which are all equal.
    """

    connection: str
    relay: Any
    nodes: tuple[Node, ...]
    facts: MachineFacts


_joined: dict[str, Cluster] = {}
"""The cluster that this process has joined, by the device that was requested. The process stays connected to it."""


def join(address: str, device: str, say: Say) -> Cluster:
    """Join a cluster, unless this process has, and start the relay on this node.

    If Python code has connected this process to Ray before, that connection is used and the address is ignored.

    Parameters
    ----------
    address : str
        ``auto``, ``local`` or HOST:PORT.
    device : {"auto", "cpu", "cuda"}
    say : callable
        Receives a line that says how many nodes, cores or GPUs compute.

    Raises
    ------
    ConfigError
        The address is that of a Ray client, or no node has a GPU and one is requested.
    ResourceError
        There is no cluster, no node computes, or the nodes are not equal.
    """
    if not ray.is_initialized():
        _connect(address)
    context = ray.get_runtime_context()
    connection = f"{context.gcs_address} {context.get_job_id()}"  # the first process of each cluster has the same id
    if (known := _joined.get(device)) and known.connection == connection:
        return known
    nodes = _nodes(device)
    machines = _facts_of(nodes)
    refuse_unequal(machines, facts_of_this_machine())
    # a relay on another node would end with that node, and could not write files on this one
    pinned = _on_node(context.get_node_id())
    options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 8, "max_restarts": -1, "max_task_retries": -1}
    relay = ray.remote(Relay).options(**options, scheduling_strategy=pinned).remote()
    _joined[device] = Cluster(connection, relay, nodes, machines[0])
    gpus = sum(node.gpus for node in nodes)
    what = _counted(gpus, "GPU") if gpus else _counted(sum(node.cores for node in nodes), "core")
    say(f"note: a cluster of {_counted(len(nodes), 'node')} with {what} computes")
    return _joined[device]


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _connect(address: str) -> None:
    """Connect this process to Ray, and restore the signal handlers, which Ray replaces."""
    where = f"--cluster {printable(address)}"
    if address.startswith("ray://"):
        remedy = "run thera on a node of the cluster, such as its head, and give auto"
        raise ConfigError(where, "is the address of a Ray client", remedy)
    given: dict[str, Any] = {"address": address, "logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's developers
        given |= {"num_cpus": len(available_cores()), "include_dashboard": False}
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(**given)
    except Exception as error:  # Ray raises bare exceptions, too
        remedy = REMEDIES.get(address, "check the address")
        raise ResourceError(where, f"cannot be joined ({first_line(error, 200)})", remedy) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _on_node(node: str) -> Any:
    return NodeAffinitySchedulingStrategy(node_id=node, soft=False)


def _nodes(device: str) -> tuple[Node, ...]:
    """Return the nodes that compute: the nodes with GPUs, or without GPUs or for `--device cpu` all nodes with cores.

    Raises
    ------
    ConfigError
        GPUs are requested, and no node has one.
    ResourceError
        No node has a core.
    """
    alive = [(each["NodeID"], each["Resources"]) for each in ray.nodes() if each["Alive"]]
    nodes = [Node(node, int(has.get("CPU", 0)), int(has.get("GPU", 0))) for node, has in alive]
    with_gpus = tuple(node for node in nodes if node.gpus and node.cores)
    if device != "cpu" and with_gpus:
        return with_gpus
    if device == "cuda":
        raise ConfigError("--device", "cuda: no node of the cluster has a GPU", "use --device cpu")
    if not any(node.cores for node in nodes):
        raise ResourceError("--cluster", "no node of the cluster has a core", "add one by: ray start --address HOST")
    return tuple(replace(node, gpus=0) for node in nodes if node.cores)


def _facts_there() -> MachineFacts:
    return facts_of_this_machine()  # `ray.remote` refuses a function that `functools.cache` has wrapped


def _facts_of(nodes: Sequence[Node]) -> list[MachineFacts]:
    """Return the facts of the nodes, which a task on each node reads; nodes that end meanwhile are left out."""
    task, options = ray.remote(_facts_there), {"num_cpus": 0, "max_retries": 0}
    refs = [task.options(**options, scheduling_strategy=_on_node(node.id)).remote() for node in nodes]
    ray.wait(refs, num_returns=len(refs), timeout=START_S)
    machines = []
    for node, ref in zip(nodes, refs, strict=True):
        try:
            machines.append(ray.get(ref, timeout=1))
        except ENDED:
            continue
        except (ray.exceptions.RayError, TimeoutError) as error:
            last = printable((str(error).strip() or "no answer").splitlines()[-1][:200])
            problem = f"node {node.id[:8]} cannot run thera ({last})"
            raise ResourceError("--cluster", problem, "install the same thera on all nodes") from None
    if not machines:
        raise ResourceError("--cluster", "all nodes ended while they were joined", "run the same command again")
    return machines
