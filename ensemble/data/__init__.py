"""What comes in: images and labels to one `Dataset`, its folds, and the demo data."""

from __future__ import annotations

import os

MAX_PIXELS = 2**26
"""The largest image that is decoded, 8192 × 8192; said to OpenCV too, which reads it when it is imported."""

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
