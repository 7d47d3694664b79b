"""The file of the model card: README.md of a run, unless somebody else has written that."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ensemble.errors import printable
from ensemble.progress import Say
from ensemble.runs import files

CARD, OTHER_CARD = "README.md", "model-card.md"
"""The file of the model card, and the one that takes its place where README.md is not thera's."""

MARK = "<!-- thera report wrote this file and replaces it; SHA-256 of the text above: "
"""The beginning of the last line of a card. A file whose text has another hash was edited and is not replaced."""


def write_card(run: Path, card: str, say: Say) -> None:
    """Write the model card of a run as `README.md`, or as `model-card.md` where `README.md` is not thera's.

    A file that thera did not write, or that was edited since, is not replaced: a note names it.

    Parameters
    ----------
    run : Path
    card : str
        Markdown; a last line with its hash is added.
    say : callable
        Receives notes, a line each.
    """
    content = marked(card)
    for name, other in ((CARD, OTHER_CARD), (OTHER_CARD, None)):
        path = run / name
        if is_replaceable(path):
            files.write_whole(path, content)
            return
        where = printable(path)
        if other is None:
            say(f"note: {where} is not the file that thera wrote; the model card is not written")
        elif not is_replaceable(run / other):
            continue
        else:
            say(f"note: {where} is not the file that thera wrote; the model card is in {printable(run / other)}")


def marked(card: str) -> bytes:
    """Return the bytes of a card with the line that says that thera wrote it."""
    data = card.encode("utf-8", "backslashreplace")
    return data + f"\n{MARK}{hashlib.sha256(data).hexdigest()} -->\n".encode()


def is_replaceable(path: Path) -> bool:
    """Return whether there is no file at a path, or one that thera wrote and nobody has edited."""
    if files.irregular(path):
        return False
    if not path.exists():
        return True
    try:
        text, mark, hashed = path.read_bytes().rpartition(f"\n{MARK}".encode())
    except OSError:
        return False
    return bool(mark) and hashed == f"{hashlib.sha256(text).hexdigest()} -->\n".encode()
