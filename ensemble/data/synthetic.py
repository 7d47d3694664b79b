"""Generates the demo images: heads, some with a hat or glasses. Their label noise and their Bayes HTER are known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ensemble.config import seed_sequence
from ensemble.errors import ConfigError, ResourceError, printable

SCHEMA_VERSION = 1
"""The version of `demo.json`."""

CANVAS = 256
"""Height and width of a drawing in pixels, before it is scaled down."""

SKINS = ((255, 224, 196), (241, 194, 157), (224, 172, 125), (198, 134, 88), (141, 85, 50), (90, 56, 36))
"""The colours (R, G, B) from which the skin of each head is drawn; `_vary` then changes the colour a little."""

HAIRS = ((24, 20, 18), (60, 40, 26), (104, 70, 40), (178, 134, 70), (224, 196, 128), (150, 60, 30), (170, 170, 172))
"""The colours (R, G, B) from which the hair of each head is drawn. Neither colour depends on the class."""

Colour = tuple[int, ...]
Canvas = NDArray[np.uint8]


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
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if _read_parameters(folder) != parameters:
            raise ConfigError(
                printable(folder), "exists and does not hold this demo", "remove it, or name another folder"
            )
        return
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for part, n in (("train", n_train), ("val", n_val)):
            (partial / f"{part}_img").mkdir(parents=True)
            truth, given = _labels(n, np.random.default_rng(seed_sequence(seed, "demo", part)), flip, minority)
            for row, label in enumerate(truth.tolist(), 1):
                rng = np.random.default_rng(seed_sequence(seed, "demo", part, row))
                (partial / f"{part}_img" / f"{row:06d}.jpg").write_bytes(_jpeg(draw_head(rng, label == 0, size), rng))
            np.savetxt(partial / f"truth_{part}.txt", truth, "%d")
            np.savetxt(partial / ("label_train.txt" if part == "train" else "given_val.txt"), given, "%d")
        (partial / "demo.json").write_text(json.dumps(parameters, indent=2, sort_keys=True) + "\n")
        partial.replace(folder)
    except OSError as error:
        raise ResourceError(printable(folder), f"cannot be written: {error.strerror or error}") from error


def _read_parameters(folder: Path) -> object:
    try:
        return json.loads((folder / "demo.json").read_text())
    except (OSError, ValueError):
        return None


def _labels(
    n: int, rng: np.random.Generator, flip: float, minority: float
) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Return the true and the noisy labels, int8 arrays (n,)."""
    truth = rng.permutation(np.arange(n) >= round(minority * n)).astype(np.int8)
    return truth, truth ^ (rng.random(n) < flip).astype(np.int8)


def _jpeg(pixels: Canvas, rng: np.random.Generator) -> bytes:
    quality = int(rng.integers(75, 93))
    _, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()


def draw_head(rng: np.random.Generator, accessory: bool, size: int = 64) -> Canvas:
    """Draw a head, bare or with a hat, glasses or both.

    Returns
    -------
    uint8 array (size, size, 3)
        RGB.
    """
    canvas = _background(rng)
    skin = _vary(rng, SKINS[rng.integers(len(SKINS))], 12)
    hair = _vary(rng, HAIRS[rng.integers(len(HAIRS))], 14)
    hat, glasses = [(True, False), (False, True), (True, True)][rng.choice(3, p=(0.45, 0.45, 0.1))]
    _body(canvas, rng, skin)
    _face(canvas, rng, skin, hair)
    if accessory and glasses:
        _glasses(canvas, rng)
    if accessory and hat:
        _hat(canvas, rng)
    return _photographed(canvas, rng, size)


def _background(rng: np.random.Generator) -> Canvas:
    """Return a grey wall, slightly tinted, with a brightness gradient."""
    wall = rng.integers(100, 226) + rng.normal(0, 10, 3)
    ramp = np.linspace(-1, 1, CANVAS).reshape(-1, 1, 1) * rng.normal(0, 15)
    return np.asarray(np.clip(np.tile(wall + ramp, (1, CANVAS, 1)), 0, 255), np.uint8)


def _body(canvas: Canvas, rng: np.random.Generator, skin: Colour) -> None:
    _oval(canvas, (128, 268), (rng.uniform(78, 112), 58), _vary(rng, (90, 95, 105), 25))
    cv2.rectangle(canvas, (106, 180), (150, 224), _shade(skin, 0.82), -1, cv2.LINE_AA)


def _face(canvas: Canvas, rng: np.random.Generator, skin: Colour, hair: Colour) -> None:
    style = rng.choice(("bald", "short", "long", "curly"), p=(0.1, 0.4, 0.3, 0.2))
    width = int(rng.integers(52, 61))
    if style == "long":
        _oval(canvas, (128, 132), (width + 20, 92), _shade(hair, 0.85))
    elif style == "curly":
        _curls(canvas, rng, width + 8, hair)
    for side in (-1, 1):
        _oval(canvas, (128 + side * width, 136), (9, 15), _shade(skin, 0.88))
    _oval(canvas, (128, 132), (width, 74), skin)
    if style in ("short", "long"):
        hairline = int(rng.integers(82, 100))
        cv2.ellipse(canvas, (128, hairline), (width + 4, hairline - 50), 0, 180, 360, hair, -1, cv2.LINE_AA)
        tilt = int(rng.integers(-14, 15))
        _oval(canvas, (128 + tilt * 2, hairline), (width - 12, 9), hair, tilt)
    eyes = int(rng.integers(124, 131))
    for side in (-1, 1):
        eye = (128 + side * 25, eyes)
        _oval(canvas, eye, (11, 6), (245, 245, 245))
        _oval(canvas, eye, (5, 6), (50, 36, 28))
        _oval(canvas, (eye[0], eyes - 15), (13, 3), _shade(hair, 0.8), side * int(rng.integers(-4, 9)))
    cv2.line(canvas, (128, eyes + 8), (126, 158), _shade(skin, 0.72), 4, cv2.LINE_AA)
    smile = int(rng.integers(2, 12))
    cv2.ellipse(
        canvas, (128, 174), (20, smile), 0, 0, 180, _shade((190, 80, 80), rng.uniform(0.7, 1.1)), 6, cv2.LINE_AA
    )


def _curls(canvas: Canvas, rng: np.random.Generator, radius: int, hair: Colour) -> None:
    for angle in np.linspace(np.pi * 0.95, np.pi * 2.05, 14):
        x, y = 128 + radius * np.cos(angle), 116 + radius * 0.95 * np.sin(angle)
        _oval(canvas, (x, y), (22, 22), _shade(hair, rng.uniform(0.8, 1.1)))


def _glasses(canvas: Canvas, rng: np.random.Generator) -> None:
    dark = rng.random() < 0.75
    frame = (24, 22, 26)
    half_width, half_height = int(rng.integers(21, 25)), int(rng.integers(16, 22))
    lens = _vary(rng, (26, 26, 32), 14)
    round_lenses = rng.random() < 0.5
    for side in (-1, 1):
        centre = (128 + side * 27, 129)
        box = cv2.boxPoints((centre, (2 * half_width, 2 * half_height), 0))
        oval = cv2.ellipse2Poly(centre, (half_width, half_height), 0, 0, 360, 10)
        outline = np.array(oval if round_lenses else box, np.int32)
        if dark:
            cv2.fillPoly(canvas, [outline], lens, cv2.LINE_AA)
        cv2.polylines(canvas, [outline], True, frame, 8, cv2.LINE_AA)
        cv2.line(canvas, (centre[0] + side * half_width, 125), (128 + side * 60, 128), frame, 7, cv2.LINE_AA)
    cv2.line(canvas, (118, 125), (138, 125), frame, 8, cv2.LINE_AA)


def _hat(canvas: Canvas, rng: np.random.Generator) -> None:
    colour, band = _bright_colour(rng), _bright_colour(rng)
    kind = rng.choice(("cap", "brimmed", "beanie"))
    brow = int(rng.integers(92, 102))
    height = int(rng.integers(50, 66))
    if kind == "brimmed":
        shoulder = int(rng.integers(38, 50))
        crown = np.array([(78, brow), (128 - shoulder, brow - height), (128 + shoulder, brow - height), (178, brow)])
        cv2.fillPoly(canvas, [crown.astype(np.int32)], colour, cv2.LINE_AA)
        cv2.rectangle(canvas, (76, brow - 16), (180, brow), band, -1, cv2.LINE_AA)
        _oval(canvas, (128, brow), (rng.uniform(84, 104), 11), _shade(colour, 0.85))
        return
    cv2.ellipse(canvas, (128, brow), (68, height), 0, 180, 360, colour, -1, cv2.LINE_AA)
    if kind == "cap":
        side = int(rng.choice((-1, 0, 1)))
        _oval(canvas, (128 + side * 44, brow + 2), (56 if side else 66, 11), _shade(colour, 0.75))
    else:
        cv2.rectangle(canvas, (58, brow - 18), (198, brow + 4), band, -1, cv2.LINE_AA)
        _oval(canvas, (128, brow - height), (13, 13), band)


def _photographed(canvas: Canvas, rng: np.random.Generator, size: int) -> Canvas:
    """Shift, rotate, scale and light the drawing, and add sensor noise."""
    turn = np.array(cv2.getRotationMatrix2D((128, 128), rng.normal(0, 4), rng.uniform(0.92, 1.1)), np.float64)
    turn[:, 2] += rng.normal(0, 5, 2)
    moved = cv2.warpAffine(canvas, turn, (CANVAS, CANVAS), borderMode=cv2.BORDER_REFLECT)
    small = cv2.resize(moved, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    across, down = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size))
    light = rng.uniform(0.8, 1.12) * (1 + rng.normal(0, 0.1) * across + rng.normal(0, 0.08) * down)
    noisy = small * light[:, :, None] + rng.normal(0, 4, small.shape)
    return np.asarray(np.clip(noisy, 0, 255), np.uint8)


def _oval(
    canvas: Canvas, centre: tuple[float, float], axes: tuple[float, float], colour: Colour, angle: float = 0
) -> None:
    """Fill an ellipse; `centre` and `axes` in canvas pixels, `angle` in degrees."""
    x, y = (round(float(value)) for value in centre)
    a, b = (round(float(value)) for value in axes)
    cv2.ellipse(canvas, (x, y), (a, b), angle, 0, 360, colour, -1, cv2.LINE_AA)


def _bright_colour(rng: np.random.Generator) -> Colour:
    """Return a colour of cloth, from green over blue to purple, that no hair or skin has."""
    colour = np.array([[rng.integers((40, 140, 120), (165, 256, 256))]], np.uint8)  # hue, saturation, value
    return tuple(cv2.cvtColor(colour, cv2.COLOR_HSV2RGB)[0, 0].tolist())


def _vary(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    return tuple(np.clip(np.add(colour, rng.normal(0, spread, 3)), 0, 255).astype(int).tolist())


def _shade(colour: Colour, factor: float) -> Colour:
    return tuple(min(255, int(value * factor)) for value in colour)
