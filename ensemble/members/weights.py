"""Load the weights of a file into a timm network, also where another trainer put a prefix before their names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
        say(f"note: {printable(where)}: {_first(others)} without this prefix are not loaded")


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
    problems = [f"lacks {_first(lacking)}"] if lacking else []
    if differing:
        name = differing[0]
        shapes = f"{tuple(given[name].shape)}, not {tuple(expected[name].shape)}"
        problems.append(f"has {_first(differing)} in another shape ({shapes})")
    if unknown:
        problems.append(f"has {_first(unknown)} that the architecture lacks")
    if problems:
        raise ArtifactError(where, ", and ".join(problems), "give weights of this architecture")


def _first(names: list[str]) -> str:
    return printable(names[0]) + (f" and {len(names) - 1} more" if names[1:] else "")
