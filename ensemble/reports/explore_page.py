"""The page of `thera explore`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ensemble.explore_results import KINDS, SHOWN_EACH, ExploreResult, Finding
from ensemble.reports.explore_figures import explore_figures
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
from ensemble.reports.html import Card, Tile, data_uri, page
from ensemble.reports.thumbnails import mosaics, thumbnails

THUMBNAIL_BYTES, SAMPLE_BYTES = 600_000, 450_000
"""The most bytes of all thumbnails and of all samples. In a data URI they take a third more, so that a page stays below
2 MB with its figures."""

MOST_OF_A_GROUP = 4
"""The images that are shown of a group of copies."""

GROUPED = ("conflict", "identical", "near-identical")
"""The kinds of findings that are shown by groups."""


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
    encoded = thumbnails(result.pictures.thumbnails, THUMBNAIL_BYTES)
    uris = {key: data_uri(picture) for key, picture in encoded.items()}
    samples = mosaics(result.pictures.samples, SAMPLE_BYTES)
    tables = [count_table("Sizes in pixels", "width × height", result.sizes)]
    tables.append(count_table("Formats", "format", result.formats))
    if result.classes:
        tables.insert(0, count_table("Classes", "class", result.classes))
    return page(
        "explore.html",
        where=result.where,
        against_where=result.against_where,
        verdict=verdict(result),
        tiles=_tiles(result),
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


def _tiles(result: ExploreResult) -> list[Tile]:
    n = len({each.id for each in result.findings if each.set == "images"})
    tiles = [Tile("images", f"{result.images:,}")]
    if result.against_where:
        tiles.append(Tile("in the second set", f"{result.against:,}"))
    if result.classes:
        tiles.append(Tile("classes", str(len(result.classes))))
    tiles.append(Tile("pixels, as compared", f"{result.size[1]} × {result.size[0]}"))
    return [*tiles, Tile("images with findings", f"{n:,}")]


def _sections(result: ExploreResult, uris: Mapping[tuple[str, int], str]) -> Iterator[Section]:
    for kind in KINDS:
        findings = result.of_kind(kind)
        if findings:
            of_set, n = ("against", result.against) if kind == "overlap" else ("images", result.images)
            make = _group_cards if kind in GROUPED else _cards
            cards, shown = make(findings, uris)
            share = sum(each.set == of_set for each in findings) / max(n, 1)
            yield Section(kind, MEANINGS[kind], len(findings), len(findings) - shown, percent(share), cards)


def _cards(findings: Sequence[Finding], uris: Mapping[tuple[str, int], str]) -> tuple[tuple[Card, ...], int]:
    """Return a card for each of the first findings, with the image that it is a copy of, and the number of these."""
    cards = []
    for each in findings[:SHOWN_EACH]:
        images = [(each.id, (each.set, each.row)), (f"what {each.id} is a copy of", ("images", each.partner))]
        lines = [each.detail]
        if each.label:
            lines.append(f"label{' in the first set' if each.kind == 'overlap' else ''}: {each.label}")
        if each.set == "against" and each.kind != "overlap":
            lines.append("in the second set")
        cards.append(Card(_images(images, uris), each.id, tuple(lines)))
    return tuple(cards), len(cards)


def _group_cards(findings: Sequence[Finding], uris: Mapping[tuple[str, int], str]) -> tuple[tuple[Card, ...], int]:
    """Return a card for each group of copies among the first findings, and the number of findings on the cards.

    A group that is cut off after `SHOWN_EACH` findings is left out.
    """
    groups = [list(group) for _, group in groupby(findings[:SHOWN_EACH], key=lambda each: each.group)]
    if len(groups) > 1 and findings[SHOWN_EACH:] and findings[SHOWN_EACH].group == groups[-1][0].group:
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
