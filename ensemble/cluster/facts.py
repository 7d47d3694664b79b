"""Compare the software and hardware of the nodes of a cluster, and refuse nodes that differ."""

from __future__ import annotations

import functools
import hashlib
import platform
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ensemble.errors import ResourceError
from ensemble.members.machine_facts import hardware_of, package_versions


@dataclass(frozen=True)
class MachineFacts:
    """The software and hardware that decide the bits of a result.

    Attributes
    ----------
    host : str
        The name of the machine, for messages.
    software : mapping
        The version of Python, thera and each package by its name.
    hardware : mapping
        The CPU's model and instructions, as `members.machine_facts.hardware_of` returns them.
    """

    host: str
    software: Mapping[str, str]
    hardware: Mapping[str, str]


@functools.cache
def facts_of_this_machine() -> MachineFacts:
    """Return the facts of the machine that this process runs on."""
    software = {"python": platform.python_version(), "thera": _version_of_thera(), **package_versions()}
    return MachineFacts(socket.gethostname(), software, hardware_of(torch.device("cpu")))


def _version_of_thera() -> str:
    """Return the version and the beginning of a hash of the source, which may differ within a version."""
    from ensemble import __version__

    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return f"{__version__} ({digest.hexdigest()[:8]})"


def refuse_unequal(machines: Sequence[MachineFacts], driver: MachineFacts | None = None) -> None:
    """Refuse machines that differ from the first one, because a member must have the same bits on all of them.

    Parameters
    ----------
    machines : sequence of MachineFacts
        The machines that compute.
    driver : MachineFacts, optional
        The machine that writes the results; only its versions have to be the same.

    Raises
    ------
    ResourceError
        A value differs. The message names all differences between two machines.
    """
    if not machines:
        return
    first = machines[0]
    others = [(each, {**each.software, **each.hardware}) for each in machines[1:]]
    if driver is not None:
        others.insert(0, (driver, {**first.hardware, **driver.software}))
    expected = {**first.software, **first.hardware}
    for machine, values in others:
        changed = [name for name in expected if values.get(name) != expected[name]]
        if changed:
            found = ", ".join(f"{name} is {expected[name]} and {values.get(name, 'missing')}" for name in changed)
            software = set(changed) & set(first.software)
            remedy = "install the same versions on all nodes" if software else "use nodes of one kind"
            raise ResourceError("--cluster", f"nodes {first.host} and {machine.host} differ: {found}", remedy)
