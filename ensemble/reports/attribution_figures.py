"""The figures of what the members look at: heat maps by class, and of the images on which they err most confidently."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.reports.html import Figure
from ensemble.reports.svg import picture, short
from ensemble.runs.attribution import ErrorMap, MemberMaps

COLOURS = "PuOr_r"
"""The colours of effects, from purple (against the class) over white to orange (for it). Colour-blind readers can tell
its ends apart."""

PANELS_IN_A_ROW, ERROR_PANELS_IN_A_ROW = 4, 8
"""The most panels beside each other: heat maps of classes, and those of errors, which have the whole width."""

PANEL, LEAST_PANEL = 2.1, 1.5
"""The side of a heat map in inches where two stand in a row, and where more do: the page has room for 7 inches."""

WRITTEN = 0.3
"""Effects of at least this share of the figure's largest are written into their squares; more numbers hide the map."""

LEAST_END = 0.05
"""The least end of the colours, in standard deviations of the logits: smaller effects are pale, they decide nothing."""


LONGEST_TITLE = 18
"""The number of characters of an id or a name that fit above a heat map."""


@dataclass(frozen=True, eq=False)
class Attribution:
    """The maps of a run's members, with pictures of the images where the decoded images are there.

    Attributes
    ----------
    members : tuple of MemberMaps
        In the order of the members.
    means : mapping of int to uint8 array (H, W, 3)
        The mean image of each class; empty where the decoded images are not there.
    images : mapping of str to uint8 array (H, W, 3)
        The images of the error maps by id; empty where the decoded images are not there.
    """

    members: tuple[MemberMaps, ...]
    means: Mapping[int, NDArray[np.uint8]] = field(default_factory=dict)
    images: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Panel:
    """A heat map, its title, and the image below it, if there is one."""

    title: str
    values: NDArray[np.float64]
    image: NDArray[np.uint8] | None = None


def attribution_figures(attribution: Attribution, names: Sequence[str]) -> tuple[Figure, ...]:
    """Return the heat maps: a figure for each class, or one of all classes for a single member, and one of errors.

    Effects are in standard deviations of a member's OOF logits, so that those of different members can be compared.
    Where `attribution` has no pictures, the figures show nothing that is derived from an image.

    Parameters
    ----------
    attribution : Attribution
    names : sequence of C str
        The names of the classes.

    Returns
    -------
    tuple of Figure
        Empty where no member has maps.
    """
    members = attribution.members
    if not members:
        return ()
    panels = [
        (each.label, member, _Panel("", np.array(each.effects) / member.scale, attribution.means.get(each.label)))
        for member in members
        for each in member.classes
    ]
    largest = _largest(panel for _, _, panel in panels)
    if len(members) == 1:
        titled = [_Panel(f"label {names[label]}", panel.values, panel.image) for label, _, panel in panels]
        of_classes = [_class_figure(f"What {members[0].member} looks at", "the label", titled, members, largest)]
    else:
        of_classes = [
            _class_figure(
                f"What the members look at in images of label {name}",
                f"label {name}",
                [_Panel(member.member, panel.values, panel.image) for of, member, panel in panels if of == label],
                members,
                largest,
            )
            for label, name in enumerate(names)
            if any(of == label for of, _, _ in panels)
        ]
    errors = _error_figure(attribution, names)
    return (*of_classes, *(() if errors is None else (errors,)))


def _class_figure(
    title: str, of: str, panels: Sequence[_Panel], members: Sequence[MemberMaps], largest: float
) -> Figure:
    """Return the heat maps of a class; `largest` is the end of the colours, which all classes share."""
    images = max(each.images for member in members for each in member.classes)
    beside = " over the mean image of the class" if any(panel.image is not None for panel in panels) else ""
    return Figure(
        title,
        f"Orange squares speak for {of} and purple ones against it: a number is the mean fall of its logit where the "
        f"square is covered with the mean image, in standard deviations of the member's logits (at most {images} "
        "images of a class, each by the fold model that was not trained on it).",
        f"Heat maps of the squares of an image{beside}. " + " ".join(_in_words(panel) for panel in panels),
        picture(
            lambda figure: _draw(figure, [[panel] for panel in panels], PANELS_IN_A_ROW, largest),
            _size(len(panels), 1),
        ),
    )


def _error_figure(attribution: Attribution, names: Sequence[str]) -> Figure | None:
    shared = _shared_errors(attribution.members)
    if not shared:
        return None
    groups = []
    for error in shared:
        values = np.mean([_effects(member, error.id) for member in attribution.members], axis=0)
        text = f"label {names[error.label]}, predicted {names[error.predicted]}"
        image = attribution.images.get(error.id)
        heat = _Panel(f"{short(error.id, LONGEST_TITLE)}\n{short(text, 2 * LONGEST_TITLE)}", values)
        groups.append([heat] if image is None else [heat, _Panel("", np.zeros((0, 0)), image)])
    width = max(map(len, groups))
    in_a_row = ERROR_PANELS_IN_A_ROW // width
    return Figure(
        "What the members look at where they err most confidently",
        "Orange squares speak for the predicted class, which is not the label: look there for what misled the members, "
        "or for what shows that the label is wrong; where a map has no colours, no single square decides (mean over "
        "the members, in standard deviations of their logits).",
        f"Heat maps of the {len(shared)} most confident error{'s' * (len(shared) > 1)}"
        + (", each beside its image. " if width > 1 else ". ")
        + " ".join(_in_words(group[0]) for group in groups),
        picture(
            lambda figure: _draw(figure, groups, in_a_row, _largest(panel for group in groups for panel in group)),
            _size(len(groups), width, in_a_row, titles=2),
        ),
        wide=True,
    )


def _shared_errors(members: Sequence[MemberMaps]) -> list[ErrorMap]:
    """Return the errors of which each member has a map, in the order of the first."""
    known = [{(error.id, error.predicted) for error in member.errors} for member in members]
    return [error for error in members[0].errors if all((error.id, error.predicted) in each for each in known)]


def _effects(member: MemberMaps, id_: str) -> NDArray[np.float64]:
    (effects,) = [error.effects for error in member.errors if error.id == id_]
    return np.array(effects) / member.scale


def _size(groups: int, width: int, in_a_row: int = PANELS_IN_A_ROW, titles: int = 1) -> tuple[float, float]:
    """Return the size in inches of groups of so many panels each; the colour bar takes 0.9 inches."""
    columns, rows = max(2, min(groups, in_a_row) * width), math.ceil(groups / in_a_row)
    panel = PANEL if columns == 2 else LEAST_PANEL
    return columns * panel + 0.9, rows * (panel + 0.1 + 0.15 * titles)


def _largest(panels: Iterable[_Panel]) -> float:
    return max([LEAST_END, *(float(np.abs(panel.values).max()) for panel in panels if panel.values.size)])


def _draw(figure: Any, groups: Sequence[Sequence[_Panel]], in_a_row: int, largest: float) -> None:
    """Draw groups of panels; panels of a group stand side by side, the image without heat map last."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    width, columns = max(map(len, groups)), min(len(groups), in_a_row)
    shades = ScalarMappable(Normalize(-largest, largest), matplotlib.colormaps[COLOURS])
    grid = figure.subplots(math.ceil(len(groups) / in_a_row), max(2, columns * width), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, group in enumerate(groups):
        row, first = index // in_a_row, index % in_a_row * width
        for column, panel in enumerate(group):
            _draw_panel(grid[row, first + column], panel, shades, largest, numbers=width == 1 and largest > LEAST_END)
    bar = figure.colorbar(shades, ax=list(grid.flat), shrink=max(0.25, 0.8 / len(grid)))
    bar.set_label("fall of the logit, in sd", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _draw_panel(axes: Any, panel: _Panel, shades: Any, largest: float, numbers: bool) -> None:
    down, across = panel.values.shape if panel.values.size else (1, 1)
    extent = (0, across, down, 0)
    axes.set_title(panel.title, fontsize=8, loc="left", pad=3)
    if panel.image is not None:
        # under a heat map in grey, so that colours are those of the effects alone
        shown = panel.image if not panel.values.size else np.repeat(_grey(panel.image)[..., None], 3, axis=2)
        axes.imshow(shown, extent=extent, interpolation="none")
    if not panel.values.size:
        return
    colours = shades.to_rgba(panel.values)
    if panel.image is not None:
        colours[..., 3] = 0.15 + 0.75 * np.abs(panel.values) / largest
    axes.imshow(colours, extent=extent, interpolation="none")
    for line in range(1, down):
        axes.axhline(line, color="white", lw=0.4)
    for line in range(1, across):
        axes.axvline(line, color="white", lw=0.4)
    axes.add_patch(_frame(across, down))
    for (row, column), value in np.ndenumerate(panel.values):
        if numbers and abs(value) >= WRITTEN * largest:
            ink = "white" if abs(value) > 0.75 * largest else "black"
            axes.text(column + 0.5, row + 0.5, _number(value), ha="center", va="center", fontsize=5, color=ink)


def _number(value: float) -> str:
    """Return an effect with its sign, short enough for a square.

    >>> _number(0.234), _number(-1.26)
    ('+.23', '-1.3')
    """
    return f"{value:+.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:+.1f}"


def _frame(width: int, height: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((0, 0), width, height, fill=False, edgecolor="#6e7781", lw=0.8)


def _grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(np.round(image.mean(axis=2)), np.uint8)


def _in_words(panel: _Panel) -> str:
    """Return the square of a heat map that has the largest effect, in words."""
    row, column = np.unravel_index(int(np.abs(panel.values).argmax()), panel.values.shape)
    title = panel.title.replace("\n", ", ")
    return f"{title}: {panel.values[row, column]:+.2f} in row {row + 1}, column {column + 1}."
