"""What a distilled member records beside `member.json`: its teacher, and the teacher's logits for each fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from ensemble.errors import ArtifactError
from ensemble.runs.artifacts import read_recorded, write_recorded
from ensemble.runs.files import read_logits, refuse_differences, write_logits
from ensemble.runs.member import MemberFolder

FACTS = "distilled.json"
"""The file in a member's folder that says that it is a student, and of which teacher."""

DISTIL_AGAIN = "give its `thera distil` command again; what is done is kept"
"""The remedy where a file of the teacher's logits is missing or damaged."""

OTHER_NAME = "give another --name"
"""The remedy where a student of the same name was begun differently."""

VIEW = ("stacked",)
"""The name of the column of a teacher's logits."""


@dataclass(frozen=True)
class Distilled:
    """`distilled.json`.

    Attributes
    ----------
    teachers : tuple of str
        The members of the stack.
    stacker : str
        Its kind.
    parents : dict
        SHA-256 of the weights of the teachers, by member and fold; of their OOF logits with `from_oof`.
    teacher_weight, temperature : float
    held_out : bool
    unlabelled : int
        The number of further images without labels.
    unlabelled_sha256 : str
        Their fingerprint; empty without any.
    logits : dict of str to str
        SHA-256 of the teacher's logits, by fold.
    from_oof : bool
        Whether the teacher's logits of the run's images are OOF logits, and not those of the fold models of each fold.
    """

    teachers: tuple[str, ...]
    stacker: str
    parents: Mapping[str, Mapping[str, str]]
    teacher_weight: float
    temperature: float
    held_out: bool
    unlabelled: int = 0
    unlabelled_sha256: str = ""
    logits: dict[str, str] = field(default_factory=dict)
    from_oof: bool = False

    @property
    def caveats(self) -> tuple[str, ...]:
        """Why the student's measured error may be lower than that of new images, a clause each."""
        held_out = "learned from held-out images, without their labels: on images that it was not given"
        from_oof = "learned OOF logits of networks that saw the labels of its held-out images: on new images"
        reasons = {held_out: self.held_out, from_oof: self.from_oof and self.teacher_weight > 0}
        return tuple(f"{reason}, the error may be higher" for reason, holds in reasons.items() if holds)


def is_distilled(member: MemberFolder) -> bool:
    """Return whether a member is a student, which learned the answers of a stack."""
    return (member.folder / FACTS).exists()


def caveats(members: Sequence[MemberFolder]) -> tuple[str, ...]:
    """Return a sentence for each reason why an error that is measured with these members may be too low."""
    students = [(member.name, read_distilled(member)) for member in members if is_distilled(member)]
    return tuple(f"member {name} {caveat}." for name, student in students for caveat in student.caveats)


def read_distilled(member: MemberFolder) -> Distilled:
    """Return what is recorded of a student.

    Raises
    ------
    ArtifactError
        The file is missing or damaged.
    """
    return read_recorded(member.folder.parents[1], member.folder / FACTS, Distilled, DISTIL_AGAIN)


def refuse_other_student(member: MemberFolder, facts: Distilled) -> None:
    """Refuse to go on with a student that was begun differently.

    Raises
    ------
    ArtifactError
        It was begun with another teacher or other images, or the member was trained on labels.
    """
    if not member.has_begun:
        return
    if not is_distilled(member):
        raise ArtifactError(f"member {member.name}", "was trained on labels, not on a stack's answers", OTHER_NAME)
    stored = read_distilled(member)
    refuse_differences(member.folder / FACTS, _comparable(stored), _comparable(facts), OTHER_NAME)
    if trained_again := [name for name in facts.teachers if facts.parents[name] != stored.parents[name]]:
        what = "OOF logits" if facts.from_oof else "weights"
        problem = f"learned from other {what} of {', '.join(trained_again)} than the run has now"
        raise ArtifactError(f"member {member.name}", problem, f"restore them, or {OTHER_NAME}")


def _comparable(facts: Distilled) -> dict[str, object]:
    """Return the facts that a message can state; weights are named without their hashes."""
    return {key: value for key, value in asdict(facts).items() if key not in ("parents", "logits")}


def refuse_other_teacher(member: MemberFolder, facts: Distilled) -> None:
    """Refuse as `refuse_other_student` does, before the images without labels are read; those of `facts` are ignored.

    Raises
    ------
    ArtifactError
        As `refuse_other_student`.
    """
    if member.has_begun and is_distilled(member):
        stored = read_distilled(member)
        facts = replace(facts, unlabelled=stored.unlabelled, unlabelled_sha256=stored.unlabelled_sha256)
    refuse_other_student(member, facts)


def begin_distilled(member: MemberFolder, facts: Distilled) -> None:
    """Record the teacher of a student, or verify that it is the same; a student without an epoch may begin anew.

    Raises
    ------
    ArtifactError
        As `refuse_other_student`.
    """
    refuse_other_student(member, facts)
    if not is_distilled(member) or replace(read_distilled(member), logits={}) != facts:
        write_recorded(member.folder.parents[1], member.folder / FACTS, facts)


def has_teacher_logits(member: MemberFolder) -> bool:
    """Return whether logits of a teacher are kept, which take long to compute."""
    return is_distilled(member) and bool(read_distilled(member).logits)


def write_teacher_logits(member: MemberFolder, fold: int, ids: np.ndarray, logits: np.ndarray) -> None:
    """Write the teacher's logits (n,) or (n, C) of a fold for all images that the student may learn from.

    Raises
    ------
    ArtifactError
        The student has begun to learn from other logits, which are missing or damaged now.
    """
    path = teacher_path(member, fold)
    sha256 = write_logits(path, ids, logits[:, None], VIEW)
    facts = read_distilled(member)
    if member.has_begun and facts.logits.get(str(fold), sha256) != sha256:
        problem = "is computed again with other logits than the student has begun to learn from"
        raise ArtifactError(path, problem, f"restore it from a copy, go on where it was begun, or {OTHER_NAME}")
    recorded = replace(facts, logits={**facts.logits, str(fold): sha256})
    write_recorded(member.folder.parents[1], member.folder / FACTS, recorded)


def read_teacher_logits(member: MemberFolder, fold: int, ids: np.ndarray) -> np.ndarray | None:
    """Return these logits, (n,) or (n, C); None where they are not computed yet, or the file is not as it was written.

    `ids` (n,) are those of the images, in their order.
    """
    sha256 = read_distilled(member).logits.get(str(fold))
    path = teacher_path(member, fold)
    if sha256 is None or not path.exists():
        return None
    try:
        stored, logits = read_logits(path, VIEW, sha256, DISTIL_AGAIN)
    except ArtifactError:
        return None
    return logits[:, 0] if np.array_equal(stored, ids) else None


def teacher_files(member: MemberFolder) -> list[tuple[int, Path, str]]:
    """Return fold, path and recorded SHA-256 of each file of a student's teacher, for verification."""
    logits = sorted((int(fold), sha256) for fold, sha256 in read_distilled(member).logits.items())
    return [(fold, teacher_path(member, fold), sha256) for fold, sha256 in logits]


def teacher_path(member: MemberFolder, fold: int) -> Path:
    """Return the path of the teacher's logits of a fold."""
    return member.folder / f"teacher-{fold}.csv"
