"""Members with several classes: networks with C logits, their training, their resumed states, and their plans."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import ensemble.members.probe as probing
from ensemble.config import VIEWS, ComputeConfig, MemberConfig
from ensemble.errors import ArtifactError, ConfigError, DataError
from ensemble.members import inference
from ensemble.members.backbones import Backbone, build, check
from ensemble.members.fold_job import FoldJob
from ensemble.members.inference import FoldModels, NetworkSpec, cost_per_image, predict_logits
from ensemble.members.learner import Learner
from ensemble.members.parallel import Resources, Task, train_together
from ensemble.members.plans import CPU_KINDS, REFERENCE, Plan, prepare
from ensemble.members.precision import onednn_computes
from ensemble.members.predictor import FoldModel, Predictor
from ensemble.members.processes import MappedPixels
from ensemble.members.training import FoldResult, Watch, train_and_predict
from ensemble.progress import progress

CPU, C, N, SIDE = torch.device("cpu"), 3, 90, 32
ARCHS = ("small_cnn", "resnet10t")
LABELS = (np.arange(N) // 2 % C).astype(np.int8)
HELD_OUT = np.arange(0, N, 3)
ROWS = np.setdiff1d(np.arange(N), HELD_OUT)


def drawn() -> np.ndarray:
    """Return noise with one bright third of the image: the top, the middle or the bottom, by the label."""
    pixels = np.random.default_rng(0).integers(0, 120, (N, SIDE, SIDE, 3), dtype=np.uint8)
    for image, label in zip(pixels, LABELS.tolist(), strict=True):
        image[label * 11 : label * 11 + 10] += 120
    return pixels


PIXELS = drawn()


def config(arch: str, **values: Any) -> MemberConfig:
    base = {"arch": arch, "name": "m", "pretrained": False, "epochs": 2, "batch_size": 16, "ema_decay": 0.9}
    return MemberConfig.model_validate(base | values)


def job(arch: str, classes: int = C, **values: Any) -> FoldJob:
    ids = np.arange(N).astype(str)
    return FoldJob(config(arch, **values), MappedPixels(PIXELS), LABELS, ids, ROWS, fold=0, seed=5, classes=classes)


class Kept:
    """A checkpoint in memory that can stop the training when it has been saved so often."""

    warnings: tuple[str, ...] = ()

    def __init__(self, stop_after: int | None = None, save_every: float = math.inf) -> None:
        self.stop_after, self.save_every, self.times, self.saved = stop_after, save_every, 0, None

    def load(self) -> Any:
        return self.saved

    def save(self, tensors: Mapping[str, torch.Tensor], history: Sequence[Mapping[str, Any]], updates: int = 0) -> None:
        self.saved = ({key: value.clone() for key, value in tensors.items()}, list(history))
        self.times += 1
        if self.times == self.stop_after:
            raise InterruptedError

    def write_not_finite(self, facts: Mapping[str, Any]) -> Path:
        return Path("not_finite.json")


def train(of_fold: FoldJob, checkpoint: Kept | None = None, watch: Watch | None = None) -> FoldResult:
    with progress(1, "test") as bar:
        return train_and_predict(of_fold, checkpoint or Kept(), REFERENCE, CPU, 0, HELD_OUT, VIEWS, watch, bar)


def assert_same(result: FoldResult, expected: FoldResult) -> None:
    assert result.weights.keys() == expected.weights.keys()
    assert all(np.array_equal(result.weights[key], value) for key, value in expected.weights.items())
    assert np.array_equal(result.logits, expected.logits)


def perturbed(arch: str, **values: Any) -> Backbone:
    """Return a network of C classes in evaluation mode whose norms are not the identity.

    The norms have the statistics of the images, so that the logits of images differ by more than bfloat16 rounds.
    """
    torch.manual_seed(0)
    network = build(config(arch, **values), SIDE, classes=C).to(memory_format=torch.channels_last)
    network.train()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.momentum = None  # the mean over all passes
        for _ in range(3):
            network(torch.from_numpy(PIXELS[:32]))
    return network.eval()


# --- networks ---------------------------------------------------------------------------------------------------------

HEADS = {"mobilenetv2": 64, "convnext_nano": 64, "dla46_c": 64, "levit_128s": 224, "efficientvit_m0": 64, "lenet": 64}
"""Architectures with different kinds of last layers, and a size that they take."""


@pytest.mark.parametrize("arch", HEADS)
def test_the_logits_are_those_of_timm_in_float32(arch: str) -> None:
    size = HEADS[arch]
    check(config(arch), size, classes=C)
    network = build(config(arch), size, classes=C).eval()
    images = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8, generator=torch.manual_seed(0))
    with torch.inference_mode():
        x = (images.permute(0, 3, 1, 2).float() - network.mean) / network.std
        torch.testing.assert_close(network(images), network.model(x), rtol=1e-3, atol=1e-4)
        logits, alone = network(images, torch.bfloat16), network(images[:1])
    assert logits.shape == (2, C) and logits.dtype == torch.float32 and alone.shape == (1, C)
    assert not torch.equal(logits, logits.bfloat16().float()), "the logits were rounded to half precision"


@pytest.mark.parametrize("classes", [3, 18])
def test_first_logits_are_near_chance(classes: int) -> None:
    torch.manual_seed(0)
    network = build(config("mobilenetv2"), 64, classes=classes).train()
    assert network(torch.from_numpy(np.random.default_rng(0).integers(0, 256, (32, 64, 64, 3), np.uint8))).std() < 1


@pytest.mark.parametrize("outputs", [1, C, 1000])
def test_a_file_gives_its_head_where_the_number_of_logits_is_the_same(outputs: int) -> None:
    torch.manual_seed(1)
    given = timm.create_model("resnet10t", num_classes=outputs).state_dict()
    state = build(config("resnet10t"), SIDE, given, classes=C).model.state_dict()
    equal = {key for key in state if state[key].shape == given[key].shape and torch.equal(state[key], given[key])}
    assert set(state) - equal == (set() if outputs == C else {"fc.weight", "fc.bias"})


def test_a_network_with_another_number_of_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backbone, "forward", lambda self, pixels: torch.zeros(len(pixels)))
    with pytest.raises(ConfigError, match=r"lenet: does not give 3 logits for an image \(its result has the shape"):
        check(config("lenet"), SIDE, classes=C)


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_what_a_job_cannot_train_on_is_refused() -> None:
    with pytest.raises(DataError, match="member m: labels must be from 0 to 1; got 0 to 2"):
        job("lenet", classes=2)
    with pytest.raises(ConfigError, match="member m: alpha weighs two classes, not 3; leave it out"):
        job("lenet", alpha=0.3)
    assert pickle.loads(pickle.dumps(job("lenet"))).classes == C


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
def test_training_gives_logits_of_each_view_and_class_and_goes_on_to_the_same_bytes(arch: str) -> None:
    of_fold = job(arch, sampler="balanced", loss="weighted-focal", label_smoothing=0.1, drop_rate=0.2)
    whole = train(of_fold)
    assert whole.logits.shape == (len(HELD_OUT), 2, C) and whole.logits.dtype == np.float64
    assert not np.array_equal(whole.logits[:, 0], whole.logits[:, 1])
    assert whole.weights["model.fc.weight"].shape[0] == C
    for stopped in (Kept(stop_after=1), Kept(stop_after=3, save_every=0.0)):  # after an epoch, and within one
        with pytest.raises(InterruptedError):
            train(of_fold, stopped)
        stopped.stop_after = None
        torch.manual_seed(99)
        assert_same(train(of_fold, stopped), whole)


def test_it_learns() -> None:
    result = train(job("lenet", epochs=12, augment="none"))
    losses = [epoch["loss"] for epoch in result.history]
    assert losses[-1] < losses[0] / 2
    assert np.mean(result.logits.mean(axis=1).argmax(axis=1) == LABELS[HELD_OUT]) > 0.9


@pytest.mark.parametrize("change", [{"loss": "bce"}, {"loss": "weighted-bce"}, {"label_smoothing": 0.1}, {"gamma": 0}])
def test_every_choice_of_the_loss_matters(change: dict[str, Any]) -> None:
    skewed = LABELS.copy()
    skewed[ROWS[:20]] = 2
    results = [train(replace(job("lenet", **values), labels=skewed)) for values in ({}, change)]
    assert not np.array_equal(results[0].logits, results[1].logits)


def test_an_update_is_that_of_a_plain_loop_on_torchs_cross_entropy() -> None:
    of_fold = job("resnet10t", loss="bce", warmup_epochs=0, clip_norm=1e9, ema_decay=0.0)
    torch.manual_seed(0)
    network = build(of_fold.config, SIDE, classes=C).train()
    other = build(of_fold.config, SIDE, classes=C).train()
    other.load_state_dict(network.state_dict())
    learner = Learner(of_fold, network, REFERENCE, CPU)
    for group in learner.optimizer.param_groups:
        group["weight_decay"] = of_fold.config.weight_decay
    optimizer = torch.optim.AdamW(other.parameters(), weight_decay=of_fold.config.weight_decay)
    for update in range(4):
        rows = slice(16 * update, 16 * update + 16)
        pixels, labels = torch.from_numpy(PIXELS[rows]), torch.from_numpy(LABELS[rows].astype(np.float32))
        loss = float(learner.update(update, pixels, labels))
        optimizer.param_groups[0]["lr"] = learner.lr
        expected = torch.nn.functional.cross_entropy(other(pixels), labels.long())
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        assert loss == pytest.approx(expected.item(), rel=1e-3)


def test_a_state_of_another_number_of_classes_is_refused() -> None:
    stopped = Kept(stop_after=1)
    with pytest.raises(InterruptedError):
        train(job("lenet"), stopped)
    for classes in (4, 5):
        with pytest.raises(ArtifactError, match=f"training m fold 0: was begun with 3 classes, not {classes}; give"):
            train(job("lenet", classes=classes), stopped)
    two = replace(job("lenet"), labels=(LABELS > 0).astype(np.int8), classes=2)
    of_two = Kept()
    train(two, of_two)
    assert of_two.saved is not None and "classes" not in of_two.saved[0], "states of two classes are as ever"
    with pytest.raises(ArtifactError, match="was begun with 2 classes, not 3"):
        train(job("lenet"), of_two)


def test_a_watch_gets_the_logits_of_the_first_view_and_names_its_measurement() -> None:
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    watch = Watch(HELD_OUT[:9], lambda *given: seen.append(given) or 0.25, "mean-class-error")  # type: ignore[func-returns-value]
    result = train(job("lenet"), watch=watch)
    assert_same(result, train(job("lenet")))
    assert [epoch["mean-class-error"] for epoch in result.history] == [0.25] * 2 and "hter" not in result.history[0]
    logits, labels = seen[-1]
    assert np.array_equal(labels, LABELS[HELD_OUT[:9]])
    np.testing.assert_allclose(logits, result.logits[:9, 0], rtol=1e-4, atol=1e-5)
    assert watch.title == "mean class error" and Watch(HELD_OUT, watch.measure).title == "HTER"


def test_folds_on_one_device_give_the_same_bytes_as_alone() -> None:
    jobs = [replace(job("lenet", augment=augment, drop_rate=0.5), fold=1) for augment in ("light", "none")]
    tasks = [Task(each, Kept(), REFERENCE, HELD_OUT, VIEWS, None) for each in jobs]
    with progress(1, "test") as bar:
        together = train_together(tasks, CPU, 0, 1.0, bar)
    for of_fold, result in zip(jobs, together, strict=True):
        assert isinstance(result, FoldResult)
        assert_same(result, train(of_fold))


# --- plans ------------------------------------------------------------------------------------------------------------

PLANS = [Plan("fp32", kind) for kind in CPU_KINDS]
PLANS += [Plan("bf16", kind) for kind in ("native", *CPU_KINDS) if onednn_computes(torch.bfloat16)]


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("arch", ARCHS)
def test_every_plan_agrees_with_the_reference(arch: str, plan: Plan) -> None:
    batch = torch.from_numpy(PIXELS[:40])
    with torch.inference_mode():
        expected = perturbed(arch)(batch)
        network = prepare(perturbed(arch), plan)
        logits = network(batch, plan.dtype)
    assert network.convolutions == plan.convolutions and network.logit_shape == (C,)
    assert logits.shape == (40, C) and logits.dtype == torch.float32
    assert probing.deviation(logits, expected) < (1e-3 if plan.precision == "fp32" else 0.1)


def test_a_deviation_of_logits_is_relative_to_what_tells_images_apart() -> None:
    """A large mean of a class, or of an image, must not hide an error."""
    generator = torch.Generator().manual_seed(0)
    logits, noise = torch.randn((2000, C), generator=generator), torch.randn((2000, C), generator=generator)
    wrong = logits + 0.3 * noise
    apart = probing.deviation(wrong, logits)
    assert apart == pytest.approx(0.3 * (C / (C - 1)) ** 0.5, rel=0.05), "C - 1 of C degrees are left"
    moved = 100 * torch.arange(C) + 50 * torch.randn((2000, 1), generator=generator)
    assert probing.deviation(wrong + moved, logits + moved) == pytest.approx(apart, rel=1e-3)


def test_a_probe_measures_the_network_of_so_many_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured, really = [], probing._measured
    monkeypatch.setattr(probing, "_measured", lambda *given: measured.append(given[-1]) or really(*given))  # type: ignore[func-returns-value]
    plans = (REFERENCE, *PLANS)
    for classes in (C, C, 4, 2, 2):
        result = probing.probe(config("lenet"), SIDE, plans, "predict", 1, classes=classes)
        assert set(result.images_per_second) >= {str(plan) for plan in plans if plan.precision == "fp32"}
    assert measured == [C, 4, 2], "the others are in the cache"
    for phase in ("train", "predict"):
        subject = probing._subject(config("lenet", freeze=True), SIDE, REFERENCE, phase, 16, CPU, C)
        assert set(subject.labels.tolist()) == set(range(C))
        assert subject.step().shape == ((16, C) if phase == "predict" else (C * 32 + C,)), "the last layer's gradient"


# --- prediction -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [HELD_OUT, HELD_OUT[:1], HELD_OUT[:0]])
def test_logits_have_the_axes_image_view_class(rows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    network = perturbed("lenet")
    monkeypatch.setattr(inference, "BATCH", 7)
    with progress(1, "test") as bar:
        logits = predict_logits(network, PIXELS, rows, VIEWS, "fp32", CPU, bar)
    assert logits.shape == (len(rows), 2, C)
    with torch.inference_mode():
        for column, images in enumerate((PIXELS[rows], PIXELS[rows, :, ::-1].copy())):
            if rows.size:
                expected = network(torch.from_numpy(images)).double().numpy()
                np.testing.assert_allclose(logits[:, column], expected, rtol=1e-4, atol=1e-5)


def _state(arch: str) -> dict[str, torch.Tensor]:
    return perturbed(arch).state_dict()


@pytest.mark.parametrize("plan", [REFERENCE, *PLANS], ids=str)
@pytest.mark.parametrize("arch", ARCHS)
def test_fold_models_of_any_plan_give_their_logits(arch: str, plan: Plan) -> None:
    models = FoldModels(NetworkSpec(config(arch), SIDE, plan, CPU, C))
    with progress(1, "test") as bar:
        logits, used = models.predict(_state(arch), PIXELS, HELD_OUT, VIEWS, bar)
        expected = predict_logits(perturbed(arch), PIXELS, HELD_OUT, VIEWS, "fp32", CPU, bar)
    assert used == plan and logits.shape == (len(HELD_OUT), 2, C)
    assert np.abs(logits - expected).max() < (1e-3 if plan.precision == "fp32" else 0.2) * expected.std()


def test_a_predictor_passes_the_classes_on() -> None:
    member = config("lenet")
    with Predictor(PIXELS, 2, Resources.of(ComputeConfig())) as predictor, progress(1, "test") as bar:
        spec = predictor.spec(member.model_dump(mode="json"), REFERENCE, 2, C)
        assert spec.classes == C and predictor.spec(member.model_dump(mode="json"), REFERENCE, 2).classes == 2
        models = [FoldModel("m", fold, spec, partial(_state, "lenet")) for fold in range(2)]
        results = {index: logits for index, logits, _ in predictor.predict(models, VIEWS, bar, HELD_OUT)}
    expected = predict_logits(perturbed("lenet"), PIXELS, HELD_OUT, VIEWS, "fp32", CPU, bar)
    assert [results[index].shape for index in (0, 1)] == [(len(HELD_OUT), 2, C)] * 2
    np.testing.assert_allclose(results[1], expected, rtol=1e-4, atol=1e-4)


def test_the_cost_of_an_image_is_that_of_so_many_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = []

    def measured(*given: Any) -> probing.Probe:
        classes.append(given[-1])
        return probing.Probe(REFERENCE, {str(REFERENCE): 50.0})

    monkeypatch.setattr(inference, "probe", measured)
    assert cost_per_image(NetworkSpec(config("lenet"), SIDE, REFERENCE, CPU, C), 1) == 0.02
    assert classes == [C]
