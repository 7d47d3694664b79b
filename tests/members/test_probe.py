"""The probe that chooses a plan: what it measures, what it refuses, and what is kept of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import torch

import ensemble.members.probe as probing
from ensemble.config import MemberConfig
from ensemble.errors import TheraError
from ensemble.members import backbones, plans, probe_cache, probe_timing
from ensemble.members.plans import KINDS, Plan
from ensemble.members.probe import PROBE_PAYS, Probe, choose_plan, probe

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NATIVE, HALF, COMPILED = Plan("fp32"), Plan("bf16"), Plan("fp32", "compiled")
EVERY, OF_PREDICTION = (
    tuple(Plan(p, c) for p in ("fp32", "bf16") for c in KINDS[phase]) for phase in ("train", "predict")
)
compiler = pytest.mark.skipif(which("g++") is None, reason="torch.compile needs a C++ compiler")


def member(**values: Any) -> MemberConfig:
    base = {"arch": "resnet10t", "pretrained": False, "batch_size": 16, "precision": "fp32"}
    return MemberConfig.model_validate(base | values)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/thera/probes.json"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """Return a list of what is measured from now on; the last plan is always the fastest, and nothing is computed."""
    calls: list[tuple[Any, ...]] = []

    def measure(*given: Any) -> Probe:
        calls.append((*given, torch.get_num_threads()))
        return Probe(given[2][-1], {str(plan): 100.0 + i for i, plan in enumerate(given[2])})

    monkeypatch.setattr(probing, "_measured", measure)
    return calls


@pytest.fixture
def has_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that this CPU has bfloat16."""
    monkeypatch.setattr(plans, "onednn_computes", lambda _: True)


# --- the choice -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batches", "chosen"), [(1, NATIVE), (PROBE_PAYS - 1, NATIVE), (PROBE_PAYS, EVERY[-1])])
def test_little_work_is_done_by_the_plainest_plan(
    has_bf16: None, cache: Path, measured: list[Any], batches: int, chosen: Plan
) -> None:
    assert choose_plan(member(precision="auto"), CPU, 32, "train", batches, 1) == chosen
    assert len(measured) == (chosen == EVERY[-1]) == cache.exists()


def test_where_there_is_no_choice_nothing_is_measured(cache: Path, measured: list[Any]) -> None:
    assert choose_plan(member(convolutions="native"), CPU, 32, "train", 10**6, 1) == NATIVE
    assert not measured


def test_the_size_that_the_network_sees_counts(has_bf16: None, cache: Path, measured: list[Any]) -> None:
    """bfloat16 needs more than 16 pixels."""
    for size in (16, 24):
        choose_plan(member(precision="auto", input_size=size), CPU, 32, "train", PROBE_PAYS, 1)
    choices = (EVERY[: len(EVERY) // 2], EVERY)
    assert [call[2] for call in measured] == [choice for choice in choices if len(choice) > 1]


# --- the probe --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("phase", "kinds"), [("train", EVERY), ("predict", OF_PREDICTION)])
def test_a_probe_measures_what_agrees_and_leaves_no_trace(cache: Path, phase: Any, kinds: tuple[Plan, ...]) -> None:
    """Neither in the random state nor in the number of threads."""
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    result = probe(member(), 32, kinds, phase, threads)
    assert set(result.images_per_second) <= {str(plan) for plan in kinds}
    sound = {"bf16 native"} | {str(plan) for plan in kinds if plan.precision == "fp32"}
    assert sound <= set(result.images_per_second)
    assert all(speed > 0 for speed in result.images_per_second.values())
    fastest = max(result.images_per_second, key=lambda plan: result.images_per_second[plan])
    assert str(result.chosen) in (fastest, str(NATIVE))
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads


def test_a_frozen_network_is_measured_as_it_is_trained(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, agrees = set(), probing._agrees

    def noted(plan: Plan, results: dict[Plan, torch.Tensor], *limits: float) -> bool:
        sizes.update(gradients.numel() for gradients in results.values())
        return agrees(plan, results, *limits)

    monkeypatch.setattr(probing, "_agrees", noted)
    result = probe(member(freeze=True), 32, EVERY, "train", 1)
    assert sizes == {512 + 1} and str(NATIVE) in result.images_per_second, "the last layer's gradient"


@pytest.mark.parametrize(
    ("apart", "rounding", "precision", "agrees"),
    [
        (0.019, 0.0, "fp32", True),
        (0.05, 0.0, "fp32", False),
        (0.05, 0.03, "fp32", True),
        (0.11, 10.0, "fp32", False),  # where gradients are all chance, nothing is known
        (0.11, 0.0, "bf16", True),  # the library's own are as far
    ],
)
def test_gradients_may_jump_where_rounding_makes_them(
    apart: float, rounding: float, precision: str, agrees: bool
) -> None:
    reference = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    moved = reference + apart * torch.randn(10_000, generator=torch.Generator().manual_seed(1))
    found = {NATIVE: reference, Plan("bf16"): moved, Plan(precision, "lowered"): moved}
    assert probing.deviation(moved, reference) == pytest.approx(apart, rel=0.05)
    assert probing._agrees(Plan(precision, "lowered"), found, probing.TOLERANCES["train"], rounding) == agrees


def test_what_rounding_does_is_measured_in_training(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    effect, agrees = {}, probing._agrees

    def noted(plan: Plan, results: dict[Plan, torch.Tensor], exact: float, rounding: float) -> bool:
        effect[exact] = rounding
        return agrees(plan, results, exact, rounding)

    monkeypatch.setattr(probing, "_agrees", noted)
    for phase in ("train", "predict"):
        probe(member(), 32, (NATIVE, HALF), phase, 1)
    assert effect[probing.TOLERANCES["predict"]] == 0 < effect[probing.TOLERANCES["train"]]


@pytest.mark.parametrize(("worth", "chosen"), [(1.05, NATIVE), (1.03, HALF)])
def test_another_plan_must_be_worth_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch, worth: float, chosen: Plan
) -> None:
    """104 images a second are 1.04 times 100: the clock is a fake."""
    monkeypatch.setattr(probing, "LEAST_SPEEDUP", worth)
    ticks = iter([0.0, 0.16, 0.0, 0.16 / 1.04] * probe_timing.ROUNDS)
    monkeypatch.setattr(probe_timing.time, "perf_counter", lambda: next(ticks))
    result = probe(member(), 32, (NATIVE, HALF), "predict", 1)
    assert result == Probe(chosen, {"fp32 native": 100.0, "bf16 native": 104.0})


@pytest.mark.parametrize(("first", "chosen"), [(0.79, HALF), (0.81, NATIVE)])
def test_a_plan_that_takes_many_times_as_long_is_clocked_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch, first: float, chosen: Plan
) -> None:
    """Five times 0.16 s are 0.8: above, one batch is all that is known of it; below, the later ones count."""
    later = [0.16, 0.08] if first < 0.8 else [0.16]
    spent = [0.16, first, *later * (probe_timing.ROUNDS - 1)]
    ticks = iter([tick for seconds in spent for tick in (0.0, seconds)])
    monkeypatch.setattr(probe_timing.time, "perf_counter", lambda: next(ticks))
    result = probe(member(), 32, (NATIVE, HALF), "predict", 1)
    assert result == Probe(
        chosen, {"fp32 native": 100.0, "bf16 native": 200.0 if first < 0.8 else round(16 / first, 1)}
    )
    assert next(ticks, None) is None


# --- compiled networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "speed", "chosen"),
    [(1999, 200.0, NATIVE), (2001, 200.0, COMPILED), (10**9, 104.0, NATIVE), (10**9, 106.0, COMPILED)],
)
def test_compiling_must_pay_within_the_work(images: int, speed: float, chosen: Plan) -> None:
    """10 seconds first: as long as 1,000 images at 100 a second, which half of 2,000 at 200 a second save."""
    result = Probe(NATIVE, {str(NATIVE): 100.0, str(COMPILED): speed}, {str(COMPILED): 10.0})
    assert result.for_work(images) == chosen
    assert Probe(NATIVE, {str(NATIVE): 100.0}).for_work(images) == NATIVE == Probe(NATIVE, {}).for_work(images)


@compiler
def test_a_compiled_plan_is_measured_with_the_time_it_takes_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = member(arch="lenet", convolutions="compiled")
    assert choose_plan(config, CPU, 32, "train", 1, 1) == COMPILED, "forced, however little work there is"
    both = probe(config, 32, (NATIVE, COMPILED), "train", 1)
    assert set(both.images_per_second) == {str(NATIVE), str(COMPILED)} and not both.failed
    assert list(both.setup_seconds) == [str(COMPILED)] and both.chosen == NATIVE
    monkeypatch.setattr(probing, "_measured", lambda *_: pytest.fail("measured again"))
    assert probe(config, 32, (NATIVE, COMPILED), "train", 1) == both
    assert choose_plan(config, CPU, 32, "train", 1, 1) == COMPILED


def test_where_it_is_forced_the_precision_that_is_faster_is_taken(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it takes first, and whatever the plainest plan would have taken."""
    half = Plan("bf16", "compiled")
    result = Probe(NATIVE, {str(COMPILED): 100.0, str(half): 200.0}, {str(COMPILED): 10.0, str(half): 10.0})
    monkeypatch.setattr(probing, "_measured", lambda *_: result)
    for batches in (1, PROBE_PAYS, 10**6):
        config = member(precision="auto", convolutions="compiled")
        assert choose_plan(config, CPU, 32, "train", batches, 1) == half


def test_a_head_alone_is_not_compiled(cache: Path, measured: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("compiled", "graphed"):
        frozen = member(freeze=True, convolutions=kind)
        assert choose_plan(frozen, CPU, 32, "train", 10**6, 1) == NATIVE
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert choose_plan(member(freeze=True, precision="auto"), CUDA, 32, "train", 10**6, 1) == Plan("bf16")
    assert not measured


def no_compiler(model: Any, x: torch.Tensor, whole: bool) -> torch.Tensor:
    raise RuntimeError("No working C++ compiler found\nat all")


def scaled(model: Any, x: torch.Tensor, whole: bool) -> torch.Tensor:
    return 1.1 * backbones._features(model, x, whole).roll(1, 0)


@pytest.mark.parametrize(
    ("compiled", "reason"),
    [(no_compiler, "No working C\\+\\+ compiler found"), (scaled, "it computes something else than the library")],
)
def test_what_cannot_be_compiled_is_not(
    cache: Path, monkeypatch: pytest.MonkeyPatch, compiled: Any, reason: str
) -> None:
    monkeypatch.setattr(backbones, "_compiled", lambda _: compiled)
    remedy = f"use --convolutions auto, or remove {re.escape(str(cache))} and try again"
    with pytest.raises(TheraError, match=f"member resnet10t: cannot be compiled here: {reason}; {remedy}"):
        choose_plan(member(convolutions="compiled"), CPU, 32, "train", PROBE_PAYS, 1)
    result = probe(member(), 32, (NATIVE, COMPILED), "train", 1)
    assert list(result.images_per_second) == [str(NATIVE)] and result.for_work(10**9) == NATIVE
    assert list(result.failed) == [str(COMPILED)] * (compiled is no_compiler) and not result.setup_seconds


def test_a_network_that_could_not_be_compiled_is_not_tried_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another command neither, until there is another compiler; then it is tried, and the failure is forgotten."""
    tried: list[int] = []

    def failing(model: Any, x: torch.Tensor, whole: bool) -> torch.Tensor:
        tried.append(len(x))
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(backbones, "_compiled", lambda _: failing)
    config, forced = member(arch="lenet"), member(arch="lenet", convolutions="compiled")
    first = probe(config, 32, (NATIVE, COMPILED), "train", 1)
    assert tried and first.failed == {str(COMPILED): "No working C++ compiler found"}
    for _ in range(2):
        with pytest.raises(TheraError, match="cannot be compiled here: No working"):
            choose_plan(forced, CPU, 32, "train", PROBE_PAYS, 1)
    assert len(tried) == 2 and probe(config, 32, (NATIVE, COMPILED), "train", 1) == first and len(tried) == 2
    monkeypatch.setenv("CXX", "/opt/another/g++")
    assert probe(config, 32, (NATIVE, COMPILED), "train", 1).failed == first.failed and len(tried) == 3


def test_a_plan_that_needs_no_compiler_does_not_depend_on_it(
    cache: Path, measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("/a/g++", "/b/g++"):
        monkeypatch.setenv("CXX", path)
        probe(member(), 32, EVERY, "train", 1)
        probe(member(), 32, (NATIVE, COMPILED), "train", 1)
    assert len(measured) == 3


@pytest.mark.parametrize("fits", [4, 0])
def test_a_batch_that_does_not_fit_into_a_gpu_is_halved(
    cache: Path, monkeypatch: pytest.MonkeyPatch, fits: int
) -> None:
    """Also where it is the compiled network that does not fit: that is no failure of the compiler."""
    tried: list[int] = []

    def limited(model: Any, x: torch.Tensor, whole: bool) -> torch.Tensor:
        tried.append(len(x))
        if len(x) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return backbones._features(model, x, whole)

    monkeypatch.setattr(backbones, "_compiled", lambda _: limited)
    config = member(arch="lenet", batch_size=16)
    if fits:
        result = probe(config, 32, (NATIVE, COMPILED), "train", 1)
        assert not result.failed and str(COMPILED) in result.images_per_second
        assert list(dict.fromkeys(tried)) == [16, 8, 4]
    else:
        with pytest.raises(torch.OutOfMemoryError):
            probe(config, 32, (NATIVE, COMPILED), "train", 1)
        assert tried == [16, 8, 4, 2, 1] and not cache.exists()


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_a_result_is_cached(cache: Path, measured: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first = probe(member(), 32, EVERY, "train", 1)
    text = cache.read_bytes()
    monkeypatch.setattr(probing, "_measured", lambda *_: pytest.fail("measured again"))
    assert probe(member(), 32, EVERY, "train", 1) == first
    assert cache.read_bytes() == text and [path.name for path in cache.parent.iterdir()] == ["probes.json"]


def test_what_a_probe_depends_on_is_measured_anew(
    cache: Path, measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, plain = torch.get_num_threads(), (member(), 32, EVERY, "train", 1)
    others: list[tuple[Any, ...]] = [
        (member(arch="test_resnet"), *plain[1:]),
        (member(stem="half-stride"), *plain[1:]),
        (member(batch_size=8), *plain[1:]),
        (member(input_size=24), *plain[1:]),
        (*plain[:1], 48, *plain[2:]),
        (*plain[:2], (NATIVE,), *plain[3:]),
        (*plain[:3], "predict", plain[4]),
        (*plain[:4], 2),
        (member(freeze=True), *plain[1:]),
    ]
    for given in (plain, *others):
        probe(*given)
    assert len(measured) == 1 + len(others) and torch.get_num_threads() == threads
    assert [call[-1] for call in measured] == [1] * (len(others) - 1) + [2, 1], "the threads that it is measured with"
    monkeypatch.setattr(torch, "__version__", "9.9")
    probe(*plain)
    monkeypatch.setattr(probe_cache.platform, "node", lambda: "elsewhere")
    probe(*plain)
    assert len(measured) == 3 + len(others) == len(json.loads(cache.read_text()))
    for given in (plain, plain):
        probe(*given)
    assert len(measured) == 3 + len(others)


ODD: list[Any] = [{}, None, 7, [], "x", {"chosen": {}}, {"chosen": {"precision": "fp32"}}]
ODD += [{"chosen": {"precision": "int8"}, "images_per_second": {"int8 native": 1}}]
ODD += [{"chosen": {"precision": "fp32"}, "images_per_second": {"fp32 native": "fast"}}]
ODD += [{"chosen": {"precision": "fp32"}, "images_per_second": {}}]


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b'"x"'])
def test_a_damaged_file_is_only_measured_again(cache: Path, measured: list[Any], text: bytes) -> None:
    first = probe(member(), 32, EVERY, "train", 1)
    whole = cache.read_bytes()
    cache.write_bytes(text)
    assert probe(member(), 32, EVERY, "train", 1) == first
    assert len(measured) == 2 and cache.read_bytes() == whole


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_a_damaged_entry_is_only_measured_again(cache: Path, measured: list[Any], odd: Any) -> None:
    first = probe(member(), 32, EVERY, "train", 1)
    whole = cache.read_bytes()
    cache.write_text(json.dumps(dict.fromkeys(json.loads(whole), odd)))
    assert probe(member(), 32, EVERY, "train", 1) == first
    assert len(measured) == 2 and cache.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, cache: Path, measured: list[Any]) -> None:
    (tmp_path / "cache").write_bytes(b"a file")
    for _ in range(2):
        assert probe(member(), 32, EVERY, "train", 1).chosen == EVERY[-1]
    assert len(measured) == 2 and (tmp_path / "cache").read_bytes() == b"a file"
