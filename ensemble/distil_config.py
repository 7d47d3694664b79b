"""The config models of `thera distil`: what the student learns from, and the student itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import field_validator, model_validator

from ensemble.config import MemberConfig
from ensemble.config_fields import (
    DATA,
    DECISION,
    LOSS,
    MODEL,
    FollowLinks,
    Frozen,
    OnBad,
    one_or_several,
    option,
    separated_by_commas,
)

NOT_OF_STUDENTS = ("sampler", "clean", "overlay", "loss", "gamma", "alpha", "label_smoothing", "freeze")
"""Options of a member that have no meaning for a student: it learns probabilities by cross-entropy, not labels."""


class StudentConfig(MemberConfig):
    """A member that learns the answers of a stack; its loss is the cross-entropy with the targets."""

    arch: Annotated[str, option(MODEL, "Train this architecture of timm, or small_cnn.")] = "small_cnn"
    name: Annotated[
        str,
        option(MODEL, "Give the student this name as a member of the run.", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$"),
    ] = "distilled"

    @model_validator(mode="before")
    @classmethod
    def _has_its_own_name(cls, values: Any) -> Any:
        if isinstance(values, dict):
            values = {"arch": "small_cnn", **values}
            values["name"] = values.get("name") or "distilled"
        return values

    @model_validator(mode="after")
    def _learns_probabilities(self) -> Self:
        if given := [name for name in NOT_OF_STUDENTS if name in self.model_fields_set]:
            raise ValueError(f"a student has no {given[0]}: it learns probabilities by cross-entropy")
        return self

    @property
    def member(self) -> MemberConfig:
        """The config with which the student is trained and recorded."""
        given = {**self.model_dump(exclude_unset=True), "arch": self.arch, "name": self.name, "loss": "bce"}
        return MemberConfig.model_validate(given)


class DistilConfig(Frozen):
    """What the student learns from: the run's stack, and images without labels."""

    members: Annotated[
        tuple[str, ...] | None,
        option(
            DECISION,
            "Learn from the default stack of these members, separated by commas.",
            unset="the stack of the run's decision",
        ),
    ] = None
    unlabelled: Annotated[
        tuple[Path, ...] | None,
        option(DATA, "Learn from these images too, which have no labels.", unset="the images of the run alone"),
    ] = None
    held_out: Annotated[bool, option(DATA, "Learn from the images of the held-out fold too, without their labels.")] = (
        True
    )
    from_oof: Annotated[
        bool,
        option(
            DATA,
            "Take the teacher's logits from the run's OOF logits and predictions; no weights are needed.",
        ),
    ] = False
    on_bad: OnBad = "error"
    follow_links: FollowLinks = False
    teacher_weight: Annotated[
        float,
        option(LOSS, "Mix the targets of labelled images: this share is the teacher's probability.", ge=0, le=1),
    ] = 0.7
    temperature: Annotated[
        float, option(LOSS, "Divide the teacher's logits by this; above 1, its probabilities are softer.", gt=0, le=100)
    ] = 1.0

    _paths = field_validator("unlabelled", mode="before")(one_or_several)
    _names = field_validator("members", mode="before")(separated_by_commas)
