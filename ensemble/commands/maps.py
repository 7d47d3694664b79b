"""What the members look at (`thera report --maps`): computed where weights and images are there, read elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ensemble.commands.checks import check_device
from ensemble.commands.training_images import training_pixels
from ensemble.config import MemberConfig, seed_sequence
from ensemble.data.folds import FoldTable
from ensemble.decision.threshold import fit_threshold
from ensemble.errors import ArtifactError, printable
from ensemble.progress import Bar, Say, progress, silent
from ensemble.report_config import ReportConfig
from ensemble.reports.attribution_figures import Attribution
from ensemble.runs.attribution import ClassMap, ErrorMap, Grid, MemberMaps, write_maps
from ensemble.runs.member import MemberFolder
from ensemble.runs.run import Run, RunFacts

if TYPE_CHECKING:
    from ensemble.members.inference import FoldModels

GRID = 8
"""Squares along each side of an image, whatever its size: of 64 pixels, a square has 8 × 8. Half of the side would show
where a face is, not which part of it; each doubling takes four times as long."""

ERRORS = 12
"""The number of images on which the members err most confidently that get a map of their own."""

DECIMALS = 5
"""Decimals of the effects, as of the logits that they are differences of."""


def read_attribution(
    run: Run, members: Sequence[MemberFolder], table: FoldTable, pixels: np.ndarray | None, say: Say = silent
) -> Attribution:
    """Return the maps of the members that have maps of their present weights.

    Damaged maps are left out with a warning: they are only drawn. Without the decoded images, `pixels` (n, H, W, 3),
    they have no pictures.
    """
    maps = tuple(each for member in members if (each := _maps(run, member, say)) is not None)
    if pixels is None or not maps:
        return Attribution(maps)
    from ensemble.data.pixel_maps import mean_image

    of_class = {each.label: np.flatnonzero(table.labels == each.label) for each in maps[0].classes}
    row_of = {id_: row for row, id_ in enumerate(table.ids.tolist())}
    shown = {error.id for each in maps for error in each.errors} & row_of.keys()
    means = {label: mean_image(pixels, rows) for label, rows in of_class.items()}
    return Attribution(maps, means, {id_: np.asarray(pixels[row_of[id_]]) for id_ in shown})


def _maps(run: Run, member: MemberFolder, say: Say) -> MemberMaps | None:
    try:
        return run.attribution(member.name)
    except ArtifactError as error:
        say(f"warning: {printable(error)}")
        return None


def compute_maps(run: Run, members: Sequence[MemberFolder], config: ReportConfig, say: Say = silent) -> None:
    """Compute what the members look at, and write it; maps of the same weights and images are kept.

    Every image is shown to the fold model that was not trained on it. The maps of a class are means over images, drawn
    at random, that the member assigns to their class; those of errors are of the images on which all members together
    err most confidently. What is missing is said in one line each.

    Parameters
    ----------
    run : Run
    members : sequence of MemberFolder
        Those whose folds are all finished.
    config : ReportConfig
    say : callable

    Raises
    ------
    ConfigError
        There is no such device.
    ArtifactError
        Weights are damaged.
    """
    check_device(config.device)
    facts, table = run.read(), run.read_folds()
    able = []
    for member in members:
        absent = [fold for fold in range(table.k) if not (member.fold(fold) / "weights.safetensors").exists()]
        if absent:
            folds = f"fold{'s' * (len(absent) > 1)} {', '.join(map(str, absent))}"
            say(f"note: no maps of member {member.name}: the weights of {folds} are missing")
        else:
            able.append(member)
    if not able:
        return
    chosen = _choose(run, members, table, facts, config.map_images)
    due = [member for member in able if not _is_current(_maps(run, member, say), table.ids[chosen.errors], config)]
    if not due:
        say("note: the maps are there already, computed from the same weights and images")
        return
    pixels = training_pixels(run, facts, table, say)
    if isinstance(pixels, str):
        say(f"note: no maps: {pixels}")
        return
    _compute(run, due, table, facts, chosen, pixels, config, say)


# --- which images -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chosen:
    """The rows of the images to show.

    Attributes
    ----------
    of_class : mapping of str to list of int arrays
        For each member, the rows of each class, sorted.
    scale : mapping of str to float
        As `MemberMaps.scale`.
    errors : int array (e,)
        The most confident error first.
    predicted : int array (e,)
        The class that the members predict instead.
    """

    of_class: Mapping[str, list[np.ndarray]]
    scale: Mapping[str, float]
    errors: np.ndarray
    predicted: np.ndarray


def _choose(run: Run, members: Sequence[MemberFolder], table: FoldTable, facts: RunFacts, images: int) -> _Chosen:
    from ensemble.members.attribution import class_logits

    by_view = run.oof_logits([member.name for member in members], table)
    logits = by_view[:, :, 0]  # (n, m[, C]), without the mirror image
    labels, classes = table.labels, facts.class_count
    every = np.arange(len(labels))
    support = np.zeros((len(labels), classes))  # mean over members; the greatest gives the class
    of_class, scale = dict[str, list[np.ndarray]](), dict[str, float]()
    for column, member in enumerate(members):
        z = logits[:, column]
        if classes == 2:
            z = z - fit_threshold(z, labels)
            by_class = np.stack([-z, z], axis=1)
        else:
            by_class = z
        spread = _spread_within_folds(class_logits(z, labels) if classes > 2 else z, table.fold_of)
        support += by_class / spread / len(members)
        right = by_class.argmax(axis=1) == labels
        drawn = []
        for label in range(classes):
            rng = np.random.default_rng(seed_sequence(facts.seed, "maps", label))
            drawn.append(np.sort(rng.permutation(np.flatnonzero(right & (labels == label)))[:images]))
        of_class[member.name], scale[member.name] = drawn, spread
    of_label = support[every, labels]
    others = support.copy()
    others[every, labels] = -np.inf
    predicted = others.argmax(axis=1)
    margin = of_label - others[every, predicted]
    worst = np.argsort(margin, kind="stable")[:ERRORS]
    errors = worst[margin[worst] < 0]
    return _Chosen(of_class, scale, errors, predicted[errors])


def _spread_within_folds(logits: np.ndarray, fold_of: np.ndarray) -> float:
    """Return the standard deviation of logits (n,) about the mean of their fold; 1 where they are constant.

    Fold models may differ by an offset, which is no measure of what changes a logit.
    """
    of_folds = [logits[fold_of == fold] for fold in np.unique(fold_of)]
    squares = sum(float(np.square(each - each.mean()).sum()) for each in of_folds)
    return float(np.sqrt(squares / len(logits))) or 1.0


def _is_current(maps: MemberMaps | None, errors: np.ndarray, config: ReportConfig) -> bool:
    """Return whether maps of the present weights are of these images."""
    return (
        maps is not None
        and maps.requested == config.map_images
        and [error.id for error in maps.errors] == errors.tolist()
    )


# --- the maps ---------------------------------------------------------------------------------------------------------


def _compute(
    run: Run,
    members: Sequence[MemberFolder],
    table: FoldTable,
    facts: RunFacts,
    chosen: _Chosen,
    pixels: np.ndarray,
    config: ReportConfig,
    say: Say,
) -> None:
    from ensemble.data.pixel_maps import mean_image
    from ensemble.members.attribution import passes
    from ensemble.members.devices import choose_device
    from ensemble.members.inference import FoldModels, NetworkSpec
    from ensemble.members.plans import REFERENCE
    from ensemble.members.processes import keep_freed_memory

    device, mean, grid = choose_device(config.device), mean_image(pixels), min(GRID, *facts.size)
    images = sum(sum(map(len, chosen.of_class[member.name])) + len(chosen.errors) for member in members)
    keep_freed_memory()
    with progress(passes(images, grid), "maps", "images") as bar:
        for member in members:
            stored = member.read()
            spec = MemberConfig.model_validate(stored.current_config | {"pretrained": False, "weights": None})
            models = FoldModels(NetworkSpec(spec, facts.size[0], REFERENCE, device, facts.class_count))
            rows = np.concatenate([*chosen.of_class[member.name], chosen.errors])
            classes = np.concatenate(
                [np.full(len(each), label) for label, each in enumerate(chosen.of_class[member.name])]
                + [chosen.predicted]
            )
            effects = _effects(member, models, table, pixels, mean, grid, rows, classes, bar)
            write_maps(run.folder, _record(member, table, chosen, effects, config.map_images))


def _effects(
    member: MemberFolder,
    models: FoldModels,
    table: FoldTable,
    pixels: np.ndarray,
    mean: np.ndarray,
    grid: int,
    rows: np.ndarray,
    classes: np.ndarray,
    bar: Bar,
) -> np.ndarray:
    """Return the effects (r, grid, grid) on the logits of the classes, each by the fold model that held the row out."""
    from ensemble.members.attribution import occlusion

    effects = np.empty((len(rows), grid, grid))
    for fold in range(table.k):
        inside = np.flatnonzero(table.fold_of[rows] == fold)
        if inside.size:
            network = models.network(member.read_weights(fold))
            shown = np.asarray(pixels[rows[inside]])
            effects[inside] = occlusion(network, shown, classes[inside], mean, grid, models.device, bar)
    return effects


def _record(member: MemberFolder, table: FoldTable, chosen: _Chosen, effects: np.ndarray, requested: int) -> MemberMaps:
    parts = [len(rows) for rows in chosen.of_class[member.name]]
    *of_class, of_errors = np.split(effects, np.cumsum(parts))
    classes = tuple(
        ClassMap(label, len(each), _grid(each.mean(axis=0)), _grid(_standard_error(each)))
        for label, each in enumerate(of_class)
        if len(each)
    )
    errors = tuple(
        ErrorMap(str(table.ids[row]), int(table.labels[row]), int(predicted), _grid(each))
        for row, predicted, each in zip(chosen.errors, chosen.predicted, of_errors, strict=True)
    )
    weights = {fold: facts.weights_sha256 for fold, facts in member.read().folds.items()}
    return MemberMaps(member.name, requested, float(f"{chosen.scale[member.name]:.6g}"), classes, errors, weights)


def _standard_error(effects: np.ndarray) -> np.ndarray:
    n = len(effects)
    error: np.ndarray = effects.std(axis=0, ddof=1) / np.sqrt(n) if n > 1 else np.zeros(effects.shape[1:])
    return error


def _grid(values: np.ndarray) -> Grid:
    return tuple(tuple(round(float(value), DECIMALS) for value in row) for row in values)
