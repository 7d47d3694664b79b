"""`thera bench`: how well this machine is used by training, prediction, loading and deciding, and what to change."""

from __future__ import annotations

from ensemble.bench_config import BenchConfig
from ensemble.bench_results import BenchResult
from ensemble.commands.checks import check_architecture, check_device
from ensemble.config import SHORT_NAMES
from ensemble.errors import ConfigError
from ensemble.extras import refuse_missing
from ensemble.progress import Say, silent


def bench(config: BenchConfig | None = None, say: Say = silent) -> BenchResult:
    """Measure how fast this machine trains, predicts, decides and loads, and find what would be faster.

    Parameters
    ----------
    config : BenchConfig, optional
        By default everything is measured, on generated images.
    say : callable
        Receives notes on the images, a line each.

    Raises
    ------
    ConfigError
        There is no such device or architecture, or labels are given without images.
    DataError
        The images or labels cannot be used.
    """
    refuse_missing("train", "thera bench")
    config = config or BenchConfig()
    check_device(config.device)
    for name in config.arch:
        check_architecture(SHORT_NAMES.get(name, name))
    if config.images is not None and not config.images.is_dir():
        raise ConfigError("--images", f"must be a folder of image files, which are read again; got {config.images}")
    if config.images is None and config.labels is not None:
        raise ConfigError("--labels", "needs --images")
    from ensemble.bench import measure
    from ensemble.bench.images import open_images
    from ensemble.members.devices import choose_device

    subjects, rounds = set(config.subjects), config.rounds
    decision = measure.decision_time(rounds) if "decide" in subjects else None
    if subjects <= {"decide"}:
        return BenchResult(rounds=rounds, decision=decision)
    device = choose_device(config.device)
    if device.type == "mps":
        if config.device == "mps":
            raise ConfigError("--device", "bench measures CPUs and CUDA devices; got mps", "use --device cpu")
        device = choose_device("cpu")
    with open_images(config.images, config.labels, config.limit, say) as images:
        trained = config.arch if "train" in subjects else ()
        predicted = config.arch if "predict" in subjects else ()
        return BenchResult(
            rounds=rounds,
            images=len(images.paths),
            size=images.size,
            machine=measure.machine_speed(device),
            training=tuple(measure.training_speed(arch, images, rounds, device) for arch in trained),
            prediction=tuple(measure.prediction_speed(arch, images, rounds, device) for arch in predicted),
            loading=measure.loading_speed(images, rounds) if "load" in subjects else None,
            decision=decision,
        )
