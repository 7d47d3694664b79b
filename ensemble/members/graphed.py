"""The updates of a training as one CUDA graph: hundreds of kernels by a single launch.

On images of 64 pixels a fast GPU waits for the launches of an update. A graph records the kernels of an update once,
with the addresses of their tensors, and launches them together. What changes from update to update must therefore be
in tensors that stay where they are: the batch, the learning rates, the share of the weights in their average.

A graph is only used once it has been checked: in two updates it is replayed from the same state as the update without
a graph, and losses, weights, average, statistics and the state of the optimiser are compared; later a few more updates
are. Whatever fails, or differs, refuses the graph, and the training goes on without it. No part of this file has run on
a GPU.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch

from ensemble.errors import OUT_OF_DEVICE_MEMORY, first_line, is_out_of_device_memory
from ensemble.members.memory import release_cache, release_frames

Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Pixels (b, H, W, 3) uint8, labels (b,) or targets (b,) or (b, C), and the factors of the losses (b,), on a device."""

FIRST_UPDATES = 3
"""Updates before the capture. They make the state of the optimiser and let cuDNN and cuBLAS choose their algorithms,
which is not possible during a capture; torch's documentation takes three iterations as a warm-up, too."""

CHECKED_UPDATES = 2
"""Updates after the capture in which the graph is compared with an update without it. Their batches and rates differ
from those of the capture, so that a value that the capture froze shows."""

LATER_CHECKS = (100, 1000, 10_000)
"""The numbers of replays after which a graph is compared again: memory that it reads or writes could be given to others
by an error, which the first checks cannot show. A check takes as long as many replays, so that there are few."""

STATE_TOLERANCE = 0.02
"""The largest difference between the changes that an update makes with a graph and without it, relative to the change
(root mean square). Both compute the same kernels on the same values; only sums by atomic additions differ, by rounding.
A wrong batch, rate or share differs by more. The value is an estimate, because no GPU was available."""

ROUNDING = 1e-7
"""The relative difference of values that is always allowed, because float32 has no more digits. At the end of a
schedule an update changes the weights by little more."""

LOSS_TOLERANCE = 1e-3
"""The largest relative difference between the losses with a graph and without it."""


class Updated(Protocol):
    """The parts of a `learner.Learner` that an update changes, and the update itself except for the average."""

    network: Any
    ema: Any
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device

    def apply(self, batch: Batch) -> torch.Tensor: ...


class Captured:
    """A captured update: `replay` computes it again; `loss` is the tensor that has its loss afterwards."""

    def __init__(self, graph: Any, loss: torch.Tensor, device: torch.device) -> None:
        self.graph, self.loss, self.device = graph, loss, device
        _alive.add(self)

    def replay(self) -> None:
        self.graph.replay()


_alive: weakref.WeakSet[Captured] = weakref.WeakSet()
"""The captured updates of this process. Those of one device share the memory of their activations, because they are
replayed one after the other and keep nothing in it: a loss is copied after each replay."""


class GraphedUpdates:
    """The updates of one learner: the first ones launch by launch, then by a graph that is captured and checked.

    A batch of another shape is computed without the graph. fp16 is captured with its gradient scaler: the fused
    optimiser skips an update that overflows without the host, and the scale is changed in place on the device. A graph
    never holds on to its learner, so that both are freed at once.

    Attributes
    ----------
    refusal : str
        Why no graph is used; empty while one is used or may be.
    was_trusted : bool
        Whether the refused graph had been used, so that the weights may be wrong.
    """

    def __init__(self) -> None:
        self.refusal, self.was_trusted = "", False
        self._made = self._checked = self._replays = 0
        self._captured: Captured | None = None
        self._inputs: Batch | None = None
        self._rates: list[torch.Tensor] = []
        self._share = torch.empty(0)
        self._averaged: tuple[list[torch.Tensor], ...] = ()
        self._untold = False

    @property
    def is_ready(self) -> bool:
        """Whether the next update is one replay of a graph that was checked."""
        return self._captured is not None and self._checked >= CHECKED_UPDATES

    def news(self) -> str:
        """Return why no graph is used, once; else an empty text."""
        untold, self._untold = self._untold, False
        return self.refusal if untold else ""

    def update(self, learner: Updated, number: int, batch: Batch) -> torch.Tensor:
        """Make one update, whose rates are set in the optimiser's groups; return its loss, on the device."""
        self._set_numbers(learner, number)
        if self.refusal or self._made < FIRST_UPDATES:
            return self._plainly(learner, batch)
        if self._captured is None:
            before, random = _state(learner), _random_state(learner.device)
            self._capture(learner, batch)
            return self._beside(learner, batch, before, random)
        if not self._fits(batch):
            return self._plainly(learner, batch)
        if not self.is_ready or self._replays in LATER_CHECKS:
            return self._compared(learner, batch)
        random = _random_state(learner.device)
        try:
            return self._replayed(batch)
        except Exception as error:  # CUDA may raise anything. An error of the device itself comes again.
            self._refuse_replay(learner, error)
        _set_random_state(random, learner.device)  # also a launch that fails has moved it
        return self._plainly(learner, batch)

    # --- an update in tensors -----------------------------------------------------------------------------------------

    def _set_numbers(self, learner: Updated, number: int) -> None:
        """Write the learning rates and the share of the new weights into their tensors; nothing is read back."""
        groups = learner.optimizer.param_groups
        if not self._rates:
            self._rates = [torch.zeros((), device=learner.device) for _ in groups]
            self._share = torch.zeros((), device=learner.device)
        for rate, group in zip(self._rates, groups, strict=True):
            rate.fill_(group["lr"])
        self._share.fill_(1.0 - learner.ema.get_decay(number))

    def _plainly(self, learner: Updated, batch: Batch) -> torch.Tensor:
        """Make an update launch by launch, on the stream of the capture, where what it prepares is needed."""
        self._made += 1
        with _side_stream_of(learner.device):
            loss = self._body(learner, batch)
        if self._captured is not None:  # the gradients of a graph are in its own memory
            learner.optimizer.zero_grad(set_to_none=True)
        return loss

    def _beside(self, learner: Updated, batch: Batch, before: State, random: torch.Tensor) -> torch.Tensor:
        """Make an update launch by launch while a graph holds memory; if it fails, make it again without the graph."""
        if self._captured is None:
            return self._plainly(learner, batch)
        try:
            return self._plainly(learner, batch)
        except Exception as error:  # it is raised again where the memory of the graph is not the reason
            reason = _reason(error)
            release_frames(error)  # they hold the activations
        self._refuse(learner, f"an update beside a graph of its updates fails ({reason})")
        _forget_begun(learner)
        _put_back(learner, before)
        _set_random_state(random, learner.device)
        return self._plainly(learner, batch)

    def _body(self, learner: Updated, batch: Batch) -> torch.Tensor:
        """Make an update in which no number of the host changes from update to update; return its loss."""
        groups = learner.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate
        try:
            loss = learner.apply(batch)
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate
        self._average(learner)
        return loss

    @torch.no_grad()
    def _average(self, learner: Updated) -> None:
        """Move the average towards the weights: a + share (w - a); counters are copied."""
        if not self._averaged:
            pairs = list(
                zip(learner.ema.module.state_dict().values(), learner.network.state_dict().values(), strict=True)
            )
            floats = [pair for pair in pairs if pair[0].is_floating_point()]
            counters = [pair for pair in pairs if not pair[0].is_floating_point()]
            self._averaged = tuple([pair[i] for pair in part] for part in (floats, counters) for i in (0, 1))
        averages, weights, of_average, of_network = self._averaged
        differences = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(differences, self._share)
        torch._foreach_add_(averages, differences)
        if of_average:
            torch._foreach_copy_(of_average, of_network)

    # --- capture and replay -------------------------------------------------------------------------------------------

    def _fits(self, batch: Batch) -> bool:
        assert self._inputs is not None
        return [_form(each) for each in batch] == [_form(each) for each in self._inputs]

    def _capture(self, learner: Updated, batch: Batch) -> None:
        """Capture an update of batches like this one. It computes nothing, so the caller makes the update itself."""
        pixels, labels, weights = batch
        inputs = (pixels.clone(), labels.clone(), None if weights is None else weights.clone())
        learner.optimizer.zero_grad(set_to_none=True)  # so that the gradients are in the memory of the graph
        try:
            self._captured = captured(lambda: self._body(learner, inputs), learner.device)
        except Exception as error:  # what cannot be captured raises errors of many kinds
            _forget_begun(learner)
            reason = _reason(error)
            release_frames(error)  # they hold the activations
            self._refuse(learner, f"its updates cannot be captured as a CUDA graph ({reason})")
            return
        self._inputs = inputs
        learner.optimizer.zero_grad(set_to_none=True)

    def _replayed(self, batch: Batch) -> torch.Tensor:
        assert self._captured is not None and self._inputs is not None
        loss = torch.empty_like(self._captured.loss)  # now: where something fails after the replay, it is made twice
        for static, given in zip(self._inputs, batch, strict=True):
            if static is not None and given is not None:
                static.copy_(given, non_blocking=True)
        self._captured.replay()
        self._replays += 1
        return loss.copy_(self._captured.loss)  # the next replay writes over it

    def _refuse_replay(self, learner: Updated, error: Exception) -> None:
        reason = _reason(error)
        release_frames(error)
        self._refuse(learner, f"a graph of its updates cannot be replayed ({reason})")

    def _refuse(self, learner: Updated, reason: str) -> None:
        self.refusal, self._untold = f"{reason}; they are launched one by one", True
        self._captured = self._inputs = None
        learner.optimizer.zero_grad(set_to_none=True)
        release_cache(learner.device)

    # --- the check ----------------------------------------------------------------------------------------------------

    def _compared(self, learner: Updated, batch: Batch) -> torch.Tensor:
        """Make an update by the graph, go back, and make it without the graph; compare both, and keep the second."""
        before, random = _state(learner), _random_state(learner.device)
        try:
            loss_of_graph = float(self._replayed(batch))
            of_graph = _state(learner)
        except Exception as error:  # CUDA may raise anything
            self._refuse_replay(learner, error)
        _put_back(learner, before)
        _set_random_state(random, learner.device)
        loss = self._beside(learner, batch, before, random)
        if self.refusal:  # of the replay, or of the memory that it needs
            return loss
        expected = _state(learner)
        if difference := compared(before, of_graph, expected, loss_of_graph, float(loss)):
            self.was_trusted = self.is_ready
            after = f" after {self._replays - 1} updates, so that its weights may be wrong" if self.was_trusted else ""
            self._refuse(learner, f"a graph of its updates computes something else{after} ({difference})")
        elif _distance(before.tensors["weights"], expected.tensors["weights"]):  # in fp16 an overflow skips an update
            self._checked += 1
        return loss


def captured(work: Callable[[], torch.Tensor], device: torch.device) -> Captured:
    """Capture work as a CUDA graph, without computing it.

    Data workers pin memory in a thread while this one captures; the mode ``thread_local`` lets them. The garbage
    collector waits, because freeing another graph would break the capture. The workspaces of cuBLAS are made again in
    the memory of the graph: another user of graphs, such as torch.compile, frees those that all share.

    Parameters
    ----------
    work : callable
        Launches kernels on tensors that stay where they are, and returns the loss.
    device : torch.device
        The current CUDA device.

    Raises
    ------
    Exception
        Of many kinds, if something in it cannot be captured.
    """
    graph, stream = torch.cuda.CUDAGraph(), _side_stream(device)
    pool = next((each.graph.pool() for each in _alive if each.device == device), None)
    gc.collect()
    was_collecting = gc.isenabled()
    torch._C._cuda_clearCublasWorkspaces()
    gc.disable()
    try:
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            loss = work()
    finally:
        if was_collecting:
            gc.enable()
    return Captured(graph, loss, device)


@functools.cache
def _side_stream(device: torch.device) -> Any:
    """Return the stream on which updates are prepared and captured; graphs that share memory need the same one."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _side_stream_of(device: torch.device) -> Iterator[None]:
    """Launch on the stream of the capture, after what was launched before and before what is launched later."""
    if device.type != "cuda":
        yield
        return
    side, usual = _side_stream(device), torch.cuda.current_stream(device)
    side.wait_stream(usual)
    try:
        with torch.cuda.stream(side):
            yield
    finally:
        usual.wait_stream(side)


# --- the state of a training, compared --------------------------------------------------------------------------------


class State(NamedTuple):
    """Copies on the CPU of what an update changes: lists of tensors by kind, and the scale of the gradients."""

    tensors: dict[str, list[torch.Tensor]]
    scale: tuple[float, int]


def compared(before: State, of_graph: State, expected: State, loss_of_graph: float, loss: float) -> str:
    """Return how an update by a graph differs from the same update without it; an empty text if it does not.

    Parameters
    ----------
    before, of_graph, expected : State
        Before the update, after the update by the graph, and after the update without it.
    loss_of_graph, loss : float
        The losses of both; two that are not finite count as equal.
    """
    if not (_close(loss_of_graph, loss) or not (math.isfinite(loss_of_graph) or math.isfinite(loss))):
        return f"a loss of {loss_of_graph:.6g} instead of {loss:.6g}"
    if of_graph.scale != expected.scale:
        return f"a scale of {of_graph.scale[0]:g} instead of {expected.scale[0]:g}"
    for name, values in expected.tensors.items():
        apart, change = _distance(of_graph.tensors[name], values), _distance(before.tensors[name], values)
        if name == "counters" and apart:
            return "other counters"
        rounding = ROUNDING * _norm(values)
        if apart and not apart <= STATE_TOLERANCE * change + rounding:  # also true for NaN
            return f"{name} that differ by {apart / max(change, 1e-30):.2g} of their change"
    return ""


def _close(loss_of_graph: float, loss: float) -> bool:
    return abs(loss_of_graph - loss) <= LOSS_TOLERANCE * max(abs(loss), 1e-3)


def _distance(some: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    """Return the Euclidean distance of two lists of tensors; values that are not finite in both count as equal."""
    lengths = []
    for one, other in zip(some, others, strict=True):
        apart = one.float() - other.float()
        apart[~(one.isfinite() | other.isfinite())] = 0
        lengths.append(float(torch.linalg.vector_norm(apart)))
    return math.hypot(*lengths)


def _norm(values: list[torch.Tensor]) -> float:
    """Return the Euclidean norm of the finite values of tensors."""
    return math.hypot(*(float(torch.linalg.vector_norm(each.float().nan_to_num(0, 0, 0))) for each in values))


def _live(learner: Updated) -> dict[str, list[torch.Tensor]]:
    """Return the tensors that an update changes, by kind."""
    weights = [each.detach() for each in learner.network.parameters()]
    buffers = list(learner.network.buffers())
    averages = list(learner.ema.module.state_dict().values())
    slots = [slot for of_parameter in learner.optimizer.state.values() for slot in of_parameter.items()]
    moments = {name: [value for slot, value in slots if slot == name] for name in ("exp_avg", "exp_avg_sq")}
    counters = [value for slot, value in slots if slot == "step"]
    counters += [each for each in (*buffers, *averages) if not each.is_floating_point()]
    return {
        "weights": weights,
        "statistics": [each for each in buffers if each.is_floating_point()],
        "averages": [each for each in averages if each.is_floating_point()],
        "first moments": moments["exp_avg"],
        "second moments": moments["exp_avg_sq"],
        "counters": counters,
    }


def _state(learner: Updated) -> State:
    copies = {name: [each.to("cpu", copy=True) for each in values] for name, values in _live(learner).items()}
    scaler = learner.scaler.state_dict()
    return State(copies, (float(scaler.get("scale", 1.0)), int(scaler.get("_growth_tracker", 0))))


@torch.no_grad()
def _put_back(learner: Updated, state: State) -> None:
    """Give the tensors of a learner the values of a state, where they are."""
    for name, values in _live(learner).items():
        for live, value in zip(values, state.tensors[name], strict=True):
            live.copy_(value)
    if learner.scaler.is_enabled():
        known = {"scale": state.scale[0], "_growth_tracker": state.scale[1]}
        learner.scaler.load_state_dict(learner.scaler.state_dict() | known)


def _random_state(device: torch.device) -> torch.Tensor:
    if device.type == "cpu":
        return torch.get_rng_state()
    state: torch.Tensor = torch.get_device_module(device).get_rng_state(device)
    return state


def _set_random_state(state: torch.Tensor, device: torch.device) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)


def _form(tensor: torch.Tensor | None) -> object:
    return None if tensor is None else (tensor.shape, tensor.dtype)


def _forget_begun(learner: Updated) -> None:
    """Let the scaler forget an update that began and failed; else it refuses the next one."""
    if learner.scaler.is_enabled():
        learner.scaler.update(learner.scaler.get_scale())


def _reason(error: BaseException) -> str:
    """Return the first line of the error that came first: ending a capture that failed raises another one."""
    lacks_memory = is_out_of_device_memory(error)
    while error.__context__ is not None:
        error = error.__context__
        lacks_memory |= is_out_of_device_memory(error)
    return OUT_OF_DEVICE_MEMORY if lacks_memory else first_line(error, 120)
