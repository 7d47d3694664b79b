"""What all tests share: a quiet library, and no deadlines."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
settings.register_profile("thera", deadline=None)  # a busy machine is no fault
settings.load_profile("thera")
