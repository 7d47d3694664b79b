"""What report.html shows beside the result: nested logits row by row, training histories, thumbnails."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ensemble.commands.fit_stacker import averaged_oof
from ensemble.data.folds import FoldTable
from ensemble.decision.diagnostics import Diagnostics, diagnose
from ensemble.errors import ArtifactError, TheraError, printable
from ensemble.progress import Say
from ensemble.reports.galleries import shown_rows
from ensemble.reports.report_figures import History
from ensemble.reports.report_page import Evidence
from ensemble.results import ReportResult
from ensemble.runs.run import Run, RunFacts

if TYPE_CHECKING:
    from ensemble.data.dataset import Source

THUMBNAIL = 96
"""The longer side of a thumbnail in pixels, at most. 64 of them as WebP take about 0.2 MB."""

NO_HASHES = "Images are not shown: this run has no images.csv, so that no image file can be recognised."
NOT_READ = "Images are not shown: the files that the networks were trained on are not where they were."


def read_evidence(run: Run, table: FoldTable, result: ReportResult, say: Say) -> Evidence:
    """Return what the page of a run shows beside its result.

    A training history that is damaged is left out with a warning: it is only drawn. Images are shown if all those that
    the page names can be read and have the recorded hashes.

    Parameters
    ----------
    run : Run
    table : FoldTable
    result : ReportResult
    say : callable
        Receives warnings, a line each.
    """
    facts, diagnostics = run.read(), None
    thumbnails, without = dict[str, bytes](), ""
    if result.decisions is not None:
        decision = result.decisions.tta
        diagnostics = diagnose(decision, averaged_oof(run, decision.stacker.members, decision.views), facts.seed)
        thumbnails, without = _thumbnails(run, facts, diagnostics)
    return Evidence(
        facts=facts,
        counts=tuple(np.bincount(table.labels, minlength=facts.class_count).tolist()),
        diagnostics=diagnostics,
        histories=_histories(run, [member.name for member in result.members], table.k, say),
        thumbnails=thumbnails,
        without_thumbnails=without,
    )


def _histories(run: Run, members: Sequence[str], folds: int, say: Say) -> Mapping[str, tuple[History, ...]]:
    histories: dict[str, tuple[History, ...]] = {}
    for name in members:
        try:
            histories[name] = tuple(run.member(name).history(fold) for fold in range(folds))
        except ArtifactError as error:
            say(f"warning: {printable(error)}; the training of member {name} is not drawn")
    return histories


def _thumbnails(run: Run, facts: RunFacts, diagnostics: Diagnostics) -> tuple[dict[str, bytes], str]:
    """Return the thumbnails of the images that the page shows, by id; where one is missing, none, and the reason."""
    rows, digests = shown_rows(diagnostics), run.read_images()
    if digests is None:
        return {}, NO_HASHES
    try:
        source = _source(facts)
        row_of = {name: row for row, name in enumerate(source.ids.tolist())}
        ids = diagnostics.table.ids[rows].tolist()
        return {
            str(name): _thumbnail(source, row_of[str(name)], digest, facts.exif)
            for name, digest in zip(ids, digests[rows].tolist(), strict=True)
        }, ""
    except (TheraError, OSError, KeyError, ValueError):  # the page is whole without them
        return {}, NOT_READ


def _source(facts: RunFacts) -> Source:
    """Open the training images where they were read from; the hash of each file is compared later."""
    from ensemble.data.source import open_source

    images, labels = Path(facts.images), Path(facts.labels)
    beside = labels if facts.labels != facts.images and labels.is_file() else None
    classes = facts.class_count if facts.class_count > 2 else None
    return open_source(images, beside, on_bad="skip", n_classes=classes)


def _thumbnail(source: Source, row: int, digest: bytes, exif: str) -> bytes:
    """Return a WebP file of an image; raise ValueError where its file is another one than in training."""
    from ensemble.data.pixels import decode, upright

    data = source.read(row)
    if hashlib.sha256(data).hexdigest().encode() != digest:
        raise ValueError("another image")
    image = decode(data, source.names[row])
    return _webp(upright(image) if exif == "apply" else image.pixels)


def _webp(pixels: NDArray[np.uint8]) -> bytes:
    import cv2

    scale = THUMBNAIL / max(pixels.shape[:2])
    if scale < 1:
        size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    return cv2.imencode(".webp", pixels[:, :, ::-1], [cv2.IMWRITE_WEBP_QUALITY, 85])[1].tobytes()
