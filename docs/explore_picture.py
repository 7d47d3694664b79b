"""Draws docs/explore.png: the page of `thera explore` on generated heads with planted faults, as a browser shows it.

    python docs/explore_picture.py docs/explore.png

It needs chromium and playwright, and shows generated images only.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from ensemble import ExploreConfig, explore
from ensemble.data.synthetic import write_demo

CHROMIUM = "/usr/bin/chromium"
WIDTH, HEIGHT = 1200, 1960
"""The part of the page that is shown, in pixels."""


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


def draw(out: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "demo"
        write_demo(folder, 1000, 200, 0)
        plant(folder)
        page = Path(name) / "explore.html"
        images, labels = folder / "train_img", folder / "label_train.txt"
        explore(ExploreConfig(images=images, labels=labels, against=(folder / "val_img",), out=page))
        page.write_text(page.read_text(encoding="utf-8").replace(f"{folder}/", ""), encoding="utf-8")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            tab.goto(page.as_uri())
            tab.screenshot(path=str(out))
            browser.close()
    with Image.open(out) as shot:
        shot.convert("RGB").quantize(256).save(out, optimize=True)  # a third of the bytes


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
