"""`thera bench`: what is measured, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import write_tiny

from ensemble import progress
from ensemble.bench import measure
from ensemble.bench.images import member_config, open_images
from ensemble.bench.throughput import TrainingOnGpu
from ensemble.bench_config import BenchConfig
from ensemble.bench_results import NetworkSpeed, Spread
from ensemble.cli import main
from ensemble.commands.bench import bench
from ensemble.members.plans import Plan
from ensemble.reports.render import render


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    write_tiny(folder, 256, size=32)
    return folder


def is_sound(speed: NetworkSpeed) -> None:
    spread = speed.images_per_second
    assert 0 < spread.low <= spread.median <= spread.high
    assert speed.roofline_share > 0  # above 1 where the machine was busy while the ceiling was measured
    assert speed.busy_share is None and speed.plan.split()[0] in ("fp32", "bf16")


def test_networks_and_loading_are_measured_and_advice_is_given(images: Path) -> None:
    config = BenchConfig(
        subjects=("train", "predict", "load"),
        arch=("resnet10t",),
        images=images / "img",
        labels=images / "labels.txt",
        limit=256,
        rounds=2,
    )
    result = bench(config)
    (trained,), (predicted,) = result.training, result.prediction
    is_sound(trained)
    is_sound(predicted)
    for part in ("images/s by plan", "images/s by batch", "augmentation makes", "--convolutions compiled"):
        assert any(part in sentence for sentence in trained.advice), part
    assert predicted.images_per_second.low * predicted.roofline_share > 0 and len(predicted.advice) == 1
    assert result.loading is not None and result.loading.first_epoch < result.loading.later_epochs.low
    assert result.machine is not None and result.machine.gflops["fp32"] > 0 and result.decision is None
    training, prediction, loading = render(result)
    assert training.rows[0][0] == prediction.rows[0][0] == "resnet10t" and len(loading.rows) == 2
    assert set(trained.advice) <= set(training.notes)


def test_training_as_on_a_gpu_is_measured_epoch_by_epoch(images: Path) -> None:
    """All five folds are trained in this process, an epoch each in every round."""
    with open_images(images / "img", images / "labels.txt", 256) as opened:
        config = member_config("lenet").model_copy(update={"batch_size": 32})
        cpu = torch.device("cpu")
        training = TrainingOnGpu(config, Plan("fp32"), opened.mapped, opened.labels, 5, 0, cpu)

        def weights() -> list[torch.Tensor]:
            return [value.clone() for learner in training._learners for value in learner.network.state_dict().values()]

        before = weights()
        with progress.progress(1, "test") as bar:
            assert [training.run(bar), training.run(bar)] == [5 * (205 // 32 * 32)] * 2
        assert not any(torch.equal(a, b) for a, b in zip(before, weights(), strict=True))
        training.close()


def test_a_decision_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "DECISION_ROWS", 2000)
    result = bench(BenchConfig(subjects=("decide",), rounds=3))
    assert result.decision is not None and result.machine is None and result.training == ()
    assert result.decision.rows == 2000
    assert 0 < result.decision.threshold_seconds.median < result.decision.decision_seconds
    (table,) = render(result)
    assert table.title == "Decision" and table.rows[0][0] == "the exact threshold"


@pytest.mark.parametrize(("values", "expected"), [([3.0, 1.0, 2.0], (2.0, 1.0, 3.0)), ([4.0, 1.0], (2.5, 1.0, 4.0))])
def test_a_spread_is_median_least_and_greatest(values: list[float], expected: tuple[float, float, float]) -> None:
    spread = Spread.of(values)  # type: ignore[arg-type]
    assert (spread.median, spread.low, spread.high) == expected


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["sleep"], 2, "must be 'train', 'predict', 'decide' or 'load'; got sleep"),
        (["load", "--images", "none"], 2, "must be a folder of image files"),
        (["load", "--labels", "l.txt"], 2, "--labels: needs --images"),
    ],
)
def test_wrong_options_are_refused(
    arguments: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *arguments])
    assert stopped.value.code == status and says in capsys.readouterr().err


def test_a_missing_gpu_is_named(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "train", "--device", "cuda", "--images", str(images / "img")])
    assert stopped.value.code == 2 and "--device: cuda is not there: " in capsys.readouterr().err
