"""The `thera` command: `python -m thera`, and the entry point of the installed script.

A user may have a module of their own named `ensemble`, in the working directory or on PYTHONPATH, and it would hide the
package. The command runs no code of the user's, so it looks into such folders last, and so do its worker processes.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
"""The folder that holds both packages, `thera` and `ensemble`."""


def prefer_home() -> None:
    """Move each folder that hides the package `ensemble` to the end of the path, for worker processes too."""
    hiding = [entry for entry in sys.path if _hides(entry)]
    sys.path[:] = [entry for entry in sys.path if entry not in hiding]
    if HOME not in map(_folder, sys.path):
        sys.path.append(str(HOME))
    sys.path += hiding
    # A worker that is started anew first looks into the working directory, and preloads modules before it receives the
    # path of this process (multiprocessing's fork server ignores `sys_path` in Python 3.11).
    os.environ["PYTHONSAFEPATH"] = "1"
    if "PYTHONPATH" in os.environ:
        entries = os.environ["PYTHONPATH"].split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join(entry for entry in entries if not _hides(entry))


def _hides(entry: str) -> bool:
    """Return whether a folder of the path holds another module or package named `ensemble`."""
    if _folder(entry) == HOME:
        return False
    spec = PathFinder.find_spec("ensemble", [entry])
    return spec is not None and spec.origin is not None  # a folder without __init__.py has no origin and hides nothing


def _folder(entry: str) -> Path:
    return Path(entry).resolve()


def main() -> int:
    """Run the command, and return its exit status."""
    prefer_home()
    from ensemble.cli import main as run

    return run() or 0


if __name__ == "__main__":
    sys.exit(main())
