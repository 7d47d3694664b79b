"""The names of classes, and which label each stands for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ensemble.data.files import SHOWN, listed
from ensemble.errors import ConfigError, DataError, printable

MAX_CLASSES = 127
"""The largest number of classes: a label is stored as int8."""

UNREAD = 0
"""The number of classes that stands for any number, of labels that are not read: those of images to predict."""

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


def checked_count(n_classes: int | None, positive: str | None = None) -> int | None:
    """Return the number of three or more classes, and None for two; raise `ConfigError` where it is out of range.

    >>> checked_count(18), checked_count(2), checked_count(None)
    (18, None, None)
    """
    if n_classes is None or n_classes == 2:
        return None
    if n_classes != UNREAD and not 2 < n_classes <= MAX_CLASSES:
        raise ConfigError("--classes", f"must be 2 to {MAX_CLASSES}; got {n_classes}")
    if positive is not None:
        raise ConfigError("--positive", f"names label 1 of two classes, and --classes is {n_classes}", "leave it out")
    return n_classes


def class_count(classes: Sequence[str] | None) -> int:
    """Return the number of classes with these names; None stands for two classes that are 0 and 1."""
    return 2 if classes is None else len(classes)


@dataclass(frozen=True)
class ClassOrder:
    """The label that each text stands for; the names of the labels, None for 0 and 1; and notes."""

    label_of: Mapping[str, int]
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def order_classes(of: Iterable[str], positive: str | None, where: str, n_classes: int | None = None) -> ClassOrder:
    """Return which label each name stands for: names are in the order of the alphabet, integers in that of numbers.

    Capitals and small letters are alike in this order. Of two names, `positive` is label 1 if it is given. The integers
    0 to C - 1 are the labels themselves. Other integers are names, which are written in the shortest form: 01 and 1.0
    are 1.

    Parameters
    ----------
    of : iterable of str
        The name of every label, in any order and number.
    positive : str, optional
    where : str
        What has these labels, for messages.
    n_classes : int, optional
        The number of three or more classes; None for two.

    Raises
    ------
    DataError
        There is one name only, which may stand for either label; there are not `n_classes` names; or all are numbers,
        and not all of them integers.
    ConfigError
        `positive` is none of the names.

    Examples
    --------
    >>> order_classes(["b", "a", "C"], None, "labels.csv", 3).notes
    ('label 0 is a, label 1 is b, label 2 is C',)
    >>> order_classes(["10", "9", "11"], None, "labels.csv", 3).label_of
    {'10': 1, '11': 2, '9': 0}
    """
    names = sorted(set(of), key=lambda name: (name.casefold(), name))
    if n_classes is not None:
        return _order_of_many(names, where, n_classes)
    if set(names) <= {"0", "1"}:
        refuse_positive(positive)
        return ClassOrder({"0": 0, "1": 1})
    if len(names) != 2:
        raise DataError(where, f"has one label only, {listed(names)}", "both classes must be present")
    if positive is not None and positive not in names:
        raise ConfigError("--positive", f"no class has the name {printable(positive)}", f"they are {listed(names)}")
    one = names[1] if positive is None else positive
    zero = names[0] if one == names[1] else names[1]
    return ClassOrder({zero: 0, one: 1}, (zero, one), (class_note((zero, one)),))


def _order_of_many(names: Sequence[str], where: str, n_classes: int) -> ClassOrder:
    text_of, classes = {name: name for name in names}, tuple(names)
    if all(number_of(name) is not None for name in names):
        integers = {name: integer_of(name) for name in names}
        for name, integer in integers.items():
            if integer is None:
                problem = f"has the label {printable(name)[:40]}, a number that is no integer of at most 18 digits"
                raise DataError(where, problem, "write integers or names")
        text_of = {name: str(integer) for name, integer in integers.items()}
        classes = tuple(sorted(set(text_of.values()), key=int))
    if len(classes) != n_classes:
        remedies = [f"give --classes {len(classes)}"] if 2 < len(classes) <= MAX_CLASSES else []
        remedies += ["leave --classes out"] if len(classes) == 2 else []
        remedies += ["add images of the other classes"] if len(classes) < n_classes else []
        count = f"{len(classes)} classes" if len(classes) > 1 else "one class"
        problem = f"has {count}, {listed(classes)}, and --classes is {n_classes}"
        raise DataError(where, problem, ", or ".join(remedies) or f"at most {MAX_CLASSES} classes are possible")
    label = {text: label for label, text in enumerate(classes)}
    note = class_note(classes)
    if classes == tuple(map(str, range(n_classes))):
        spelled = [f"{printable(name)} as {text}" for name, text in text_of.items() if name != text]
        note = f"labels in {where} are read as 0 to {n_classes - 1}: {listed(spelled)}" if spelled else ""
    return ClassOrder({name: label[text] for name, text in text_of.items()}, classes, (note,) if note else ())


def class_note(classes: tuple[str, ...]) -> str:
    """Return the note that says which class is which label; of many classes, it names the first.

    >>> class_note(("hat", "none")), class_note(("a", "b", "c"))
    ('hat is label 0, none is label 1', 'label 0 is a, label 1 is b, label 2 is c')
    """
    if len(classes) == 2:
        return f"{printable(classes[0])} is label 0, {printable(classes[1])} is label 1"
    named = ", ".join(f"label {label} is {printable(name)}" for label, name in enumerate(classes[:SHOWN]))
    return f"{len(classes)} classes: {named}, …" if len(classes) > SHOWN else named


def refuse_positive(positive: str | None) -> None:
    """Raise `ConfigError` unless labels that are 0 and 1 have 1 as label 1."""
    if positive not in (None, "1"):
        raise ConfigError("--positive", "the labels are 0 and 1 already", "leave it out")


def refuse_alpha(where: str, alpha: float | None, classes: int) -> None:
    """Raise `ConfigError` where alpha is given for more than two classes."""
    if alpha is not None and classes > 2:
        problem = f"alpha weighs two classes, not {classes}"
        raise ConfigError(where, problem, "leave it out; weighted-focal weighs every class")


# --- numbers ----------------------------------------------------------------------------------------------------------


def bare_text(value: str) -> str:
    """Return a value without blanks and quotes around it."""
    value = value.strip()
    return value[1:-1].strip() if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value


def number_of(value: str) -> float | None:
    """Return the number that a text is, and None where it is none."""
    bare = bare_text(value)
    return float(bare) if _NUMBER.fullmatch(bare) else None


def integer_of(value: str) -> int | None:
    """Return the integer that a text is, also one such as 1.0; None where it is none or has more than 18 digits."""
    bare, number = bare_text(value), number_of(value)
    if _INTEGER.fullmatch(bare):
        return int(bare)
    if number is None or not math.isfinite(number) or abs(number) >= 2**53 or not number.is_integer():
        return None
    return int(number)


def shortest(value: str) -> str:
    """Return an integer in its shortest form, and other texts as they are."""
    integer = integer_of(value)
    return value if integer is None else str(integer)
