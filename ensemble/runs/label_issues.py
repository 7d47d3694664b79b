"""`label_issues/` of a run: the doubtful labels, the page of their review, the overlay, and their hashes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ensemble.runs.artifacts import read_recorded

FACTS = Path("label_issues/label_issues.json")
"""The file that records the others, in the run's folder."""

ISSUES, PAGE, OVERLAY = "issues.csv", "review.html", "overlay.csv"
"""The files beside it."""

FIND_AGAIN = "run: thera clean"
"""The remedy where one of them is missing or damaged."""


@dataclass(frozen=True)
class LabelIssuesFacts:
    """`label_issues.json`.

    Attributes
    ----------
    source : str
        Whose OOF logits doubt the labels: the stack, or a member.
    parents : dict
        SHA-256 of these OOF logits, by member and fold.
    counts : dict of str to int
        The number of doubtful labels of each class.
    files : dict of str to str
        SHA-256 of the files in this folder.
    """

    source: str = ""
    parents: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def read_facts(run: Path) -> LabelIssuesFacts:
    """Return what is recorded of the label issues of a run; nothing where none were looked for.

    Raises
    ------
    ArtifactError
        The file is damaged.
    """
    path = run / FACTS
    return read_recorded(run, path, LabelIssuesFacts, FIND_AGAIN) if path.exists() else LabelIssuesFacts()
