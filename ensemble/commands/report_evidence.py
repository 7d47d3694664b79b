"""What report.html shows beside the result: nested logits row by row, training histories, thumbnails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ensemble.commands.fit_stacker import averaged_oof
from ensemble.commands.training_images import images_of_rows
from ensemble.data.folds import FoldTable
from ensemble.decision.diagnostics import diagnose
from ensemble.errors import ArtifactError, printable
from ensemble.progress import Say
from ensemble.reports.galleries import shown_rows
from ensemble.reports.report_figures import History
from ensemble.reports.report_page import Evidence
from ensemble.reports.thumbnails import thumbnails as encode
from ensemble.results import ReportResult
from ensemble.runs.run import Run

THUMBNAIL_BYTES = 300_000
"""The most bytes of all thumbnails. In a data URI they take a third more, so that a page stays below 2 MB."""


def read_evidence(run: Run, table: FoldTable, result: ReportResult, pixels: np.ndarray | None, say: Say) -> Evidence:
    """Return what the page of a run shows beside its result.

    A training history that is damaged is left out with a warning: it is only drawn. Images are shown if they are
    decoded, or if the files of all those that the page names are there with the recorded hashes.

    Parameters
    ----------
    run : Run
    table : FoldTable
    result : ReportResult
    pixels : uint8 array (n, H, W, 3) or None
        The decoded images, where they are there.
    say : callable
        Receives warnings, a line each.
    """
    facts, diagnostics = run.read(), None
    thumbnails, without = dict[str, bytes](), ""
    if result.decisions is not None:
        decision = result.decisions.tta
        diagnostics = diagnose(decision, averaged_oof(run, decision.stacker.members, decision.views), facts.seed)
        images = images_of_rows(run, table, shown_rows(diagnostics).tolist(), pixels)
        if isinstance(images, str):
            without = f"Images are not shown: {images}."
        else:
            thumbnails = encode(images, THUMBNAIL_BYTES)
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
