"""From files to arrays: images and labels become one `Dataset`, whose rows are assigned to folds. No torch here.

source.py      recognises a folder, a zip or a manifest, and joins each image to its label
files.py       lists and reads files in folders and zips, and refuses unsafe or damaged ones
labels.py      reads labels: 0 and 1, and other spellings that can only mean these
manifest.py    reads CSV and Parquet tables of images
pixels.py      decodes a file to RGB pixels under one image policy
store.py       decodes every image once, into a memory map on disk
arrays.py      images that Python code passes: paths or pixels
folds.py       assigns rows to folds, by class and group
synthetic.py   generates the demo images
"""

from __future__ import annotations

import os

MAX_PIXELS = 2**26
"""The largest image that is decoded, in pixels: 8192 × 8192. It bounds the memory that a hostile header can claim."""

# OpenCV reads its limit when it is imported, so it is set before the first import of cv2.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
