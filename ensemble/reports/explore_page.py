"""The page of `thera explore`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ensemble.explore_results import KINDS, SHOWN_EACH, ExploreResult, Finding
from ensemble.reports.explore_figures import explore_figures, mosaics, thumbnails
from ensemble.reports.explore_tables import (
    MEANINGS,
    Meaning,
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

MOST_GROUPS = 12
"""The groups of copies that are shown of a kind."""


@dataclass(frozen=True)
class Card:
    """A finding on the page: `images` as pairs of an alternative text and a data URI, the `name`, and `lines`."""

    images: tuple[tuple[str, str], ...]
    name: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """The findings of a kind: how many there are, what they mean, and the first of them as cards."""

    kind: str
    meaning: Meaning
    count: int
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
    numbers.append((f"{len({(each.set, each.id) for each in result.findings}):,}", "images with findings"))
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
        findings=findings_table(result),
        samples=[(name, len(result.pictures.samples[name]), data_uri(picture)) for name, picture in samples.items()],
        figures=explore_figures(result),
        sections=list(_sections(result, uris)),
        notes=data_notes(result),
        table_name=result.table.name,
    )


def _sections(result: ExploreResult, uris: dict[tuple[str, int], str]) -> Iterator[Section]:
    for kind in KINDS:
        found = result.of_kind(kind)
        if found:
            n = result.against if kind == "overlap" else result.images
            cards = tuple(_card(each, uris) for each in found[:SHOWN_EACH])
            yield Section(kind, MEANINGS[kind], len(found), percent(len(found) / max(n, 1)), cards)


def _card(finding: Finding, uris: dict[tuple[str, int], str]) -> Card:
    keys = [(finding.set, finding.row), ("images", finding.partner)]
    alts = (finding.id, f"what {finding.id} is a copy of")
    images = tuple((alt, uris[key]) for alt, key in zip(alts, keys, strict=True) if key in uris)  # type: ignore[index]
    lines = [finding.detail]
    if finding.label:
        lines.insert(0, f"label {finding.label}" if finding.kind != "overlap" else f"label in the first set: {finding.label}")
    if finding.group is not None:
        lines.append(f"group {finding.group}")
    if finding.set == "against" and finding.kind != "overlap":
        lines.append("in the second set")
    return Card(images, finding.id, tuple(lines))
