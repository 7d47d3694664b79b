"""`thera explore`: looks at images and labels before training, and writes a page and a table of what it finds."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ensemble.commands.checks import announce
from ensemble.commands.explore_findings import (
    ExploredSet,
    counts,
    damaged,
    duplicates,
    faulty,
    form_accuracy,
    odd_sizes,
    ordered,
    overlapping,
    size_of,
    table_of_findings,
)
from ensemble.data.source import open_source
from ensemble.errors import ConfigError, printable
from ensemble.explore_config import ExploreConfig
from ensemble.explore_results import KINDS, SHOWN_EACH, Count, ExplorePictures, ExploreResult, Finding
from ensemble.extras import refuse_missing
from ensemble.progress import Say, silent
from ensemble.reports.thumbnails import small
from ensemble.runs import files
from ensemble.runs.run import Run

if TYPE_CHECKING:
    from ensemble.data.dataset import Source
    from ensemble.data.quality import FileHeader

PAGE = "explore.html"

MARK = b"<title>thera explore"
"""What a page of this command contains near its beginning: such a file may be replaced."""

TABLE_HEADER = b"id,finding,detail,set,label,group\n"

COMPARED_SIZE = 128
"""The largest side in pixels to which images of different sizes are brought if no size is given."""

SHOWN_SAMPLES, LEAST_SAMPLES, MOST_SAMPLES = 480, 6, 48
"""The sample images on the page: of all classes together, and at least and at most of one class."""

THUMBNAIL = 64
"""The largest side of an image on the page, in pixels."""


def explore(config: ExploreConfig, say: Say = silent) -> ExploreResult:
    """Look at images before they are trained on, and write what is found to a page and a table.

    Images that cannot be read are findings and no errors. Images of different sizes are compared at one size.

    Parameters
    ----------
    config : ExploreConfig
    say : callable
        Receives notes and warnings, a line each.

    Raises
    ------
    DataError
        The images or labels cannot be listed, or no image can be read.
    ConfigError
        The page or the table would replace a file that this command did not write.
    """
    refuse_missing("train", "thera explore")
    page, table = _targets(config)
    source = open_source(
        config.images,
        config.labels,
        config.positive,
        config.follow_links,
        on_bad="skip",
        image_column=config.image_column,
        label_column=config.label_column,
        n_classes=config.classes,
    )
    announce(source, say)
    other = None
    if config.against is not None:
        other = open_source(
            config.against, follow_links=config.follow_links, find_labels=False, on_bad="skip", n_classes=config.classes
        )
        announce(other, say)
    with _pixel_folder(config.run) as store:
        result = _explored(config, source, other, store, page, table, say)
        from ensemble.reports.explore_page import explore_page  # matplotlib and jinja2 take seconds

        files.write_whole(table, table_of_findings(result.findings))
        files.write_whole(page, explore_page(result))
    say(f"the page is {printable(page)}; all findings are in {printable(table)}")
    return result


def _targets(config: ExploreConfig) -> tuple[Path, Path]:
    """Return the paths of the page and the table, if they may be written."""
    page = config.out or (config.run or Path()) / PAGE
    if page.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {printable(page)}", "must have the suffix .html", f"give {printable(page)}.html")
    table = page.with_suffix(".csv")
    for path, mark in ((page, MARK), (table, TABLE_HEADER)):
        if kind := files.irregular(path):
            raise ConfigError(f"--out {printable(path)}", f"is {kind}", "give the name of a new file")
        if path.exists() and not config.force:
            with open(path, "rb") as file:
                ours = mark in file.read(4096)
            if not ours:
                problem = "is there already, and thera explore did not write it"
                raise ConfigError(f"--out {printable(path)}", problem, "give the name of a new file, or --force")
    return page, table


@contextlib.contextmanager
def _pixel_folder(run: Path | None) -> Iterator[Path]:
    """Yield the folder for decoded images: that of the run, where they are kept, or a temporary one."""
    if run is not None:
        yield Run(run).pixels
        return
    with tempfile.TemporaryDirectory(prefix="thera-explore-") as folder:
        yield Path(folder)


def _explored(
    config: ExploreConfig, source: Source, other: Source | None, store: Path, page: Path, table: Path, say: Say
) -> ExploreResult:
    from ensemble.data.duplicates import copy_groups, find_copies, find_overlaps
    from ensemble.data.hashes import describe
    from ensemble.data.quality import find_faults, measure, read_headers
    from ensemble.data.store import load_dataset

    sources = [source] if other is None else [source, other]
    headers = [read_headers(each, config.exif == "apply") for each in sources]
    resize = config.resize or _common_side([header for of_set in headers for header in of_set if header is not None])
    if resize and not config.resize:
        say(f"note: the sizes of the images differ; they are compared at {resize} × {resize} pixels")
    sets = []
    for name, each, of_files in zip(("images", "against"), sources, headers, strict=False):
        data = load_dataset(each, store, resize, say=say, on_bad="skip", exif=config.exif)
        header_of = dict(zip(each.ids.tolist(), of_files, strict=True))
        of_rows = tuple(header_of[id_] for id_ in data.ids.tolist())
        sets.append(ExploredSet(name, data, of_rows, describe(data.pixels)))
    first = sets[0]
    findings = [finding for each in sets for finding in (*damaged(each), *odd_sizes(each))]
    for explored in sets:
        findings += faulty(explored, find_faults(measure(explored.data.pixels)))
    copies = find_copies(first.data.pixels, first.descriptors)
    findings += duplicates(first, copies, copy_groups(first.descriptors, copies))
    if other is not None:
        second = sets[1]
        overlaps = find_overlaps(first.data.pixels, first.descriptors, second.data.pixels, second.descriptors)
        findings += overlapping(first, second, overlaps)
    listed = ordered(findings)
    by_form, of_majority = form_accuracy(first) or (None, None)
    known = [header for header in first.headers if header is not None]
    return ExploreResult(
        where=source.where,
        images=len(first.data),
        size=first.data.size,
        resized=bool(resize) and not config.resize,
        classes=_class_counts(first),
        sizes=counts([size_of(header) for header in known]),
        formats=counts([header.format for header in known]),
        findings=listed,
        pictures=_pictures(sets, listed),
        page=page,
        table=table,
        form_accuracy=by_form,
        majority_share=of_majority,
        against_where="" if other is None else other.where,
        against=0 if other is None else len(sets[1].data),
        notes=tuple(note for each in sets for note in each.data.notes),
    )


def _common_side(headers: Sequence[FileHeader]) -> int | None:
    """Return the side to which images of different sizes are brought; None where all have the same size."""
    if len({(header.width, header.height) for header in headers}) <= 1:
        return None
    sides = [min(header.width, header.height) for header in headers]
    return int(min(max(float(np.median(sides)), 16), COMPARED_SIZE))


def _class_counts(of: ExploredSet) -> tuple[Count, ...]:
    """Count the images of each class, in the order of the labels."""
    if of.data.labels is None:
        return ()
    n = np.bincount(of.data.labels, minlength=max(2, len(of.data.classes or ())))
    names = of.data.classes or tuple(map(str, range(len(n))))
    return tuple(Count(name, count, count / len(of.data)) for name, count in zip(names, n.tolist(), strict=True))


# --- pictures ---------------------------------------------------------------------------------------------------------


def _pictures(sets: Sequence[ExploredSet], findings: Sequence[Finding]) -> ExplorePictures:
    from ensemble.data.pixel_maps import class_means, telling_pixels

    first = sets[0].data
    pixels_of = {each.name: each.data.pixels for each in sets}
    shown = {
        (finding.set, finding.row)
        for kind in KINDS
        for finding in [each for each in findings if each.kind == kind][:SHOWN_EACH]
        if finding.row is not None
    }
    shown |= {
        ("images", finding.partner)
        for kind in KINDS
        for finding in [each for each in findings if each.kind == kind][:SHOWN_EACH]
        if finding.partner is not None
    }
    thumbnails = {(name, row): np.array(small(pixels_of[name][row], THUMBNAIL)) for name, row in sorted(shown)}
    if first.labels is None:
        return ExplorePictures({"": _samples(first.pixels, np.arange(len(first)), MOST_SAMPLES)}, thumbnails=thumbnails)
    names = [count.name for count in _class_counts(sets[0])]
    each = min(max(SHOWN_SAMPLES // len(names), LEAST_SAMPLES), MOST_SAMPLES)
    samples = {
        name: _samples(first.pixels, rows, each)
        for label, name in enumerate(names)
        if (rows := np.flatnonzero(first.labels == label)).size
    }
    telling = telling_pixels(first.pixels, first.labels)
    means = class_means(first.pixels, first.labels, len(names))
    if telling is None:
        return ExplorePictures(samples, means, thumbnails=thumbnails)
    return ExplorePictures(samples, means, telling.scores, telling.chosen, telling.images, thumbnails)


def _samples(pixels: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` of the images of these rows, evenly spaced, made small."""
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))]
    return np.stack([small(pixels[row], THUMBNAIL) for row in chosen.tolist()])
