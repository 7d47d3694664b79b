from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest
import torch
from timm.optim import create_optimizer_v2
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from ensemble.config import VIEWS, MemberConfig
from ensemble.errors import TheraError
from ensemble.members import learner, optimiser, training
from ensemble.members.backbones import build
from ensemble.members.devices import choose_device
from ensemble.members.fold_job import FoldJob
from ensemble.members.inference import predict_logits
from ensemble.members.learner import Learner
from ensemble.members.plans import Plan
from ensemble.members.processes import MappedPixels
from ensemble.members.sampling import order
from ensemble.members.training import train_fold
from ensemble.progress import progress

CPU, PLAIN = torch.device("cpu"), Plan("fp32")
compiler = pytest.mark.skipif(which("g++") is None, reason="torch.compile needs a C++ compiler")


class Memory:
    """A checkpoint in memory that can stop the training after an epoch, as a kill does."""

    save_every = math.inf

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after, self.saved = stop_after, None

    def load(self) -> Any:
        return self.saved

    def save(self, tensors: Mapping[str, torch.Tensor], history: Sequence[Mapping[str, Any]], updates: int = 0) -> None:
        self.saved = ({key: value.clone() for key, value in tensors.items()}, list(history))
        if len(history) == self.stop_after:
            raise InterruptedError

    def write_not_finite(self, facts: Mapping[str, Any]) -> Path:
        self.not_finite = facts
        return Path("not_finite.json")


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = (np.arange(72) % 4 != 0).astype(np.int8)
    pixels = rng.integers(0, 120, (72, 16, 16, 3), dtype=np.uint8)
    pixels[labels == 1, :8] += 120
    pixels[labels == 0, 8:] += 120
    return pixels, labels


def job(images: tuple[np.ndarray, np.ndarray], **values: Any) -> FoldJob:
    base = {"arch": "resnet10t", "pretrained": False, "epochs": 3, "batch_size": 16, "ema_decay": 0.9, "name": "m"}
    config = MemberConfig.model_validate(base | values)
    rows = np.flatnonzero(np.arange(72) % 3 != 0)
    ids = np.arange(101, 173).astype(str)
    return FoldJob(config, MappedPixels(images[0]), images[1], ids, rows, fold=0, seed=5)


class Lines:
    """A bar that keeps its notes and lines."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.said: list[str] = []

    def advance(self, n: int = 1) -> None: ...

    def skip(self, n: int) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def say(self, line: str) -> None:
        self.said.append(line)


def train(fold_job: FoldJob, checkpoint: Memory, workers: int = 0, plan: Plan = PLAIN) -> dict[str, torch.Tensor]:
    with progress(1, "test") as bar:
        training = train_fold(fold_job, checkpoint, plan, CPU, workers, bar)
    assert [epoch["epoch"] for epoch in training.history] == list(range(1, fold_job.config.epochs + 1))
    return training.average.state_dict()


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def undisturbed(images: tuple[np.ndarray, np.ndarray]) -> dict[str, torch.Tensor]:
    return train(job(images), Memory())


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_resumed_equals_undisturbed(images: Any, undisturbed: Any, stop_after: int) -> None:
    checkpoint = Memory(stop_after)
    with pytest.raises(InterruptedError):
        train(job(images), checkpoint)
    checkpoint.stop_after = None
    torch.manual_seed(99)
    assert same(train(job(images), checkpoint), undisturbed)


def test_it_says_where_it_goes_on_and_notes_each_epoch_with_the_number_of_its_fold(images: Any) -> None:
    of_fold = replace(job(images, arch="lenet", epochs=2), fold=2)
    checkpoint, first, again, after = Memory(1), Lines(), Lines(), Lines()
    with pytest.raises(InterruptedError):
        train_fold(of_fold, checkpoint, PLAIN, CPU, 0, first)
    for bar in (again, after):
        checkpoint.stop_after = None
        train_fold(of_fold, checkpoint, PLAIN, CPU, 0, bar)
    assert (first.said, again.said, after.said) == ([], ["member m fold 2 goes on at epoch 2 of 2"], [])
    assert first.notes == after.notes == [], "interrupted before the note; finished before"
    (note,) = again.notes
    assert re.fullmatch(r"m fold 2 epoch 2/2 loss \d\.\d{3}", note)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where this process may use one core only
@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same(images: Any, undisturbed: Any, workers: int) -> None:
    assert same(train(job(images), Memory(), workers), undisturbed)


def test_workers_open_a_memory_map_themselves(images: Any, undisturbed: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", images[0])
    mapped = replace(job(images), mapped=MappedPixels(np.load(tmp_path / "pixels.npy", mmap_mode="r")))
    assert same(train(mapped, Memory(), workers=1), undisturbed)


def test_restored_state_has_the_strides_of_the_parameters(images: Any) -> None:
    """Fused AdamW on a GPU refuses moments that are laid out otherwise than their parameter."""
    fold_job, checkpoint = job(images, epochs=1), Memory()
    train(fold_job, checkpoint)
    network = build(fold_job.config, 16).to(memory_format=torch.channels_last)
    one = Learner(fold_job, network, PLAIN, CPU)
    one.restore(checkpoint.saved[0])
    moments = one.optimizer.state
    assert len(moments) == len(list(network.parameters()))
    assert all(slots["exp_avg"].stride() == parameter.stride() for parameter, slots in moments.items())
    assert not network.model.conv1[0].weight.is_contiguous(), "channels last"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "n"},
        {"lr": 1e-3},
        {"gamma": 0.0},
        {"augment": "none"},
        {"augment": {"flip": True}},
        {"clip_norm": 0.01},
        {"loss": "bce"},
        {"loss": "weighted-focal"},
        {"label_smoothing": 0.1},
        {"sampler": "balanced"},
        {"schedule": "step", "step_epochs": 1},
        {"backbone_lr_factor": 0.5},
        {"drop_rate": 0.5},
        {"drop_path_rate": 0.5},
    ],
)
def test_every_choice_matters(images: Any, undisturbed: Any, change: dict[str, Any]) -> None:
    assert not same(train(job(images, **change), Memory()), undisturbed)


def test_held_out_rows_are_not_looked_at(images: Any, undisturbed: Any) -> None:
    pixels, labels = images[0].copy(), images[1].copy()
    pixels[::3] = 0
    labels[::3] = 1 - labels[::3]
    assert same(train(job((pixels, labels)), Memory()), undisturbed)


def test_it_learns_and_scores_each_view(images: Any) -> None:
    fold_job = job(images, epochs=12, augment="light")
    with progress(1, "test") as bar:
        trained = train_fold(fold_job, Memory(), PLAIN, CPU, 0, bar)
        network, history = trained.average, trained.history
        held_out = np.arange(0, 72, 3)
        logits = predict_logits(network, images[0], held_out, VIEWS, "fp32", CPU, bar)
    assert history[-1]["loss"] < history[0]["loss"] / 2
    assert logits.shape == (24, 2) and not np.array_equal(logits[:, 0], logits[:, 1])
    labels = images[1][held_out]
    assert logits[labels == 1].min() > logits[labels == 0].max()
    alone = predict_logits(network, images[0], held_out[3:4], VIEWS, "fp32", CPU, bar)
    np.testing.assert_allclose(alone[0], logits[3], rtol=1e-4, atol=1e-4)


def test_bf16_learns_and_repeats(images: Any, undisturbed: Any) -> None:
    """At 32 pixels: see `possible_plans` for why not at 16."""
    fold_job = job(images, input_size=32, epochs=2)
    half, again = (train(fold_job, Memory(), plan=Plan("bf16")) for _ in range(2))
    assert same(half, again) and not same(half, train(fold_job, Memory()))
    assert all(value.dtype == undisturbed[key].dtype and value.isfinite().all() for key, value in half.items())


def test_lowered_convolutions_learn_the_same(images: Any, undisturbed: Any) -> None:
    """The same sums in another order: the first losses agree, and it repeats to the bit."""
    losses: dict[str, list[float]] = {}
    for kind in ("native", "lowered"):
        checkpoint = Memory()
        found = train(job(images, input_size=32), checkpoint, plan=Plan("fp32", kind))
        losses[kind] = [epoch["loss"] for epoch in checkpoint.saved[1]]
        assert found.keys() == undisturbed.keys()
    assert same(found, train(job(images, input_size=32), Memory(), plan=Plan("fp32", "lowered")))
    np.testing.assert_allclose(losses["native"], losses["lowered"], rtol=2e-3)


@compiler
def test_a_compiled_network_learns_the_same_and_is_compiled_once_for_all_folds(images: Any) -> None:
    """Dropout too: the same draws as the library's. Resumed, it goes on to the same bytes."""
    losses, compiled = {}, Plan("fp32", "compiled")
    for fold in range(2):
        fold_job = replace(job(images, arch="lenet", drop_rate=0.5), fold=fold)
        for plan in (PLAIN, compiled):
            checkpoint = Memory()
            found = train(fold_job, checkpoint, plan=plan)
            losses[plan, fold] = [epoch["loss"] for epoch in checkpoint.saved[1]]
        np.testing.assert_allclose(losses[compiled, fold], losses[PLAIN, fold], rtol=2e-3)
        if not fold:
            graphs = counters["stats"]["unique_graphs"]
    assert counters["stats"]["unique_graphs"] == graphs > 0, "the second fold's network is compiled already"
    assert losses[compiled, 0] != losses[compiled, 1]
    checkpoint = Memory(stop_after=2)
    with pytest.raises(InterruptedError):
        train(fold_job, checkpoint, plan=compiled)
    checkpoint.stop_after = None
    assert same(train(fold_job, checkpoint, plan=compiled), found)


def test_a_watch_sees_each_epoch_and_changes_nothing(images: Any) -> None:
    """Neither random numbers nor statistics: with dropout, and gone on from an epoch."""
    fold_job, seen = job(images, drop_rate=0.5, augment="light"), []
    watch = training.Watch(np.arange(0, 72, 3)[:9], lambda logits, labels: seen.append((logits, labels)) or 0.5)
    unwatched = train(fold_job, Memory())
    with progress(1, "test") as bar:
        trained = train_fold(fold_job, Memory(), PLAIN, CPU, 0, bar, watch)
        network, history = trained.average, trained.history
        last = predict_logits(network, images[0], watch.rows, VIEWS[:1], "fp32", CPU, bar)
    assert same(unwatched, network.state_dict())
    assert [epoch["hter"] for epoch in history] == [0.5] * 3 and len(seen) == 3
    assert np.array_equal(seen[-1][0], last[:, 0]) and np.array_equal(seen[-1][1], images[1][watch.rows])


def test_the_state_of_before_there_were_rate_factors_fits(images: Any) -> None:
    """Without a factor, the optimiser's parameters stand in timm's own order."""
    network = build(job(images).config, 16)
    own = optimiser.parameter_groups(network, job(images).config)
    timms = create_optimizer_v2(network, "adamw", lr=1e-3, weight_decay=0.05).param_groups
    assert [[id(each) for each in group["params"]] for group in own] == [
        [id(each) for each in group["params"]] for group in timms
    ]


def test_an_update_is_that_of_a_plain_loop(images: Any) -> None:
    """Without clipping and average, and with everything decayed: AdamW on the focal loss, written out."""
    fold_job = job(images, epochs=4, warmup_epochs=0, clip_norm=1e9, ema_decay=0.0)
    torch.manual_seed(0)  # whatever tests ran before
    network = build(fold_job.config, 16).train()
    model: Any = deepcopy(network.model)
    one = Learner(fold_job, network, PLAIN, CPU)
    for group in one.optimizer.param_groups:
        group["weight_decay"] = fold_job.config.weight_decay
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=fold_job.config.weight_decay)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    for update in range(4):
        rows = slice(16 * update, 16 * update + 16)
        pixels, labels = torch.from_numpy(images[0][rows]), torch.from_numpy(images[1][rows].astype(np.float32))
        ours = float(one.update(update, pixels, labels))
        optimizer.param_groups[0]["lr"] = one.lr
        probability = torch.sigmoid(model((pixels.permute(0, 3, 1, 2) / 255 - mean) / std).squeeze(1))
        of_label = torch.where(labels == 1, probability, 1 - probability)
        loss = (-((1 - of_label) ** 2) * of_label.log()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert ours == pytest.approx(loss.item(), rel=1e-3)
    averaged, plain = (each.get_classifier().weight.detach() for each in (one.ema.module.model, model))
    assert torch.allclose(averaged, plain, atol=1e-3)


def test_schedule_warms_up_and_falls_to_nothing(images: Any) -> None:
    fold_job = job(images, epochs=10, warmup_epochs=2)
    network = build(fold_job.config, 16)
    one = Learner(fold_job, network, PLAIN, CPU)
    rates = []
    for update in range(10 * fold_job.updates_per_epoch):
        one.schedule.step_update(update)
        rates.append(one.lr)
    assert rates[0] == pytest.approx(fold_job.config.lr / 100)
    assert np.argmax(rates) == 2 * fold_job.updates_per_epoch
    assert max(rates) <= fold_job.config.lr and max(rates) > 0.85 * fold_job.config.lr
    assert rates[-1] < 0.01 * fold_job.config.lr


def test_the_step_schedule_multiplies_every_so_many_epochs(images: Any) -> None:
    fold_job = job(images, epochs=7, schedule="step", step_epochs=3, step_factor=0.7, warmup_epochs=0)
    one = Learner(fold_job, build(fold_job.config, 16), PLAIN, CPU)
    rates = []
    for update in range(7 * fold_job.updates_per_epoch):
        one.schedule.step_update(update)
        rates.append(one.lr)
    steps = np.arange(7 * fold_job.updates_per_epoch) // (3 * fold_job.updates_per_epoch)
    np.testing.assert_allclose(rates, fold_job.config.lr * 0.7**steps)


def test_the_rate_factor_reaches_all_but_the_last_layer(images: Any) -> None:
    fold_job = job(images, backbone_lr_factor=0.1, warmup_epochs=0, epochs=4)
    network = build(fold_job.config, 16)
    one = Learner(fold_job, network, PLAIN, CPU)
    one.schedule.step_update(0)
    rate = {id(each): group["lr"] for group in one.optimizer.param_groups for each in group["params"]}
    assert len(rate) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        factor = 1 if name.startswith("model.fc") else 0.1
        assert rate[id(parameter)] == pytest.approx(fold_job.config.lr * factor), name
    decays = {id(each): group["weight_decay"] for group in one.optimizer.param_groups for each in group["params"]}
    expected = {id(each): 0.05 if each.ndim > 1 else 0.0 for each in network.parameters()}
    assert decays == expected, "timm's split of what decays"


@pytest.mark.parametrize("kind", ["native", "lowered"])
def test_a_frozen_backbone_stays_as_it_was_and_the_head_learns(images: Any, kind: str) -> None:
    """Its batch-norm statistics too."""
    fold_job = job(images, freeze=True, epochs=3, input_size=32, ema_decay=0.0)
    torch.manual_seed(fold_job.random_seed("weights"))
    before = build(fold_job.config, 16).state_dict()
    checkpoint = Memory(stop_after=2)
    with pytest.raises(InterruptedError):
        train(fold_job, checkpoint, plan=Plan("fp32", kind))
    checkpoint.stop_after = None
    found = train(fold_job, checkpoint, plan=Plan("fp32", kind))
    changed = {key for key in before if not torch.equal(before[key], found[key])}
    assert changed == {"model.fc.weight", "model.fc.bias"}
    assert same(found, train(fold_job, Memory(), plan=Plan("fp32", kind)))


def test_a_loss_that_is_not_finite_names_its_batch(images: Any) -> None:
    fold_job = job(images, epochs=1)
    poisoned = {
        key: torch.full_like(value, 1e30) if value.is_floating_point() else value
        for key, value in build(fold_job.config, 16).state_dict().items()
    }
    poisoned = {key: value.numpy() for key, value in poisoned.items()}
    broken = replace(fold_job, weights=poisoned)
    ids = [str(101 + row) for row in order(broken, 0)[0]]
    problem = f"not finite (nan) in epoch 1, update 1, on a batch of 16 images ({', '.join(ids[:5])} …), all listed in"
    checkpoint = Memory()
    with pytest.raises(TheraError, match=re.escape(problem)):
        train(broken, checkpoint)
    assert checkpoint.saved is None and checkpoint.not_finite["ids"] == ids


def test_device_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(TheraError, match="torch sees 0 CUDA devices; use --device cpu"):
        choose_device("cuda")
    with pytest.raises(TheraError, match="must be auto, cpu, mps, cuda or cuda:N; got tpu"):
        choose_device("tpu")


READS_BACK = ("_local_scalar_dense", "nonzero", "scalar_tensor", "lift_fresh", "where.Scalar")


class _ReadBack(TorchDispatchMode):
    """Records operators that make the host wait for a device: reading a tensor's value, and copying a number to a
    tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(operator) for name in READS_BACK):
            self.seen.append(str(operator))
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("precision", "loss"),
    [("fp32", {}), ("bf16", {"loss": "weighted-focal"}), ("fp16", {"alpha": 0.3}), ("fp16", {"loss": "weighted-bce"})],
)
def test_an_update_reads_nothing_back(
    images: Any, monkeypatch: pytest.MonkeyPatch, precision: str, loss: dict[str, Any]
) -> None:
    """With the fused optimiser, as on a GPU: so that it has the next update while it computes this one."""
    fused = {"fused": True}
    monkeypatch.setattr(learner, "create_optimizer_v2", lambda *given, **kw: create_optimizer_v2(*given, **kw | fused))
    fold_job = job(images, input_size=32, label_smoothing=0.1, drop_rate=0.5, **loss)
    network = build(fold_job.config, 16).train()
    one = Learner(fold_job, network, Plan(precision), CPU)
    pixels, labels = torch.from_numpy(images[0][:16]), torch.from_numpy(images[1][:16].astype(np.float32))
    one.update(0, pixels, labels)
    with _ReadBack() as counted:
        losses = [one.update(number, pixels, labels) for number in (1, 2)]
        assert counted.seen == []
        assert float(losses[0]) > 0 and counted.seen == ["aten._local_scalar_dense.default"], "that it would be seen"


@pytest.mark.parametrize("deterministic", [False, True])
def test_cudnn_times_its_algorithms_in_a_training_on_cuda_alone(
    images: Any, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    """Unless the user requires deterministic algorithms; afterwards it is as it was."""
    seen, update, timed = [], Learner.update, training.algorithms_timed

    def noted(*given: Any) -> torch.Tensor:
        seen.append(torch.backends.cudnn.benchmark)
        return update(*given)

    monkeypatch.setattr(Learner, "update", noted)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    fold_job = job(images, arch="lenet", epochs=1)
    train(fold_job, Memory())
    monkeypatch.setattr(training, "algorithms_timed", lambda _: timed(torch.device("cuda")))
    train(fold_job, Memory())
    assert seen == [False] * 3 + [not deterministic] * 3 and not torch.backends.cudnn.benchmark
