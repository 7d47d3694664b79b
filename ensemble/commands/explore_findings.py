"""The findings of `thera explore`: which images are remarkable, why, and in what order they are listed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ensemble.errors import printable
from ensemble.explore_results import KINDS, Count, Finding
from ensemble.runs import files

if TYPE_CHECKING:
    from ensemble.data.dataset import Dataset
    from ensemble.data.duplicates import Copies
    from ensemble.data.hashes import Descriptors
    from ensemble.data.quality import Fault, FileHeader

COMMON_SHARE = 0.9
"""The share of the images that have the most frequent size above which the others are listed."""


@dataclass(frozen=True)
class ExploredSet:
    """One set of images, decoded and described.

    Attributes
    ----------
    name : {"images", "against"}
    data : Dataset
    headers : tuple of FileHeader or None
        Of the file of each row of `data`.
    descriptors : Descriptors
    """

    name: str
    data: Dataset
    headers: tuple[FileHeader | None, ...]
    descriptors: Descriptors

    @property
    def labels(self) -> list[str]:
        """The name of the class of each row; empty without labels."""
        if self.data.labels is None:
            return [""] * len(self.data)
        classes = self.data.classes or tuple(map(str, range(int(self.data.labels.max(initial=0)) + 1)))
        return [classes[label] for label in self.data.labels.tolist()]


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings in the order of `KINDS`, those of the first set first; else they stay as they are."""
    return tuple(sorted(findings, key=lambda each: (KINDS.index(each.kind), each.set != "images")))


def damaged(of: ExploredSet) -> list[Finding]:
    """List the images that cannot be read, with the reason."""
    return [Finding(each.name, "damaged", printable(each.reason), of.name) for each in of.data.bad]


def faulty(of: ExploredSet, faults: Iterable[Fault]) -> list[Finding]:
    """List the images that may be faulty."""
    ids, labels = of.data.ids.tolist(), of.labels
    return [
        Finding(ids[fault.row], fault.kind, fault.detail, of.name, labels[fault.row], row=fault.row) for fault in faults
    ]


def odd_sizes(of: ExploredSet) -> list[Finding]:
    """List the images of another size, where nearly all images have the same one."""
    sizes = Counter(size_of(header) for header in of.headers)
    (common, count), *others = sizes.most_common() or [("", 0)]
    if not others or count < COMMON_SHARE * len(of.data):
        return []
    ids, labels = of.data.ids.tolist(), of.labels
    return [
        Finding(ids[row], "size", f"{size_of(header)} pixels; most images have {common}", of.name, labels[row], row=row)
        for row, header in enumerate(of.headers)
        if size_of(header) != common
    ]


def duplicates(of: ExploredSet, copies: Copies, units: np.ndarray) -> list[Finding]:
    """List the images that have copies, group by group; those of a group with different labels once more.

    Parameters
    ----------
    of : ExploredSet
    copies : Copies
    units : int64 array (n,)
        The group of each row, see `data.duplicates.copy_groups`.
    """
    ids, labels = list(map(printable, of.data.ids.tolist())), of.labels
    partners = _partners(copies)
    same = np.unique(of.descriptors.digests, return_inverse=True, return_counts=True)
    identical_images = same[2][same[1]]  # (n,), with the image itself
    first_of_pixels: dict[int, int] = {}
    groups: dict[int, list[int]] = {}
    members = np.flatnonzero(np.bincount(units, minlength=len(units))[units] > 1)
    for row in members.tolist():
        groups.setdefault(int(units[row]), []).append(row)
    findings = []
    for number, rows in enumerate(groups.values(), 1):
        differ = of.data.labels is not None and len({labels[row] for row in rows}) > 1
        for row in rows:
            first = first_of_pixels.setdefault(int(same[1][row]), row)
            if identical_images[row] > 1:
                kind, partner = "identical", first if first != row else None
                detail = f"has the pixels of {ids[first]}" if first != row else "first of its group"
            else:
                kind, (partner, how) = "near-identical", partners[row]
                detail = f"{how[0]} {ids[partner]} ({how[1]})"
            finding = Finding(str(of.data.ids[row]), kind, detail, of.name, labels[row], number, row, partner)
            findings.append(finding)
            if differ:
                findings.append(Finding(finding.id, "conflict", detail, of.name, labels[row], number, row, partner))
    return findings


def _partners(copies: Copies) -> dict[int, tuple[int, tuple[str, str]]]:
    """Return of each row the row that it resembles most, and how."""
    partners: dict[int, tuple[int, tuple[str, str]]] = {}
    for pair in np.argsort(-copies.correlation, kind="stable").tolist():
        word = "mirrors" if copies.mirrored[pair] else "resembles"
        how = word, f"correlation {copies.correlation[pair]:.3f}"
        first, second = int(copies.first[pair]), int(copies.second[pair])
        partners.setdefault(first, (second, how))
        partners.setdefault(second, (first, how))
    return partners


def overlapping(of: ExploredSet, other: ExploredSet, overlaps: Copies) -> list[Finding]:
    """List the images of the other set that are in the first one too, with the label that they have there."""
    ids, labels = of.data.ids.tolist(), of.labels
    same = of.descriptors.digests[overlaps.first] == other.descriptors.digests[overlaps.second]
    findings = []
    for pair, equal in enumerate(same.tolist()):
        row, other_row = int(overlaps.first[pair]), int(overlaps.second[pair])
        word = "has the pixels of" if equal else "mirrors" if overlaps.mirrored[pair] else "resembles"
        how = "" if equal else f" (correlation {overlaps.correlation[pair]:.3f})"
        detail = f"{word} {printable(ids[row])}{how}"
        id_ = str(other.data.ids[other_row])
        findings.append(Finding(id_, "overlap", detail, other.name, labels[row], row=other_row, partner=row))
    return findings


def size_of(header: FileHeader | None) -> str:
    return "unknown" if header is None else f"{header.width} × {header.height}"


def counts(names: Sequence[str]) -> tuple[Count, ...]:
    """Count equal names, the most frequent first."""
    return tuple(Count(name, n, n / len(names)) for name, n in Counter(names).most_common())


def form_accuracy(of: ExploredSet) -> tuple[float, float] | None:
    """Return how often format and size alone tell the class, and how often its most frequent class is right.

    For each image, the class is predicted that is most frequent among the other images of its format and size. None
    without labels.
    """
    if of.data.labels is None or not len(of.data):
        return None
    forms = [(size_of(header), "" if header is None else header.format) for header in of.headers]
    number = {form: index for index, form in enumerate(dict.fromkeys(forms))}
    form, labels = np.array([number[each] for each in forms]), of.data.labels.astype(np.int64)
    table = np.zeros((len(number), int(labels.max()) + 1), np.int64)
    np.add.at(table, (form, labels), 1)
    right = 0
    for form_row, label in zip(*(each.tolist() for each in np.nonzero(table)), strict=True):
        others = table[form_row].copy()
        others[label] -= 1
        if not others.any():
            others = table.sum(axis=0)
        right += int(table[form_row, label]) if others.argmax() == label else 0
    return right / len(labels), float(table.sum(axis=0).max() / len(labels))


def table_of_findings(findings: Sequence[Finding]) -> bytes:
    """Return the findings as a CSV table: id, finding, detail, set, label, group."""
    import pandas as pd

    labels = [f"'{each.label}" if each.label.startswith(files.FORMULA_STARTS) else each.label for each in findings]
    columns = {
        "id": [each.id for each in findings],
        "finding": [each.kind for each in findings],
        "detail": [each.detail for each in findings],
        "set": [each.set for each in findings],
        "label": labels,
        "group": ["" if each.group is None else str(each.group) for each in findings],
    }
    return files.table_bytes(pd.DataFrame(columns, dtype=object))
