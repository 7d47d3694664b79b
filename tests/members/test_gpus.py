"""Several GPUs: a process on each, and none on a GPU that is not used; with a patched torch.cuda, and CPUs as GPUs."""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import pytest
import torch
from test_parallel import FOLDS, PIXELS, alone, assert_same, task

from ensemble.config import ComputeConfig, MemberConfig
from ensemble.errors import ConfigError, ResourceError
from ensemble.members import devices, parallel, processes
from ensemble.members.devices import choose_devices
from ensemble.members.inference import NetworkSpec
from ensemble.members.parallel import Resources, train_tasks
from ensemble.members.plans import REFERENCE
from ensemble.members.predictor import FoldModel, Predictor
from ensemble.members.processes import PROCESS_PAYS, Workers, at_once, shares
from ensemble.progress import progress

HOUSE = Path(devices.__file__).parents[1]
TWO = (torch.device("cuda:0"), torch.device("cuda:1"))
STANDINS = (torch.device("cpu:0"), torch.device("cpu:1"))


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Pretend that there are two T4 and a V100; return the devices that become current, in order."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: ((7, 5), (7, 5), (7, 0))[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: ("T4", "T4", "V100")[index])
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_70", "sm_75"])
    monkeypatch.setattr(devices, "available_cores", lambda: [0, 1, 2, 3])
    current: list[Any] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_all_gpus_of_a_kind_compute(cards: list[Any], name: str) -> None:
    lines: list[str] = []
    assert choose_devices(name, lines.append) == TWO and cards == [TWO[0]]
    assert lines == [
        "note: cuda:2 (V100) is not used: its compute capability 7.0 is not that of cuda:0 (7.5); --device cuda:2 uses "
        "it alone",
        "note: T4 computes (cuda:0)",
        "note: T4 computes (cuda:1)",
    ]
    resources = Resources.of(ComputeConfig(device=name))
    assert (resources.device, resources.gpus) == (torch.device("cuda"), TWO)


def test_a_gpu_that_is_named_is_the_only_one_that_is_touched(cards: list[Any]) -> None:
    resources = Resources.of(ComputeConfig(device="cuda:1"))
    assert (resources.device, resources.gpus) == (TWO[1], TWO[1:]) and cards == [TWO[1]]
    assert choose_devices("cuda:2") == (torch.device("cuda:2"),)
    with pytest.raises(ConfigError, match="cuda:3 is not there: torch sees 3 CUDA devices"):
        choose_devices("cuda:3")


def test_a_gpu_without_code_is_left_out(cards: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_70"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: ((6, 0), (7, 0), (7, 0))[index])
    lines: list[str] = []
    assert choose_devices("auto", lines.append) == (TWO[1], torch.device("cuda:2")) and cards == [TWO[1]]
    assert lines[0].startswith("warning: cuda:0 is not used: torch ") and "no code for T4" in lines[0]
    with pytest.raises(ResourceError, match=r"--device cuda:0: torch .* has no code for T4"):
        choose_devices("cuda:0")


def test_there_is_at_most_one_gpu_for_a_core(cards: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "available_cores", lambda: [5])
    lines: list[str] = []
    assert choose_devices("auto", lines.append) == TWO[:1]
    assert "note: 1 of 2 GPUs are used, one for each CPU core" in lines


def test_folds_are_distributed_to_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "available_cores", lambda: [0, 1, 2, 3])
    every = [[0, 1, 2, 3]] * 5
    for requested, expected in (
        (None, [([0, 2, 4], [0, 1]), ([1, 3], [2, 3])]),
        (1, [([0, 1, 2, 3, 4], [0, 1, 2, 3])]),
        (4, [([0, 4], [0]), ([1], [1]), ([2], [2]), ([3], [3])]),
    ):
        assert parallel._groups(every, Resources(torch.device("cuda"), 0, requested, gpus=TWO)) == expected
    assert at_once(4, PROCESS_PAYS, torch.device("cuda"), None, gpus=2) == 2
    assert at_once(4, PROCESS_PAYS - 1, torch.device("cuda"), None, gpus=2) == 1, "too little work for a process"


def test_processes_have_the_gpus_in_turn_and_keep_them(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[int, Any]] = []

    class Process:
        connection, result = None, 0

        def __init__(self, cores: list[int], gpu: Any) -> None:
            self.cores, self.gpu = cores, gpu

        def begin(self, function: Any, call: Any) -> None:
            begun.append((self.cores[0], self.gpu))

        def receive(self, bar: Any) -> bool:
            return True

        def end(self) -> None: ...

    monkeypatch.setattr(processes, "_Worker", Process)
    monkeypatch.setattr(processes, "wait", lambda connections, timeout: connections)
    monkeypatch.setattr(processes, "available_cores", lambda: [0, 1, 2, 3])
    with progress(1, "test") as bar, Workers(TWO) as pool:
        for _ in range(2):
            assert len(list(pool.run(jobs.describe, [(n,) for n in range(8)], shares(8, 4), bar))) == 8
    assert set(begun) == {(0, TWO[0]), (1, TWO[1]), (2, TWO[0]), (3, TWO[1])} and len(begun) == 16


def test_a_process_has_its_gpu_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[Any] = []

    class Pipe:
        def recv(self) -> Any:
            order.append("a call")
            raise EOFError

    monkeypatch.setattr(torch.cuda, "set_device", order.append)
    for name in ("set_num_threads", "manual_seed"):
        monkeypatch.setattr(torch, name, lambda n, name=name: order.append(name))
    monkeypatch.setattr(processes.os, "sched_setaffinity", lambda *_: order.append("cores"))
    monkeypatch.setattr(processes, "keep_freed_memory", lambda: None)
    processes._work(Pipe(), [0], TWO[1])
    assert order == [TWO[1], "cores", "set_num_threads", "a call"]


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    cores = processes.available_cores()
    if len(cores) < 2:
        pytest.skip("needs two cores")
    monkeypatch.setattr(processes, "available_cores", lambda: cores[:2])
    return cores[:2]


def test_two_processes_train_the_folds_as_one_does(two_cores: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs stand in for two GPUs: each has a process, which trains its folds together."""
    started, really = [], processes._Worker.__init__

    def noted(self: Any, cores: list[int], gpu: Any) -> None:
        started.append((cores, gpu))
        really(self, cores, gpu)

    monkeypatch.setattr(processes._Worker, "__init__", noted)
    groups = [([0, 2], two_cores[:1]), ([1], two_cores[1:])]
    monkeypatch.setattr(parallel, "_groups", lambda cores, resources: groups)
    tasks = [task(fold, epochs=1) for fold in range(FOLDS)]
    tasks = [parallel.Task(each.job, each.checkpoint, each.plan, each.held_out, each.views, None) for each in tasks]
    resources = Resources(torch.device("cpu"), 0, None, gpus=STANDINS, pool=functools.partial(Workers, STANDINS))
    with progress(1, "test") as bar:
        found = dict(train_tasks(tasks, [two_cores] * FOLDS, resources, bar))
    assert started == [(two_cores[:1], STANDINS[0]), (two_cores[1:], STANDINS[1])]
    for fold, one in enumerate(tasks):
        assert_same(found[fold], alone(one))


def test_two_processes_predict_as_one_does(two_cores: list[int]) -> None:
    trained = alone(task(0, epochs=1))
    spec = NetworkSpec(MemberConfig(arch="lenet", pretrained=False), 16, REFERENCE, torch.device("cpu"))
    models = [FoldModel("lenet", 0, spec, Weights(trained.weights))]
    logits = []
    for resources in (
        Resources(torch.device("cpu"), 0, 2, gpus=STANDINS, pool=functools.partial(Workers, STANDINS)),
        Resources(torch.device("cpu"), 0, 1),
    ):
        with Predictor(PIXELS, 1, resources) as predictor, progress(1, "test") as bar:
            assert len(predictor._slots) == (resources.jobs or 0)
            logits += [of_model for _, of_model, _ in predictor.predict(models, ["identity"], bar)]
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=1e-5)


class Weights:
    """Return the weights of a fold model; it can be sent to another process."""

    def __init__(self, weights: Any) -> None:
        self._weights = weights

    def __call__(self) -> Any:
        return {name: torch.from_numpy(np.array(value)) for name, value in self._weights.items()}


OF_THE_CURRENT_DEVICE = {
    "synchronize",
    "memory_reserved",
    "memory_allocated",
    "max_memory_allocated",
    "reset_peak_memory_stats",
    "mem_get_info",
    "memory_stats",
    "get_device_name",
    "get_device_capability",
    "get_device_properties",
    "get_rng_state",
    "set_rng_state",
    "current_stream",
}


def test_no_call_means_whatever_device_is_current() -> None:
    """A call of torch.cuda that takes a device is given one: --device cuda:1 makes no context on cuda:0."""
    seen = 0
    for path in sorted(HOUSE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func).startswith("torch.cuda.")):
                continue
            name, least = ast.unparse(node.func).removeprefix("torch.cuda."), 1
            if name in OF_THE_CURRENT_DEVICE:
                seen += 1
                least = 2 if name == "set_rng_state" else 1
                assert len(node.args) + len(node.keywords) >= least, f"{path.name}:{node.lineno} names no device"
            assert name not in ("init", "current_device", "seed", "seed_all"), f"{path.name}:{node.lineno}"
    assert seen >= 8
