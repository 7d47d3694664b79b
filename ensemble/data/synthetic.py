"""Generates the demo images: heads, some with a hat or glasses. Their label noise and their Bayes HTER are known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.config import seed_sequence
from ensemble.data.drawing import (
    HAIRS,
    SKINS,
    Canvas,
    draw_background,
    draw_body,
    draw_face,
    draw_glasses,
    draw_hat,
    jpeg,
    photograph,
    vary,
)
from ensemble.errors import ConfigError, ResourceError, printable

SCHEMA_VERSION = 1
"""The version of `demo.json`."""


def bayes_hter(minority: float = 0.12, flip: float = 0.05) -> float:
    """Return the Bayes HTER of the demo: the lowest that any rule can have against the noisy labels.

    An image shows its true class t, so a rule predicts a label for each of the two classes. HTER is linear in the rule,
    so the best rule is one of four deterministic ones. With q = P(t = 0), flip rate e and noisy label g, the rule that
    predicts t has

        FPR = P(t = 1 | g = 0) = (1 - q) e / (q (1 - e) + (1 - q) e)
        FNR = P(t = 0 | g = 1) = q e / ((1 - q) (1 - e) + q e),

    The rule that predicts 1 - t has 1 - HTER of it, and the two constant rules have 1/2, which lies between.

    Parameters
    ----------
    minority : float
        Share of true class 0, in (0, 1).
    flip : float
        Probability that a noisy label is not the true class, in [0, 1].

    Examples
    --------
    >>> round(bayes_hter(0.12, 0.05), 4)
    0.1428
    """
    fpr = (1 - minority) * flip / (minority * (1 - flip) + (1 - minority) * flip)
    fnr = minority * flip / ((1 - minority) * (1 - flip) + minority * flip)
    return min((fpr + fnr) / 2, 1 - (fpr + fnr) / 2)


def write_demo(
    folder: Path, n_train: int, n_val: int, seed: int, size: int = 64, flip: float = 0.05, minority: float = 0.12
) -> None:
    """Write the demo in the layout of the exercise; do nothing where `folder` holds this demo already.

    The files are ``train_img/``, ``label_train.txt`` and ``val_img/``; the true classes ``truth_train.txt`` and
    ``truth_val.txt``; the noisy labels ``given_val.txt`` of ``val_img/``; and the parameters, ``demo.json``.

    Parameters
    ----------
    folder : Path
        It is written beside and renamed, so that it is never incomplete.
    n_train, n_val : int
        Number of images.
    seed : int
    size : int
        Height and width in pixels.
    flip : float
        Probability that a noisy label is not the true class.
    minority : float
        Share of true class 0 (hat or glasses) in each of the two sets, exact but for rounding.

    Raises
    ------
    ConfigError
        A parameter is out of range, or `folder` holds other files.
    ResourceError
        `folder` cannot be written.
    """
    if not (n_train > 0 and n_val > 0 and size >= 8 and 0 <= flip < 0.5 and 0 < minority < 1):
        raise ConfigError("demo", "needs n >= 1, size >= 8, 0 <= flip < 0.5 and 0 < minority < 1")
    names = ("schema", "n_train", "n_val", "seed", "size", "flip", "minority")
    parameters = dict(zip(names, (SCHEMA_VERSION, n_train, n_val, seed, size, flip, minority), strict=True))

    def write(partial: Path) -> None:
        for part, n in (("train", n_train), ("val", n_val)):
            (partial / f"{part}_img").mkdir()
            truth, given = _labels(n, np.random.default_rng(seed_sequence(seed, "demo", part)), flip, minority)
            for row, label in enumerate(truth.tolist(), 1):
                rng = np.random.default_rng(seed_sequence(seed, "demo", part, row))
                pixels = draw_head(rng, label == 0, size)
                (partial / f"{part}_img" / f"{row:06d}.jpg").write_bytes(jpeg(pixels, int(rng.integers(75, 93))))
            np.savetxt(partial / f"truth_{part}.txt", truth, "%d")
            np.savetxt(partial / ("label_train.txt" if part == "train" else "given_val.txt"), given, "%d")

    write_once(folder, "demo.json", parameters, write)


def write_once(folder: Path, name: str, parameters: Mapping[str, Any], write: Callable[[Path], None]) -> None:
    """Write a generated data set; do nothing where `folder` holds it already.

    Parameters
    ----------
    folder : Path
        It is written beside and renamed, so that it is never incomplete.
    name : str
        The JSON file in it that has the parameters.
    parameters : mapping
        They determine all files of the data set.
    write : callable
        Receives the folder to write the other files into.

    Raises
    ------
    ConfigError
        `folder` holds other files, or the data set of other parameters.
    ResourceError
        `folder` cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if _read_json(folder / name) != parameters:
            raise ConfigError(
                printable(folder), "exists and does not hold this demo", "remove it, or name another folder"
            )
        return
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        (partial / name).write_text(json.dumps(parameters, indent=2, sort_keys=True) + "\n")
        partial.replace(folder)
    except OSError as error:
        raise ResourceError(printable(folder), f"cannot be written: {error.strerror or error}") from error


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _labels(
    n: int, rng: np.random.Generator, flip: float, minority: float
) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Return the true and the noisy labels, int8 arrays (n,)."""
    truth = rng.permutation(np.arange(n) >= round(minority * n)).astype(np.int8)
    return truth, truth ^ (rng.random(n) < flip).astype(np.int8)


def draw_head(rng: np.random.Generator, accessory: bool, size: int = 64) -> Canvas:
    """Draw a head, bare or with a hat, glasses or both.

    Returns
    -------
    uint8 array (size, size, 3)
        RGB.
    """
    canvas = draw_background(rng)
    skin = vary(rng, SKINS[rng.integers(len(SKINS))], 12)
    hair = vary(rng, HAIRS[rng.integers(len(HAIRS))], 14)
    hat, glasses = [(True, False), (False, True), (True, True)][rng.choice(3, p=(0.45, 0.45, 0.1))]
    draw_body(canvas, rng, skin)
    draw_face(canvas, rng, skin, hair)
    if accessory and glasses:
        draw_glasses(canvas, rng)
    if accessory and hat:
        draw_hat(canvas, rng)
    return photograph(canvas, rng, size)
