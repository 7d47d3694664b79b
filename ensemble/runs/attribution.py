"""What a member looks at, as numbers: `attribution/<member>.json`. It holds no image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ensemble.runs.artifacts import read_recorded, write_recorded

FOLDER = "attribution"
"""The folder of the maps in a run's folder."""

MAPS_AGAIN = "run: thera report --maps"
"""The remedy where a file of maps is damaged."""

Grid = tuple[tuple[float, ...], ...]
"""A value for each square of an image, row by row from the top."""


@dataclass(frozen=True)
class ClassMap:
    """The effect of each square on the logit of a class, as a mean over images of this class.

    Attributes
    ----------
    label : int
    images : int
    effects : Grid
        The mean fall of the class's logit where the square is covered: positive where the square speaks for the class.
    standard_errors : Grid
        Of these means, over the images; zero for one image.
    """

    label: int
    images: int
    effects: Grid
    standard_errors: Grid


@dataclass(frozen=True)
class ErrorMap:
    """The effect of each square on the logit of the class that an image was given wrongly.

    Attributes
    ----------
    id : str
    label, predicted : int
        The given label, and the class that the members predict instead.
    effects : Grid
        Positive where the square speaks for the predicted class.
    """

    id: str
    label: int
    predicted: int
    effects: Grid


@dataclass(frozen=True)
class MemberMaps:
    """What a member looks at, by fold models that were not trained on the images.

    Attributes
    ----------
    member : str
    requested : int
        The number of images of each class that was requested; there may be fewer.
    scale : float
        The standard deviation of the member's OOF logits within a fold, by which effects of different members become
        comparable. For more than two classes, that of the logits of the images' classes less the mean of the others.
    classes : tuple of ClassMap
    errors : tuple of ErrorMap
        Of the images on which all members together err most confidently, the most confident first.
    weights : mapping of str to str
        SHA-256 of the weights of each fold, by which the maps were computed.
    """

    member: str
    requested: int
    scale: float
    classes: tuple[ClassMap, ...]
    errors: tuple[ErrorMap, ...]
    weights: dict[str, str]


def maps_path(run: Path, member: str) -> Path:
    return run / FOLDER / f"{member}.json"


def write_maps(run: Path, maps: MemberMaps) -> None:
    """Write the maps of a member, and record their hash in `run.json`."""
    write_recorded(run, maps_path(run, maps.member), maps)


def read_maps(run: Path, member: str, weights: Mapping[str, str] | None = None) -> MemberMaps | None:
    """Return the maps of a member, once their hash is verified; None where there are none of these weights.

    Parameters
    ----------
    run : Path
        The run's folder.
    member : str
        The member's name.
    weights : mapping of str to str, optional
        SHA-256 of the weights of each fold that the maps must be of; by default any.

    Raises
    ------
    ArtifactError
        The file is damaged, or not the one that is recorded in `run.json`.
    """
    path = maps_path(run, member)
    if not path.exists():
        return None
    maps = read_recorded(run, path, MemberMaps, MAPS_AGAIN)
    return maps if weights is None or dict(weights) == maps.weights else None
