from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import peers
import prediction_peers
import pytest
import timm
import torch
from peers import (
    NEEDS,
    Files,
    Loop,
    best_workers,
    installed,
    plain_loop,
    read_cv2,
    read_pil,
    timm_loop,
)
from prediction_peers import in_openvino

from ensemble.errors import ResourceError

SIZE, N, ARCH = 32, 22, "resnet10t"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = [str(folder / f"{row:02d}.jpg") for row in range(N)]
    for path in paths:
        pixels = cv2.resize(rng.integers(0, 256, (4, 4, 3), np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(path, pixels)
    return Files(paths, (np.arange(N) % 3 != 0).astype(np.int8), SIZE)


@pytest.fixture(scope="module")
def models() -> list[Any]:
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(timm.create_model(ARCH, num_classes=1).state_dict())
    return prediction_peers.fold_models(ARCH, states)


def direct(model: Any, files: Files) -> np.ndarray:
    """The logits (n, 2) by hand: decode, normalise, forward; as they are and mirrored."""
    facts = model.pretrained_cfg
    images = (np.stack([read_pil(path) for path in files.paths]) / 255 - facts["mean"]) / facts["std"]
    x = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2)  # (n, 3, H, W)
    with torch.inference_mode():
        return torch.cat([model(x), model(x.flip(3))], dim=1).numpy()


BF16 = {"amp_dtype": torch.bfloat16, "channels_last": True}
LOOPS = [
    (plain_loop, {}),
    (plain_loop, {"read": read_pil}),
    (timm_loop, {"workers": 0}),
    (timm_loop, {"workers": 0, **BF16, "augmentation": peers.LIGHT}),
    (timm_loop, {"workers": 0, "prefetcher": False}),
]


@pytest.mark.parametrize(("build", "options"), LOOPS)
def test_a_loop_trains_on_whole_batches_from_run_to_run(build: Any, options: dict[str, Any], files: Files) -> None:
    loop = build(ARCH, files, batch=4, threads=1, **options)
    assert [loop.run(images) for images in (1, 9, 30)] == [4, 8, 32]
    assert np.isfinite(loop.loss)
    loop.close()


def test_a_loop_learns(files: Files) -> None:
    loop = plain_loop(ARCH, files, batch=22, threads=1)
    loop.run(22)
    first = loop.loss
    loop.run(22 * 12)
    assert loop.loss < first / 2
    loop.close()


@pytest.mark.parametrize("build", [plain_loop, timm_loop])
def test_workers_have_nothing_to_fetch_between_runs_and_end(build: Any, files: Files) -> None:
    loop = build(ARCH, files, batch=4, workers=1, threads=1)
    loop.run(8)
    iterator = getattr(loop._loader, "loader", loop._loader)._iterator
    (worker,) = iterator._workers
    loop.run(8)
    assert worker.is_alive()
    assert iterator._tasks_outstanding == 0
    loop.close()
    assert not worker.is_alive()


def test_a_walk_takes_every_row_once_before_any_twice(files: Files) -> None:
    walk = peers._Walk(10, seed=0)
    walk.ahead = 4
    rows = [row for _ in range(5) for row in walk]
    assert Counter(rows[:10]) == Counter(rows[10:]) == Counter(range(10))
    assert rows[:10] != rows[10:]


def test_the_best_number_of_workers_stands_first(files: Files) -> None:
    def build(workers: int) -> Loop:
        return plain_loop(ARCH, files, batch=4, workers=workers, threads=1)

    speeds = best_workers(build, lambda loop: loop.run(4), candidates=(0, 1), rounds=1)
    assert set(speeds) == {0, 1}
    assert list(speeds.values()) == sorted(speeds.values(), reverse=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_timm_predicts_as_the_models_themselves(workers: int, files: Files, models: list[Any]) -> None:
    prediction = prediction_peers.timm_predict(
        models, files.paths, SIZE, batch=8, workers=workers, threads=1, channels_last=workers == 1
    )
    assert prediction.run() == N
    for fold, model in enumerate(models):
        np.testing.assert_allclose(prediction.logits[:, fold], direct(model, files), rtol=1e-4, atol=1e-5)
    prediction.close()


@pytest.mark.filterwarnings("ignore")  # of the exporters
@pytest.mark.parametrize("peer", ["onnxruntime_predict", "openvino_predict"])
def test_an_exported_model_predicts_the_same(peer: str, files: Files, models: list[Any]) -> None:
    if peer not in installed():
        pytest.skip(f"{peer} is not installed")
    prediction = getattr(prediction_peers, peer)(models[:1], files.paths, SIZE, batch=8, threads=1)
    assert prediction.run() == N
    np.testing.assert_allclose(prediction.logits[:, 0], direct(models[0], files), rtol=1e-3, atol=1e-4)


def test_timm_in_bf16_is_near(files: Files, models: list[Any]) -> None:
    prediction = prediction_peers.timm_predict(models[:1], files.paths, SIZE, threads=1, **BF16)
    prediction.run()
    np.testing.assert_allclose(prediction.logits[:, 0], direct(models[0], files), atol=0.05)


@pytest.mark.filterwarnings("ignore")
def test_openvino_in_bf16_is_near(files: Files, models: list[Any]) -> None:
    pytest.importorskip("openvino")
    prediction = prediction_peers.openvino_predict(models[:1], files.paths, SIZE, threads=1, precision="bf16")
    prediction.run()
    np.testing.assert_allclose(prediction.logits[:, 0], direct(models[0], files), atol=0.05)


def test_a_peer_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch, models: list[Any]) -> None:
    monkeypatch.setitem(NEEDS, "openvino_predict", ("no_such_package",))
    assert "openvino_predict" not in installed()
    with pytest.raises(ResourceError, match="pip install no_such_package"):
        in_openvino(models[0], SIZE, 1, "f32")


@pytest.mark.parametrize("read", [read_pil, read_cv2])
@pytest.mark.parametrize("workers", [0, 1])
def test_decoding_counts_every_file(read: Any, workers: int, files: Files) -> None:
    decoding = peers.dataloader_epoch(files.paths, read=read, batch=4, workers=workers, threads=1)
    assert [decoding.run(), decoding.run()] == [N, N]
    decoding.close()


def test_both_decoders_give_the_same_rgb(files: Files) -> None:
    path = Path(files.paths[0])
    a, b = read_pil(str(path)), read_cv2(str(path))
    assert a.shape == b.shape == (SIZE, SIZE, 3)
    assert a.dtype == b.dtype == np.uint8
    assert np.abs(a.astype(int) - b).mean() < 2
