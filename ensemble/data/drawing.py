"""Draws heads with hats and glasses, and photographs them. The demo data sets consist of these images."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

CANVAS = 256
"""Height and width of a drawing in pixels, before it is scaled down."""

SKINS = ((255, 224, 196), (241, 194, 157), (224, 172, 125), (198, 134, 88), (141, 85, 50), (90, 56, 36))
"""The colours (R, G, B) from which the skin of each head is drawn; `vary` then changes the colour a little."""

HAIRS = ((24, 20, 18), (60, 40, 26), (104, 70, 40), (178, 134, 70), (224, 196, 128), (150, 60, 30), (170, 170, 172))
"""The colours (R, G, B) from which the hair of each head is drawn. Neither colour depends on the class."""

Colour = tuple[int, ...]
Canvas = NDArray[np.uint8]


def jpeg(pixels: Canvas, quality: int) -> bytes:
    """Return the bytes of an RGB image as a JPEG file; `quality` is that of OpenCV, 0 to 100."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()


def draw_background(rng: np.random.Generator) -> Canvas:
    """Return a grey wall, slightly tinted, with a brightness gradient."""
    wall = rng.integers(100, 226) + rng.normal(0, 10, 3)
    ramp = np.linspace(-1, 1, CANVAS).reshape(-1, 1, 1) * rng.normal(0, 15)
    return np.asarray(np.clip(np.tile(wall + ramp, (1, CANVAS, 1)), 0, 255), np.uint8)


def draw_body(canvas: Canvas, rng: np.random.Generator, skin: Colour, clothes: Colour = (90, 95, 105)) -> None:
    """Draw shoulders and neck; the colour of the clothes is varied."""
    draw_oval(canvas, (128, 268), (rng.uniform(78, 112), 58), vary(rng, clothes, 25))
    cv2.rectangle(canvas, (106, 180), (150, 224), shade(skin, 0.82), -1, cv2.LINE_AA)


def draw_face(canvas: Canvas, rng: np.random.Generator, skin: Colour, hair: Colour) -> None:
    """Draw hair, ears, eyes, nose and mouth; the chin is at row 206, the centre of the mouth at 174."""
    style = rng.choice(("bald", "short", "long", "curly"), p=(0.1, 0.4, 0.3, 0.2))
    width = int(rng.integers(52, 61))
    if style == "long":
        draw_oval(canvas, (128, 132), (width + 20, 92), shade(hair, 0.85))
    elif style == "curly":
        _draw_curls(canvas, rng, width + 8, hair)
    for side in (-1, 1):
        draw_oval(canvas, (128 + side * width, 136), (9, 15), shade(skin, 0.88))
    draw_oval(canvas, (128, 132), (width, 74), skin)
    if style in ("short", "long"):
        hairline = int(rng.integers(82, 100))
        cv2.ellipse(canvas, (128, hairline), (width + 4, hairline - 50), 0, 180, 360, hair, -1, cv2.LINE_AA)
        tilt = int(rng.integers(-14, 15))
        draw_oval(canvas, (128 + tilt * 2, hairline), (width - 12, 9), hair, tilt)
    eyes = int(rng.integers(124, 131))
    for side in (-1, 1):
        eye = (128 + side * 25, eyes)
        draw_oval(canvas, eye, (11, 6), (245, 245, 245))
        draw_oval(canvas, eye, (5, 6), (50, 36, 28))
        draw_oval(canvas, (eye[0], eyes - 15), (13, 3), shade(hair, 0.8), side * int(rng.integers(-4, 9)))
    cv2.line(canvas, (128, eyes + 8), (126, 158), shade(skin, 0.72), 4, cv2.LINE_AA)
    smile = int(rng.integers(2, 12))
    cv2.ellipse(canvas, (128, 174), (20, smile), 0, 0, 180, shade((190, 80, 80), rng.uniform(0.7, 1.1)), 6, cv2.LINE_AA)


def _draw_curls(canvas: Canvas, rng: np.random.Generator, radius: int, hair: Colour) -> None:
    for angle in np.linspace(np.pi * 0.95, np.pi * 2.05, 14):
        x, y = 128 + radius * np.cos(angle), 116 + radius * 0.95 * np.sin(angle)
        draw_oval(canvas, (x, y), (22, 22), shade(hair, rng.uniform(0.8, 1.1)))


def draw_glasses(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw glasses, most of them dark."""
    dark = rng.random() < 0.75
    frame = (24, 22, 26)
    half_width, half_height = int(rng.integers(21, 25)), int(rng.integers(16, 22))
    lens = vary(rng, (26, 26, 32), 14)
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


def draw_hat(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw a cap, a beanie or a hat with a brim."""
    colour, band = bright_colour(rng), bright_colour(rng)
    kind = rng.choice(("cap", "brimmed", "beanie"))
    brow = int(rng.integers(92, 102))
    height = int(rng.integers(50, 66))
    if kind == "brimmed":
        shoulder = int(rng.integers(38, 50))
        crown = np.array([(78, brow), (128 - shoulder, brow - height), (128 + shoulder, brow - height), (178, brow)])
        cv2.fillPoly(canvas, [crown.astype(np.int32)], colour, cv2.LINE_AA)
        cv2.rectangle(canvas, (76, brow - 16), (180, brow), band, -1, cv2.LINE_AA)
        draw_oval(canvas, (128, brow), (rng.uniform(84, 104), 11), shade(colour, 0.85))
        return
    cv2.ellipse(canvas, (128, brow), (68, height), 0, 180, 360, colour, -1, cv2.LINE_AA)
    if kind == "cap":
        side = int(rng.choice((-1, 0, 1)))
        draw_oval(canvas, (128 + side * 44, brow + 2), (56 if side else 66, 11), shade(colour, 0.75))
    else:
        cv2.rectangle(canvas, (58, brow - 18), (198, brow + 4), band, -1, cv2.LINE_AA)
        draw_oval(canvas, (128, brow - height), (13, 13), band)


def photograph(canvas: Canvas, rng: np.random.Generator, size: int) -> Canvas:
    """Shift, rotate, scale and light the drawing, and add sensor noise."""
    turn = np.array(cv2.getRotationMatrix2D((128, 128), rng.normal(0, 4), rng.uniform(0.92, 1.1)), np.float64)
    turn[:, 2] += rng.normal(0, 5, 2)
    moved = cv2.warpAffine(canvas, turn, (CANVAS, CANVAS), borderMode=cv2.BORDER_REFLECT)
    small = cv2.resize(moved, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    across, down = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size))
    light = rng.uniform(0.8, 1.12) * (1 + rng.normal(0, 0.1) * across + rng.normal(0, 0.08) * down)
    noisy = small * light[:, :, None] + rng.normal(0, 4, small.shape)
    return np.asarray(np.clip(noisy, 0, 255), np.uint8)


def draw_oval(
    canvas: Canvas, centre: tuple[float, float], axes: tuple[float, float], colour: Colour, angle: float = 0
) -> None:
    """Fill an ellipse; `centre` and `axes` in canvas pixels, `angle` in degrees."""
    x, y = (round(float(value)) for value in centre)
    a, b = (round(float(value)) for value in axes)
    cv2.ellipse(canvas, (x, y), (a, b), angle, 0, 360, colour, -1, cv2.LINE_AA)


def bright_colour(rng: np.random.Generator) -> Colour:
    """Return a colour of cloth, from green over blue to purple, that no hair or skin has."""
    colour = np.array([[rng.integers((40, 140, 120), (165, 256, 256))]], np.uint8)  # hue, saturation, value
    return tuple(cv2.cvtColor(colour, cv2.COLOR_HSV2RGB)[0, 0].tolist())


def vary(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    """Return a colour whose channels differ from `colour` by normal variates of standard deviation `spread`."""
    return tuple(np.clip(np.add(colour, rng.normal(0, spread, 3)), 0, 255).astype(int).tolist())


def shade(colour: Colour, factor: float) -> Colour:
    """Return a colour whose channels are multiplied by `factor`."""
    return tuple(min(255, int(value * factor)) for value in colour)
