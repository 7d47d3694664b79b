"""Load the weights of a file into a timm network, also where another trainer put a prefix before their names."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ensemble.errors import ArtifactError, printable
from ensemble.progress import Say, silent


def load_weights(
    model: Any, head: nn.Module, weights: Mapping[str, torch.Tensor], where: str, say: Say = silent
) -> None:
    """Load all parameters and buffers of a network, its last layers only where they are there in the same shape.

    A prefix that all names of the network have in the file is removed, with a note: DataParallel writes `module.`,
    Lightning `model.`, MMPretrain `backbone.`. What the file holds outside the prefix is not loaded, with a note.

    Parameters
    ----------
    model : torch.nn.Module
    head : torch.nn.Module
        Its last layers.
    weights : mapping
        A state dict.
    where : str
        The file, for messages.
    say : callable
        Receives the notes.

    Raises
    ------
    ArtifactError
        A tensor of the network is missing, has another shape or holds a value that is not finite, or the file has
        tensors that the network lacks; the first of them is named.
    """
    expected = model.state_dict()
    of_head = {id(parameter) for parameter in head.parameters()}
    optional = {name for name, parameter in model.named_parameters() if id(parameter) in of_head}
    needed = [name for name in expected if name not in optional and not name.endswith("num_batches_tracked")]
    prefix = _prefix(weights, needed, where)
    given = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    _refuse_others(given, expected, needed, optional, where)
    loaded = {name: given[name] for name in expected if name in given and given[name].shape == expected[name].shape}
    for name, value in loaded.items():
        if not value.isfinite().all():
            raise ArtifactError(where, f"{name} has values that are not finite", "give weights without them")
    model.load_state_dict(loaded, strict=False)
    if prefix:
        say(f"note: {printable(where)}: the prefix {printable(prefix)} of its keys is removed")
    if others := [key for key in weights if not key.startswith(prefix)]:
        say(f"note: {printable(where)}: {first_of(others)} without this prefix are not loaded")


def _prefix(keys: Collection[str], needed: list[str], where: str) -> str:
    """Return the prefix with which most of the needed names are keys."""
    prefixes = {key.removesuffix(needed[0]) for key in keys if key.endswith(f".{needed[0]}")} | {""}
    fits = {prefix: sum(prefix + name in keys for name in needed) for prefix in sorted(prefixes)}
    complete = [printable(prefix) or "none" for prefix, n in fits.items() if n == len(needed)]
    if len(complete) > 1:
        problem = f"holds the weights several times, with the prefixes {', '.join(complete)}"
        raise ArtifactError(where, problem, "give a file with one of them")
    return max(fits, key=lambda prefix: fits[prefix])


def _refuse_others(
    given: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    needed: list[str],
    optional: Collection[str],
    where: str,
) -> None:
    """Raise an ArtifactError unless the given tensors are those of the network, apart from its last layers."""
    layers = {name.partition(".")[0] for name in optional}
    lacking = [name for name in needed if name not in given]
    unknown = [name for name in given if name not in expected and name.partition(".")[0] not in layers]
    differing = [name for name in needed if name in given and given[name].shape != expected[name].shape]
    problems = [f"lacks {first_of(lacking)}"] if lacking else []
    if differing:
        name = differing[0]
        shapes = f"{tuple(given[name].shape)}, not {tuple(expected[name].shape)}"
        problems.append(f"has {first_of(differing)} in another shape ({shapes})")
    if unknown:
        problems.append(f"has {first_of(unknown)} that the architecture lacks")
    if problems:
        raise ArtifactError(where, ", and ".join(problems), "give weights of this architecture")


def first_of(names: list[str]) -> str:
    """Return the first of some names, and how many more there are."""
    return printable(names[0]) + (f" and {len(names) - 1} more" if names[1:] else "")


# --- what timm loads --------------------------------------------------------------------------------------------------


def misfit(error: Exception) -> str:
    """Return which tensors of a file do not fit a network, read from the error of `load_state_dict`; "" for others."""
    text = str(error)
    if "Error(s) in loading state_dict" not in text:
        return ""
    shapes = re.findall(r"size mismatch for (\S+): .*?torch\.Size\(\[(.*?)\]\).*?torch\.Size\(\[(.*?)\]\)", text)
    lists = {
        kind: re.findall(r'"([^"]+)"', names) for kind, names in re.findall(r"(Missing|Unexpected) key.*?:(.*)", text)
    }
    problems = [f"lacks {first_of(lists['Missing'])}"] if lists.get("Missing") else []
    if shapes:
        _, given, expected = shapes[0]
        names = [name for name, _, _ in shapes]
        problems.append(f"has {first_of(names)} in another shape (({given}), not ({expected}))")
    if lists.get("Unexpected"):
        problems.append(f"has {first_of(lists['Unexpected'])} that the architecture lacks")
    return ", and ".join(problems)


@contextlib.contextmanager
def unloaded_names() -> Iterator[list[str]]:
    """Collect the names of the tensors that timm does not load from a file of pretrained weights and leaves random.

    timm loads a file strictly only where its number of classes is that of the network. Else it notes the missing names
    in its log, at a level that is not shown, and returns the network.
    """
    names, log, owner = list[str](), logging.getLogger("timm.models._builder"), threading.get_ident()
    level, shown = log.level, log.getEffectiveLevel()

    def read(record: logging.LogRecord) -> bool:
        found = re.match(r"Missing keys \((.*?)\)", record.getMessage())
        if found and record.thread == owner:
            names.extend(found[1].split(", "))
        return record.levelno >= shown

    log.addFilter(read)
    log.setLevel(logging.INFO)
    try:
        yield names
    finally:
        log.setLevel(level)
        log.removeFilter(read)
