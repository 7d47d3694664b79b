"""Fault 19 of the table: EXIF orientations are ignored or applied, by one rule for training and prediction."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from samples import PICTURE

from ensemble.cli import main
from ensemble.data.pixels import decode, upright
from ensemble.data.source import open_source
from ensemble.data.store import load_dataset

TAG = 0x0112


def turned(kind: str, orientation: int, picture: np.ndarray = PICTURE) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[TAG] = orientation
    Image.fromarray(picture).save(file, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_applied_as_pillow_does_it(kind: str, orientation: int) -> None:
    data = turned(kind, orientation)
    image = decode(data, "1")
    assert image.header.orientation == orientation and image.header.oriented == (orientation > 1)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)).convert("RGB"))
    assert expected is not None
    assert image.header.upright_size == (expected.height, expected.width)
    assert np.array_equal(upright(image), np.asarray(expected))


def test_the_store_applies_orientations_where_requested(tmp_path: Path) -> None:
    folder, store = tmp_path / "img", tmp_path / "store"
    folder.mkdir()
    across = np.ascontiguousarray(PICTURE.transpose(1, 0, 2))
    for number, data in enumerate([turned("PNG", 1), turned("PNG", 3), turned("PNG", 6, across)], 1):
        (folder / f"{number}.png").write_bytes(data)
    whole = load_dataset(open_source(folder), store, on_bad="skip")  # the third is stored across
    applied = load_dataset(open_source(folder), store, exif="apply")
    assert (len(whole), len(applied), whole.exif, applied.exif) == (2, 3, "ignore", "apply")
    assert np.array_equal(applied.pixels[1], PICTURE[::-1, ::-1]) and np.array_equal(whole.pixels[1], PICTURE)
    assert np.array_equal(applied.pixels[2], PICTURE[:, ::-1])
    assert applied.notes == ("2 images with an EXIF orientation: it is applied, in training and in prediction (2, 3)",)
    assert "1 images with an EXIF orientation: it is ignored, in training and in prediction (2)" in whole.notes
    (folder / "3.png").unlink()
    ignored, applied = (load_dataset(open_source(folder), store, exif=exif) for exif in ("ignore", "apply"))
    assert ignored.fingerprint != applied.fingerprint and len(list(store.glob("*/store.json"))) == 4


def test_prediction_does_as_training_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensemble.decision.assessment.REPLICATES", 40)
    monkeypatch.setattr("ensemble.decision.decision.bound_noise", lambda *_: None)
    rng, folder = np.random.default_rng(0), tmp_path / "img"
    folder.mkdir()
    for number in range(1, 17):
        picture = rng.integers(0, 100, (16, 16, 3), np.uint8)
        picture[:8] += np.uint8(number % 2 * 100)
        (folder / f"{number}.png").write_bytes(turned("PNG", 6, picture))
    (tmp_path / "labels.txt").write_text("1\n0\n" * 8)
    run, plan = tmp_path / "run", ["--device", "cpu"]
    train = [
        "train-member",
        "--run",
        str(run),
        "--images",
        str(folder),
        "--labels",
        str(tmp_path / "labels.txt"),
        *plan,
    ]
    train += ["--arch", "lenet", "--folds", "2", "--epochs", "1", "--batch-size", "8"]
    train += ["--precision", "fp32", "--convolutions", "native"]
    main([*train, "--exif", "apply"])
    assert json.loads((run / "run.json").read_text())["exif"] == "apply"
    main(["fit-stacker", "--run", str(run), "--stacker", "mean"])
    capsys.readouterr()
    main(["predict", "--run", str(run), "--images", str(folder), *plan, "--precision", "fp32"])
    assert "16 images with an EXIF orientation: it is applied" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(train)
    assert stopped.value.code == 4 and "exif was apply and is ignore; use another --run" in capsys.readouterr().err
