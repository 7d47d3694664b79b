"""Runs code in a process that cannot import what the training extra installs, as where it is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ensemble.extras import TRAINING

ROOT = Path(__file__).parents[1]

HIDDEN = (*TRAINING, "torchvision", "onnx", "onnxscript", "PIL", "joblib", "requests")
"""What is hidden: the modules of the extra, some that they install with them, and those of thera[export]."""

HOOK = f"""
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HIDDEN!r}:
            raise ModuleNotFoundError(name + " is hidden", name=name)
sys.meta_path.insert(0, Hidden())
"""

COMMAND = """
from ensemble.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""Runs the command line with the arguments of the process."""


def run(code: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a folder, without the hidden modules."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOOK + code, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, timeout=120, check=False
    )
