"""Draws docs/explore.png, docs/report.png and docs/review.png: the pages of thera, as a browser shows them.

    python docs/page_pictures.py docs

The images are generated heads, some with planted faults. Two small networks are trained on them, which takes about five
minutes of one core. It needs chromium and playwright.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from ensemble.cli import main
from ensemble.data.synthetic import write_demo

CHROMIUM = "/usr/bin/chromium"
WIDTH = 1200
"""The width of the window, in pixels."""

PAGES = {
    "explore": ("explore.html", 1960, ()),
    "report": ("report.html", 1970, ("data", "members", "training")),
    "review": ("label_issues/review.html", 1040, ()),
}
"""The name of a picture -> the page in the run's folder, how many pixels of its height are shown, and the sections that
are left out."""

TRAINING = "--epochs 5 --lr 3e-3 --ema-decay 0.98 --folds 3 --pretrained no"


def plant(folder: Path) -> None:
    """Give some of the images faults."""
    images = sorted((folder / "train_img").iterdir())
    for row in range(12):
        image = cv2.imread(str(images[row]))
        cv2.imwrite(str(images[600 + row]), image, [cv2.IMWRITE_JPEG_QUALITY, 70])
        cv2.imwrite(str(images[700 + row]), cv2.GaussianBlur(cv2.imread(str(images[700 + row])), (0, 0), 4))
    for row in range(4):
        dark = (cv2.imread(str(images[800 + row])) * 0.2).astype(np.uint8)
        cv2.imwrite(str(images[800 + row]), dark)
        cv2.imwrite(str(images[850 + row]), np.full_like(dark, 60 * row))


def commands() -> list[str]:
    """Return the commands that write the pages into the folder `heads`."""
    data = "--images train_img --labels label_train.txt --run heads"
    return [
        "explore train_img --labels label_train.txt --against val_img --run heads",
        *(f"train-member --arch {arch} {data} {TRAINING}" for arch in ("small_cnn", "simple_cnn")),
        "fit-stacker --run heads",
        "predict --tta --run heads --images val_img",
        "report heads --maps --map-images 50",
        "clean heads",
    ]


def draw(out: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "demo"
        write_demo(folder, 2000, 1000, 0, minority=0.3)
        plant(folder)
        with contextlib.chdir(folder):
            for command in commands():
                if status := main(command.split()):
                    sys.exit(status)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            for picture, (page, height, left_out) in PAGES.items():
                tab = browser.new_page(viewport={"width": WIDTH, "height": height})
                tab.goto((folder / "heads" / page).as_uri())
                for section in left_out:
                    tab.evaluate(f"document.getElementById('{section}').hidden = true")
                tab.screenshot(path=str(out / f"{picture}.png"))
                with Image.open(out / f"{picture}.png") as shot:
                    small = shot.convert("RGB").quantize(256)  # a third of the bytes
                small.save(out / f"{picture}.png", optimize=True)
            browser.close()


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", "80")
    draw(Path(sys.argv[1]))
