"""Updates as a CUDA graph, on a CPU with a graph of recorded operators: the same training, or a refusal with a note."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from recorded_graph import RecordedGraph, recorded

import ensemble.members.probe as probing
from ensemble.config import MemberConfig
from ensemble.errors import ConfigError, OutOfDeviceMemory
from ensemble.members import backbones, budget, graphed, learner, probe_cache, probe_updates
from ensemble.members.fold_job import FoldJob
from ensemble.members.graphed import CHECKED_UPDATES, FIRST_UPDATES, GraphedUpdates, State, compared
from ensemble.members.learner import Learner, begin
from ensemble.members.plans import Plan
from ensemble.members.probe import probe
from ensemble.members.processes import MappedPixels
from ensemble.members.training import train_fold

CPU, N, BATCH, UPDATES = torch.device("cpu"), 64, 8, 14
RNG = np.random.default_rng(0)
LABELS = (np.arange(N) % 4 != 0).astype(np.int8)
PIXELS = RNG.integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)
GRAPHED, EAGER = Plan("fp32", "graphed"), Plan("fp32")
READS_BACK = ("_local_scalar_dense", "nonzero", "scalar_tensor", "lift_fresh", "where.Scalar")
"""Parts of the names of operators that make the host wait for a GPU, which no capture allows."""


def job(**values: Any) -> FoldJob:
    fields = {name: values.pop(name) for name in ("classes", "targets", "row_weights") if name in values}
    base = {"arch": "test_resnet", "pretrained": False, "epochs": 4, "batch_size": BATCH, "drop_rate": 0.5}
    base |= {"warmup_epochs": 1, "augment": "none"}
    config, rows = MemberConfig.model_validate(base | values), np.arange(N)
    labels = rows.astype(np.int8) % fields["classes"] if "classes" in fields else LABELS
    return FoldJob(config, MappedPixels(PIXELS), labels, rows.astype(str), rows, 0, seed=5, **fields)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[RecordedGraph]:
    """Record graphs on the CPU; return those that are captured."""
    made: list[RecordedGraph] = []

    def capture(work: Callable[[], torch.Tensor], device: torch.device) -> graphed.Captured:
        result = recorded(work, device)
        made.append(result.graph)
        return result

    monkeypatch.setattr(graphed, "captured", capture)
    return made


def trained(one: FoldJob, plan: Plan, partial: int | None = None) -> tuple[list[float], Learner]:
    """Make updates of all batches in turn, with dropout; the one that is numbered `partial` has fewer images."""
    torch.manual_seed(0)
    subject = begin(one, plan, CPU)
    subject.network.train()
    losses = []
    for number in range(UPDATES):
        rows = np.arange(N).reshape(-1, BATCH)[number % (N // BATCH)][: 5 if number == partial else BATCH]
        batch = torch.from_numpy(PIXELS[rows]), torch.from_numpy(one.learned[rows].astype(np.float32))
        torch.manual_seed(number)
        losses.append(subject.update(number, *batch, one.weights_of(rows)))
    return torch.stack(losses).tolist(), subject


def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the optimiser be fused, as on a GPU."""
    make = learner.create_optimizer_v2
    monkeypatch.setattr(learner, "create_optimizer_v2", lambda *given, **kw: make(*given, **kw | {"fused": True}))


def same(one: Learner, other: Learner, apart: float = 0.0) -> None:
    """Check that each tensor of two states differs by no more than this part of its length."""
    states = one.state(), other.state()
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        expected = states[1][name].double()
        assert float((value.double() - expected).norm()) <= apart * float(expected.norm()), name
        assert apart == 0 or not name.endswith(".step") or torch.equal(value.double(), expected)


KINDS: list[dict[str, Any]] = [
    {},
    {"loss": "weighted-focal", "label_smoothing": 0.1, "backbone_lr_factor": 0.3, "clip_norm": 0.1},
    {"classes": 3, "loss": "bce", "drop_path_rate": 0.2},
    {"row_weights": np.linspace(0, 1, N, dtype=np.float32)},
    {"targets": RNG.random(N).astype(np.float32)},
]


@pytest.mark.parametrize(("values", "partial"), [({}, None), *((values, UPDATES - 2) for values in KINDS)])
def test_replays_train_as_launches_do(
    graphs: list[RecordedGraph], monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], partial: int | None
) -> None:
    """With changing rates, new random numbers and a partial batch: to the bit as its own updates without a graph, and
    up to rounding as those of the fused optimiser with numbers of the host."""
    fused(monkeypatch)
    losses, by_graph = trained(job(**values), GRAPHED, partial)
    assert not [name for name in graphs[0].operators if any(part in name for part in READS_BACK)]
    assert len(graphs) == 1 and by_graph.graphed is not None and by_graph.graphed.is_ready
    assert graphs[0].replays == UPDATES - FIRST_UPDATES - 1 - (partial is not None)
    usual, by_hand = trained(job(**values), EAGER, partial)
    same(by_graph, by_hand, 0.03)
    np.testing.assert_allclose(losses, usual, rtol=1e-5)
    assert by_graph.lr == by_hand.lr and len(set(losses)) > UPDATES // 2
    monkeypatch.setattr(graphed, "FIRST_UPDATES", math.inf)
    without, own = trained(job(**values), GRAPHED, partial)
    same(by_graph, own)
    assert losses == without and len(graphs) == 1


def test_fp16_is_captured_with_its_scaler(graphs: list[RecordedGraph], monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates that overflow lower the scale and change nothing, also in a replay; the check waits for one that does
    not."""
    fused(monkeypatch)
    make = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda device, enabled: make(device, 2.0**26, growth_interval=2, enabled=enabled)
    )
    monkeypatch.setattr(f"{__name__}.UPDATES", 28)
    losses, by_graph = trained(job(), Plan("fp16", "graphed"))
    usual, by_hand = trained(job(), Plan("fp16"))
    assert by_graph.graphed is not None and by_graph.graphed.is_ready and graphs[0].replays > CHECKED_UPDATES + 5
    assert by_graph.scaler.get_scale() == by_hand.scaler.get_scale() < 2.0**26
    steps = [float(next(iter(each.optimizer.state.values()))["step"]) for each in (by_graph, by_hand)]
    assert steps[0] == steps[1] < 28
    np.testing.assert_allclose(losses, usual, rtol=0.02)


def refused(made: Learner) -> str:
    assert made.graphed is not None and not made.graphed.is_ready
    reason = made.graphed.refusal
    assert made.graphed.news() == reason and made.graphed.news() == "", "it is told once"
    assert reason.endswith("; they are launched one by one")
    return reason


@pytest.mark.parametrize(
    ("skipped", "reason"),
    [
        ("_fused_adamw", "computes something else (weights that differ by 1 of their change)"),
        ("_foreach_add_.List", "averages that differ"),
        ("_foreach_mul_.Tensor", "differ by"),  # clipping, and the share of the average
        ("convolution_backward", "differ by"),
        ("batch_norm.default", "a loss of"),
        ("_foreach_copy_", "other counters"),
    ],
)
def test_a_graph_that_computes_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, skipped: str, reason: str
) -> None:
    """Nothing that it computed remains: the training is the same as without it."""
    monkeypatch.setattr(graphed, "captured", functools.partial(recorded, skipped=(skipped,)))
    _, made = trained(job(), GRAPHED)
    assert reason in refused(made)
    monkeypatch.setattr(graphed, "FIRST_UPDATES", math.inf)
    same(made, trained(job(), GRAPHED)[1])


@pytest.mark.parametrize("stale", ["batch", "rates", "share"])
def test_what_a_capture_freezes_is_noticed(
    graphs: list[RecordedGraph], monkeypatch: pytest.MonkeyPatch, stale: str
) -> None:
    """A batch, rates or a share of the average that are those of the capture."""
    replayed, body = GraphedUpdates._replayed, GraphedUpdates._body

    def of_capture(self: GraphedUpdates, batch: graphed.Batch) -> torch.Tensor:
        assert self._inputs is not None
        return replayed(self, self._inputs)

    def copied(self: GraphedUpdates, *given: Any) -> torch.Tensor:
        live = self._rates, self._share
        if stale == "rates":
            self._rates = [torch.tensor(float(each)) for each in live[0]]
        else:
            self._share = torch.tensor(float(live[1]))
        try:
            return body(self, *given)
        finally:
            self._rates, self._share = live

    if stale == "batch":
        monkeypatch.setattr(GraphedUpdates, "_replayed", of_capture)
    else:
        monkeypatch.setattr(GraphedUpdates, "_body", copied)
    _, made = trained(job(), GRAPHED)
    reason = {"batch": "a loss of", "rates": "weights that differ", "share": "averages that differ"}[stale]
    assert reason in refused(made)


def test_a_capture_that_fails_is_told_in_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here torch itself fails, because there is no GPU."""
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    _, made = trained(job(), GRAPHED)
    assert "its updates cannot be captured as a CUDA graph (" in refused(made)


def test_a_failure_within_a_capture_in_fp16_leaves_the_scaler_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first error is the reason, not the one of ending the capture."""

    def failing(work: Callable[[], torch.Tensor], device: torch.device) -> graphed.Captured:
        try:
            recorded(work, device)
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        finally:
            made.scaler.scale(torch.ones(()))
            made.scaler.unscale_(made.optimizer)
            raise ValueError("capture was invalidated")

    monkeypatch.setattr(graphed, "captured", failing)
    one = job()
    made = begin(one, Plan("fp16", "graphed"), CPU)
    made.network.train()
    for number in range(FIRST_UPDATES + 3):
        assert made.update(number, torch.from_numpy(PIXELS[:8]), torch.from_numpy(LABELS[:8])).isfinite()
    assert "(operation not permitted when stream is capturing)" in refused(made)


def test_a_replay_that_fails_later_is_made_without_the_graph(
    graphs: list[RecordedGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = RecordedGraph.replay

    def failing(self: RecordedGraph) -> None:
        if self.replays == CHECKED_UPDATES + 2:
            raise RuntimeError("CUDA error: launch failed")
        replay(self)

    monkeypatch.setattr(RecordedGraph, "replay", failing)
    _, made = trained(job(), GRAPHED)
    assert "cannot be replayed (CUDA error: launch failed)" in refused(made)
    monkeypatch.setattr(graphed, "FIRST_UPDATES", math.inf)
    same(made, trained(job(), GRAPHED)[1])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("call", [FIRST_UPDATES + 2, FIRST_UPDATES + 3])
def test_an_update_that_fails_beside_a_graph_is_made_again_without_it(
    graphs: list[RecordedGraph], monkeypatch: pytest.MonkeyPatch, call: int, precision: Any
) -> None:
    """After the capture and in a check, where the memory does not suffice for both. Statistics, random numbers and the
    gradient scaler are those of before the update."""
    fused(monkeypatch)
    clip, calls = torch.nn.utils.clip_grad_norm_, [0]

    def failing(*given: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise RuntimeError("CUDA out of memory")
        return clip(*given)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", failing)
    losses, made = trained(job(), Plan(precision, "graphed"))
    assert "an update beside a graph of its updates fails (out of device memory)" in refused(made)
    assert made.graphed is not None and not made.graphed.was_trusted
    monkeypatch.setattr(graphed, "FIRST_UPDATES", math.inf)
    calls[0] = call
    without, expected = trained(job(), Plan(precision, "graphed"))
    same(made, expected)
    assert losses == without


def test_an_update_that_fails_with_and_without_a_graph_is_an_error(
    graphs: list[RecordedGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, calls = torch.nn.utils.clip_grad_norm_, [0]

    def failing(*given: Any) -> Any:
        calls[0] += 1
        if calls[0] >= FIRST_UPDATES + 3:
            raise RuntimeError("CUDA out of memory")
        return clip(*given)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", failing)
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        trained(job(), GRAPHED)
    assert calls[0] == FIRST_UPDATES + 4


@pytest.mark.parametrize("moved", [True, False])
def test_a_launch_that_fails_leaves_the_random_numbers(
    graphs: list[RecordedGraph], monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    """A launch advances the generator before it can fail. Nothing is allocated between a replay and its end."""
    replay = RecordedGraph.replay

    def failing(self: RecordedGraph) -> None:
        if self.replays == CHECKED_UPDATES + 2:
            if moved:
                torch.rand(1)
            raise RuntimeError("CUDA error: launch failed")
        replay(self)
        monkeypatch.setattr(torch.Tensor, "clone", lambda *_: pytest.fail("allocates after a replay"))
        monkeypatch.setattr(torch, "empty_like", lambda *_: pytest.fail("allocates after a replay"))

    monkeypatch.setattr(RecordedGraph, "replay", failing)
    clone, empty, replayed = torch.Tensor.clone, torch.empty_like, GraphedUpdates._replayed

    def allowed_before(self: GraphedUpdates, batch: graphed.Batch) -> torch.Tensor:
        loss = replayed(self, batch)
        monkeypatch.setattr(torch.Tensor, "clone", clone)
        monkeypatch.setattr(torch, "empty_like", empty)
        return loss

    monkeypatch.setattr(GraphedUpdates, "_replayed", allowed_before)
    _, made = trained(job(), GRAPHED)
    assert "cannot be replayed (CUDA error: launch failed)" in refused(made)
    monkeypatch.setattr(graphed, "FIRST_UPDATES", math.inf)
    same(made, trained(job(), GRAPHED)[1])


def test_a_graph_that_goes_wrong_later_is_told_in_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is overwritten after it has been checked, as by another user of the same memory."""
    replay, state = RecordedGraph.replay, {"made": 0}

    def overwritten(self: RecordedGraph) -> None:
        state["made"] += 1
        if state["made"] == CHECKED_UPDATES + 1:
            self._calls = [call for call in self._calls if "_fused_adamw" not in str(call[0])]
        replay(self)

    monkeypatch.setattr(graphed, "captured", recorded)
    monkeypatch.setattr(RecordedGraph, "replay", overwritten)
    monkeypatch.setattr(graphed, "LATER_CHECKS", (CHECKED_UPDATES + 2,))
    bar = Bar()
    whole(job(epochs=2), GRAPHED, bar=bar)
    assert state["made"] == CHECKED_UPDATES + 3 and bar.said == [
        "warning: member test_resnet fold 0: a graph of its updates computes something else after 4 updates, so that "
        "its weights may be wrong (weights that differ by 1 of their change); they are launched one by one"
    ]


def test_a_graph_is_compared_again_and_goes_on(graphs: list[RecordedGraph], monkeypatch: pytest.MonkeyPatch) -> None:
    expected, compared_at = trained(job(), GRAPHED), []
    compare = GraphedUpdates._compared

    def noted(self: GraphedUpdates, *given: Any) -> torch.Tensor:
        compared_at.append(self._replays)
        return compare(self, *given)

    monkeypatch.setattr(GraphedUpdates, "_compared", noted)
    monkeypatch.setattr(graphed, "LATER_CHECKS", (4, 6))
    losses, made = trained(job(), GRAPHED)
    assert compared_at == [0, 1, 4, 6] and made.graphed is not None and made.graphed.is_ready
    assert losses == expected[0]
    same(made, expected[1])


def test_values_that_are_not_finite_in_both_are_equal() -> None:
    def state(*values: float, scale: float = 1.0) -> State:
        return State({"weights": [torch.tensor(values)]}, (scale, 0))

    nan, before = math.nan, state(1.0, 2.0)
    assert compared(before, state(1.5, nan), state(1.5, nan), nan, math.inf) == ""
    assert compared(before, state(1.5, nan), state(1.5, 2.5), 1.0, 1.0).startswith("weights that differ")
    assert compared(before, before, before, 1.0, nan).startswith("a loss of 1 instead of nan")
    assert compared(before, before, state(1.0, 2.0, scale=2.0), 1.0, 1.0) == "a scale of 1 instead of 2"


def test_rounding_at_the_end_of_a_schedule_is_no_difference() -> None:
    """The change is then as small as the digits of float32; where it is larger, nothing is forgiven."""

    def state(value: float) -> State:
        return State({"weights": [torch.full((1000,), value)]}, (1.0, 0))

    digit = 2.0**-24  # half the distance of 1 to the next number
    assert compared(state(1.0), state(1 - digit), state(1 + 2 * digit), 1.0, 1.0).startswith("weights that differ")
    assert compared(state(1.0), state(1 - digit), state(1.0), 1.0, 1.0) == ""
    assert compared(state(1.0), state(1.01), state(1.001), 1.0, 1.0).startswith("weights that differ")


# --- a whole training -------------------------------------------------------------------------------------------------


class Memory:
    """A checkpoint in memory that can stop the training after an epoch, as a kill does."""

    save_every = math.inf

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after, self.saved = stop_after, None

    def load(self) -> Any:
        return self.saved

    def save(self, tensors: Any, history: Any, updates: int = 0) -> None:
        self.saved = ({key: value.clone() for key, value in tensors.items()}, list(history))
        if len(history) == self.stop_after:
            raise InterruptedError


class Bar:
    def __init__(self) -> None:
        self.said: list[str] = []

    def advance(self, n: int = 1) -> None: ...
    def skip(self, n: int) -> None: ...
    def note(self, text: str) -> None: ...
    def say(self, line: str) -> None:
        self.said.append(line)


def whole(one: FoldJob, plan: Plan, checkpoint: Memory | None = None, bar: Bar | None = None) -> dict[str, Any]:
    training = train_fold(one, checkpoint or Memory(), plan, CPU, 0, bar or Bar())
    return {key: value.clone() for key, value in training.average.state_dict().items()}


@pytest.mark.parametrize("plans", [(GRAPHED, GRAPHED), (GRAPHED, EAGER), (EAGER, GRAPHED)])
def test_a_training_goes_on_with_a_graph_or_without(
    graphs: list[RecordedGraph], monkeypatch: pytest.MonkeyPatch, plans: tuple[Plan, Plan]
) -> None:
    """The state has the same names and values."""
    fused(monkeypatch)
    one, checkpoint = job(epochs=2), Memory(stop_after=1)
    expected, begun = whole(one, EAGER), Memory(stop_after=1)
    for plan, memory in ((plans[0], checkpoint), (EAGER, begun)):
        with pytest.raises(InterruptedError):
            whole(one, plan, memory)
    assert checkpoint.saved[0].keys() == begun.saved[0].keys()
    checkpoint.stop_after = None
    found, captures = whole(one, plans[1], checkpoint), len(graphs)
    assert captures == plans.count(GRAPHED), "one in each start that uses graphs"
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2e-3, atol=2e-4, msg=name)


def test_a_refusal_is_one_note_of_the_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(work: Any, device: Any) -> Any:
        raise RuntimeError("no graph today")

    monkeypatch.setattr(graphed, "captured", failing)
    bar = Bar()
    whole(job(epochs=1), GRAPHED, bar=bar)
    assert bar.said == [
        "note: member test_resnet fold 0: its updates cannot be captured as a CUDA graph (no graph today); they are "
        "launched one by one"
    ]


def test_micro_batches_have_no_graph() -> None:
    assert begin(job(), GRAPHED, CPU, micro_batches=2).graphed is None
    assert begin(job(), GRAPHED, CPU).graphed is not None


# --- the probe and the memory -----------------------------------------------------------------------------------------


def member() -> MemberConfig:
    return job().config


@pytest.fixture
def cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize(("seconds", "chosen"), [((0.2, 0.1), GRAPHED), ((0.1, 0.1), EAGER)])
def test_a_probe_takes_a_graph_that_agrees_and_is_faster(
    graphs: list[RecordedGraph],
    cache: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: tuple[float, float],
    chosen: Plan,
) -> None:
    timed = dict(zip((EAGER, GRAPHED), seconds, strict=True))
    monkeypatch.setattr(
        probe_updates, "time_in_turn", lambda subjects, _: {plan: [timed[plan] for _ in range(3)] for plan in subjects}
    )
    before = torch.get_rng_state()
    result = probe(member(), 16, (EAGER, GRAPHED), "train", 1)
    assert result.failed == {} and list(result.setup_seconds) == [str(GRAPHED)] and result.for_work(10**6) == chosen
    assert torch.equal(torch.get_rng_state(), before) and "no CUDA graph" not in capsys.readouterr().err
    assert probe(member(), 16, (EAGER, GRAPHED), "train", 1) == result and len(graphs) == 1, "from the cache"


@pytest.mark.parametrize("way", ["capture", "check", "training", "timing"])
def test_a_probe_that_cannot_use_a_graph_says_why(
    graphs: list[RecordedGraph],
    cache: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    way: str,
) -> None:
    """At the capture, in its check, in the comparison of trainings, and while it is timed."""

    def failing(*_: Any) -> Any:
        raise RuntimeError("no graph today")

    if way == "capture":
        monkeypatch.setattr(graphed, "captured", failing)
    if way == "check":
        monkeypatch.setattr(graphed, "captured", functools.partial(recorded, skipped=("_fused_adamw",)))
    if way == "training":
        monkeypatch.setattr(probe_updates.Updates, "weights", lambda self: torch.from_numpy(RNG.random(100)))
    if way == "timing":
        timed = probe_updates.time_in_turn

        def broken(subjects: Any, bar: Any) -> Any:
            if GRAPHED in subjects:
                monkeypatch.setattr(RecordedGraph, "replay", failing)
            return timed(subjects, bar)

        monkeypatch.setattr(probe_updates, "time_in_turn", broken)
    result = probe(member(), 16, (EAGER, GRAPHED), "train", 1)
    assert list(result.images_per_second) == [str(EAGER)] and result.for_work(10**9) == EAGER
    expected = {
        "capture": "its updates cannot be captured as a CUDA graph (no graph today)",
        "check": "computes something else",
        "training": "trains otherwise",
        "timing": "cannot be replayed (no graph today)",
    }[way]
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert len(notes) == 1 and notes[0].startswith("note: test_resnet: no CUDA graph: ") and expected in notes[0]
    assert expected in result.failed[str(GRAPHED)]


def test_no_plan_holds_memory_that_another_needs(
    graphs: list[RecordedGraph], cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fake GPU has memory for one training. A result that lacked memory is not kept for the next command."""
    made, capture, alive = Learner.__init__, graphed.captured, weakref.WeakSet[Any]()
    subject = probing._subject

    def noted(self: Any, *given: Any) -> None:
        alive.add(self)
        made(self, *given)

    def kept(*given: Any) -> Any:
        result = subject(*given)
        alive.add(result.network)
        return result

    def limited(*given: Any) -> graphed.Captured:
        if len(alive) > 1:
            raise RuntimeError("CUDA out of memory")
        return capture(*given)

    monkeypatch.setattr(Learner, "__init__", noted)
    monkeypatch.setattr(probing, "_subject", kept)
    monkeypatch.setattr(graphed, "captured", limited)
    assert probe(member(), 16, (EAGER, GRAPHED), "train", 1).failed == {}
    probe_cache.cache_file().unlink()
    other = probe_updates.Updates(member(), 16, EAGER, BATCH, CPU)
    first = probe(member(), 16, (EAGER, GRAPHED), "train", 1)
    assert "(out of device memory)" in first.failed[str(GRAPHED)] and list(first.images_per_second) == [str(EAGER)]
    del other
    assert probe(member(), 16, (EAGER, GRAPHED), "train", 1).failed == {}


def test_a_compiled_network_that_fails_in_whole_updates_is_left_out(
    graphs: list[RecordedGraph], cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, made = Plan("fp32", "compiled"), probe_updates.Updates.__init__

    def failing(self: Any, config: Any, size: int, plan: Plan, *given: Any) -> None:
        if plan == compiled:
            raise RuntimeError("no kernel for this\nmore")
        made(self, config, size, plan, *given)

    monkeypatch.setattr(backbones, "_compiled", lambda _: backbones._features)
    monkeypatch.setattr(probe_updates.Updates, "__init__", failing)
    result = probe(member(), 16, (EAGER, compiled, GRAPHED), "train", 1)
    assert result.failed == {str(compiled): "no kernel for this"}
    assert result.images_per_second.keys() == {str(EAGER), str(GRAPHED)} and str(compiled) not in result.setup_seconds
    assert probe(member(), 16, (EAGER, compiled, GRAPHED), "train", 1) == result, "from the cache"


def test_a_graph_that_is_forced_and_impossible_is_refused(cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "possible_plans", lambda *_: (GRAPHED,))
    monkeypatch.setattr(graphed, "captured", lambda *_: 1 / 0)
    with pytest.raises(ConfigError, match="member test_resnet: cannot be captured as a CUDA graph here: its updates"):
        probing.choose_plan(member(), CPU, 16, "train", 1, 1)


def test_a_graph_that_is_forced_and_lacks_memory_is_an_error_of_memory(
    cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*_: Any) -> Any:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except torch.OutOfMemoryError:
            raise KeyError("pool") from None

    monkeypatch.setattr(probing, "possible_plans", lambda *_: (GRAPHED,))
    monkeypatch.setattr(graphed, "captured", lacking)
    with pytest.raises(OutOfDeviceMemory, match=r"here: its updates .* \(out of device memory\).*; end other programs"):
        probing.choose_plan(member(), CPU, 16, "train", 1, 1)
    assert not probe_cache.cache_file().exists()


def test_the_memory_of_a_graph_counts_beside_that_of_a_prediction(
    graphs: list[RecordedGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fake GPU keeps 400 bytes of a training, 1,500 at most, and 700 that only graphs can use."""
    readings = iter([1000, 1400, 1400])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: next(readings))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 2500)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 2100)
    found = budget.measure(job(), GRAPHED, CPU)
    assert found == budget.TrainingMemory(kept=400, passing=1100 + 700)
    assert graphs[0].replays == CHECKED_UPDATES + 1, "also a replay that is not compared is measured"


def test_a_learner_and_its_graph_are_freed_at_once(graphs: list[RecordedGraph]) -> None:
    import gc

    _, made = trained(replace(job()), GRAPHED)
    assert made.graphed is not None
    alive = [weakref.ref(made), weakref.ref(made.graphed._captured)]
    gc.disable()
    try:
        del made
        assert [each() for each in alive] == [None, None]
    finally:
        gc.enable()
