"""The page of `thera explore`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ensemble.explore_results import KINDS, SHOWN_EACH, ExploreResult, Finding
from ensemble.reports.explore_figures import explore_figures, mosaics, thumbnails
from ensemble.reports.explore_tables import (
    MEANINGS,
    Meaning,
    absent,
    count_table,
    data_notes,
    findings_table,
    percent,
    verdict,
    warnings,
)
from ensemble.reports.html import data_uri, page

THUMBNAIL_BYTES, SAMPLE_BYTES = 600_000, 450_000
"""The most bytes of all thumbnails and of all samples. In a data URI they take a third more, so that a page stays below
2 MB with its figures."""

MOST_OF_A_GROUP = 4
"""The images that are shown of a group of copies."""

GROUPED = ("conflict", "identical", "near-identical")
"""The kinds of findings that are shown by groups."""


@dataclass(frozen=True)
class Card:
    """A finding on the page: `images` as pairs of an alternative text and a data URI, the `name`, and `lines`."""

    images: tuple[tuple[str, str], ...]
    name: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """The findings of a kind: how many there are, how many are not shown, what they mean, and the others as cards."""

    kind: str
    meaning: Meaning
    count: int
    hidden: int
    share: str
    cards: tuple[Card, ...]


def explore_page(result: ExploreResult) -> bytes:
    """Return the page as HTML, of less than 2 MB."""
    small = thumbnails(result.pictures.thumbnails, THUMBNAIL_BYTES)
    uris = {key: data_uri(picture) for key, picture in small.items()}
    samples = mosaics(result.pictures.samples, SAMPLE_BYTES)
    numbers = [(f"{result.images:,}", "images"), (f"{result.size[1]} × {result.size[0]}", "pixels, as compared")]
    if result.classes:
        numbers.append((str(len(result.classes)), "classes"))
    if result.against_where:
        numbers.append((f"{result.against:,}", "images in the second set"))
    n = len({each.id for each in result.findings if each.set == "images"})
    numbers.append((f"{n:,}", "images with findings"))
    tables = [count_table("Sizes in pixels", "width × height", result.sizes)]
    tables.append(count_table("Formats", "format", result.formats))
    if result.classes:
        tables.insert(0, count_table("Classes", "class", result.classes))
    return page(
        "explore.html",
        where=result.where,
        against_where=result.against_where,
        verdict=verdict(result),
        numbers=numbers,
        warnings=warnings(result),
        tables=tables,
        findings=findings_table(result, full=False),
        absent=absent(result),
        samples=[(name, len(result.pictures.samples[name]), data_uri(picture)) for name, picture in samples.items()],
        figures=explore_figures(result),
        sections=list(_sections(result, uris)),
        notes=data_notes(result),
        table_name=result.table.name,
    )


def _sections(result: ExploreResult, uris: Mapping[tuple[str, int], str]) -> Iterator[Section]:
    for kind in KINDS:
        found = result.of_kind(kind)
        if found:
            n = result.against if kind == "overlap" else result.images
            make = _group_cards if kind in GROUPED else _cards
            cards, shown = make(found[:SHOWN_EACH], uris)
            yield Section(kind, MEANINGS[kind], len(found), len(found) - shown, percent(len(found) / max(n, 1)), cards)


def _cards(found: Sequence[Finding], uris: Mapping[tuple[str, int], str]) -> tuple[tuple[Card, ...], int]:
    """Return a card for each finding, with the image that it is a copy of, and the number of findings that it shows."""
    cards = []
    for each in found:
        shown = [(each.id, (each.set, each.row)), (f"what {each.id} is a copy of", ("images", each.partner))]
        lines = [each.detail]
        if each.label:
            lines.append(f"label{' in the first set' if each.kind == 'overlap' else ''}: {each.label}")
        if each.set == "against" and each.kind != "overlap":
            lines.append("in the second set")
        cards.append(Card(_images(shown, uris), each.id, tuple(lines)))
    return tuple(cards), len(cards)


def _group_cards(found: Sequence[Finding], uris: Mapping[tuple[str, int], str]) -> tuple[tuple[Card, ...], int]:
    """Return a card for each group of copies. A group that is cut off by the number of findings is left out."""
    groups = [list(group) for _, group in groupby(found, key=lambda each: each.group)]
    if len(found) == SHOWN_EACH and len(groups) > 1:
        groups.pop()
    cards, shown = [], 0
    for group in groups:
        pictured = group[:MOST_OF_A_GROUP]
        lines = [f"{each.id}{f', label {each.label}' if each.label else ''}: {each.detail}" for each in pictured]
        images = _images([(each.id, (each.set, each.row)) for each in pictured], uris)
        cards.append(Card(images, f"Group {group[0].group}", tuple(lines)))
        shown += len(pictured)
    return tuple(cards), shown


def _images(
    shown: Sequence[tuple[str, tuple[str, int | None]]], uris: Mapping[tuple[str, int], str]
) -> tuple[tuple[str, str], ...]:
    return tuple((alt, uris[set_, row]) for alt, (set_, row) in shown if row is not None and (set_, row) in uris)
