"""The exception tree: its drawing is true, and a message is where, what, and what to do."""

from __future__ import annotations

import pickle

import pytest

import ensemble.errors
from ensemble.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    LockedError,
    ResourceError,
    Stopped,
    TheraError,
    printable,
)

STATUS = {ConfigError: 2, DataError: 3, ArtifactError: 4, LockedError: 5, ResourceError: 6, Stopped: 75}


def test_the_tree_is_the_one_that_is_drawn() -> None:
    assert TheraError.status == 1
    assert set(TheraError.__subclasses__()) == set(STATUS)
    for kind, status in STATUS.items():
        assert kind.status == status
        (line,) = (line for line in (ensemble.errors.__doc__ or "").splitlines() if kind.__name__ in line)
        assert line.split()[2] == str(status)


@pytest.mark.parametrize("kind", [TheraError, *STATUS])
@pytest.mark.parametrize("parts", [("a.jpg", "has zero bytes", "remove it"), ("a.jpg", "has zero bytes", "")])
def test_an_error_crosses_from_one_process_to_another(kind: type[TheraError], parts: tuple[str, str, str]) -> None:
    error = pickle.loads(pickle.dumps(kind(*parts)))
    assert (type(error), error.where, error.found, error.remedy) == (kind, *parts)
    assert (str(error), error.status) == (str(kind(*parts)), kind.status)


def test_errors_of_arguments_are_value_errors() -> None:
    assert {kind for kind in STATUS if issubclass(kind, ValueError)} == {ConfigError, DataError}


def test_a_message_is_where_found_remedy() -> None:
    assert str(DataError("a.jpg", "has zero bytes", "remove it")) == "a.jpg: has zero bytes; remove it"
    assert str(DataError("a.jpg", "has zero bytes")) == "a.jpg: has zero bytes"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é × –", "plain é × –"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("byte \udcff", "byte \\udcff"),
        ("right \u202e left", "right \\u202e left"),
        (3, "3"),
    ],
)
def test_printable_escapes_what_a_terminal_would_obey(text: object, shown: str) -> None:
    assert printable(text) == shown
