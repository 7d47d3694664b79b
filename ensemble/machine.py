"""Find the cores, the memory and the cache folder that this process may use, and the model of the CPU.

Cores and memory are those of its affinity, cgroup quota and cgroup limit.
"""

from __future__ import annotations

import functools
import math
import os
import platform
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""The folder in which Linux mounts the control groups, of version 1 and of version 2."""

MEMBERSHIP = Path("/proc/self/cgroup")
"""The file that lists the control group of this process in each hierarchy, one in a line: `number:controllers:path`."""

CPUINFO = Path("/proc/cpuinfo")
"""The file in which Linux describes each core of the CPU."""


def available_cores() -> list[int]:
    """Return the cores that this process may compute on.

    These are the cores of its affinity mask, or the first of them if a cgroup quota allows less processor time than
    they have. A quota of 1.5 cores counts as 2: two threads are slowed down a little, but one would leave a third
    unused.
    """
    cores = _affinity()
    quotas = [quota for folder in _folders("cpu") if (quota := _quota(folder)) is not None]
    return cores[: max(1, math.ceil(min(quotas)))] if quotas else cores


def _affinity() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))  # macOS has neither affinity masks nor cgroups


def available_memory() -> int:
    """Return the bytes of memory that this process may use: those of the machine, or the cgroup limit if lower."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in _folders("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            if (text := _read(folder / name)) not in ("", "max"):
                limits.append(int(text))
    return min(limits)


def _quota(folder: Path) -> float | None:
    """Return the processor time that a cgroup allows, in cores, or None if it sets no limit."""
    if text := _read(folder / "cpu.max"):  # version 2: "quota period", in microseconds
        quota, period = text.split()
    else:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    if not quota or not period or quota in ("max", "-1"):
        return None
    return int(quota) / int(period)


def _folders(controller: str) -> Iterator[Path]:
    """Yield the cgroup folders whose limits apply to this process: its own and all of its parents."""
    for line in _read(MEMBERSHIP).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUP if not controllers else CGROUP / controllers
        below = root / path.lstrip("/")
        while True:
            yield below
            if below in (root, CGROUP) or root not in below.parents:
                break
            below = below.parent


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def cpu_model() -> str:
    """Return the name of the CPU's model, as far as the system tells it."""
    names = (line.partition(":")[2].strip() for line in _read(CPUINFO).splitlines() if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def cache_folder() -> Path:
    """Return the folder of the user's caches: `XDG_CACHE_HOME`, or `.cache` in the home.

    In a container, a user may have no home, or one that cannot be written. The caches are then in a folder of this user
    in the temporary folder.
    """
    given, home = os.environ.get("XDG_CACHE_HOME", ""), _home()
    if os.path.isabs(given):
        return Path(given)
    return home / ".cache" if home and _is_writable(home / ".cache") else _temporary_cache()


def provide_cache_folder() -> None:
    """Let other libraries, and processes that are started, use the temporary cache if there is no home to write to.

    Without a home, the hub's client and torch make a folder of the name `~` in the working directory. Caches in a home
    that can only be read are still used. Matplotlib warns if it cannot write.
    """
    home = _home()
    if home is None and not os.environ.get("XDG_CACHE_HOME"):
        os.environ["XDG_CACHE_HOME"] = str(_temporary_cache())
    if home is None or not _is_writable(home / ".config"):
        os.environ.setdefault("MPLCONFIGDIR", str(_temporary_cache() / "matplotlib"))


def _home() -> Path | None:
    home = os.path.expanduser("~")  # "~" itself if there is none
    return Path(home) if os.path.isabs(home) else None


def _is_writable(folder: Path) -> bool:
    return os.access(next(each for each in (folder, *folder.parents) if each.exists()), os.W_OK)


@functools.cache
def _temporary_cache() -> Path:
    """Return a folder that only this user can write; a new one if the one of the usual name is another user's."""
    path = Path(tempfile.gettempdir()) / f"thera-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        facts = path.lstat()
    except OSError:
        return Path(tempfile.mkdtemp(prefix="thera-"))
    private = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and not facts.st_mode & 0o022
    return path if private else Path(tempfile.mkdtemp(prefix="thera-"))
