"""A CUDA graph for a CPU: the operators of some work, recorded once and replayed on the same memory.

As in a CUDA graph, numbers of the host are those of the capture, tensors are read and written where they were, random
numbers are new ones, nothing outside the operators is repeated, and the capture itself leaves every value as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ensemble.members.graphed import Captured


class RecordedGraph:
    """The recorded operators; `skipped` are parts of names of operators that a replay leaves out, as a broken one."""

    def __init__(self, calls: list[tuple[Any, Any, Any, Any]], skipped: tuple[str, ...] = ()) -> None:
        self._calls = [call for call in calls if not any(name in str(call[0]) for name in skipped)]
        self.replays = 0

    @property
    def operators(self) -> list[str]:
        return [str(call[0]) for call in self._calls]

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for operator, args, kwargs, recorded in self._calls:
                for before, now in zip(tensors(recorded), tensors(operator(*args, **kwargs)), strict=True):
                    if before.untyped_storage().data_ptr() != now.untyped_storage().data_ptr():
                        before.copy_(now)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self._before: dict[int, tuple[Any, Any]] = {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tensors((args, kwargs)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._before:
                self._before[storage.data_ptr()] = storage, storage.clone()
        result = operator(*args, **(kwargs or {}))
        self.calls.append((operator, args, kwargs or {}, result))
        return result

    def put_back(self) -> None:
        for storage, values in self._before.values():
            storage.copy_(values)


def tensors(values: Any) -> Iterator[torch.Tensor]:
    yield from (each for each in tree_leaves(values) if isinstance(each, torch.Tensor))


def recorded(work: Callable[[], torch.Tensor], device: torch.device, skipped: tuple[str, ...] = ()) -> Captured:
    """Capture work as `graphed.captured` does."""
    random, recorder = torch.get_rng_state(), _Recorder()
    with recorder:
        loss = work()
    recorder.put_back()
    torch.set_rng_state(random)
    return Captured(RecordedGraph(recorder.calls, skipped), loss, device)
