"""Damages bytes, JSON and lines of text in one of several ways; a random generator decides."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

JSON_VALUES: list[Any] = [None, 0, 3, -1.5, "x", [], {}, [3], True, 1e300, "NaN", 2**70]
"""What takes the place of a value of a JSON file."""


def mutated(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Return a file damaged in one to three places, and words for it. It may happen to be the same file."""
    words = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        data, word = _mutated_once(data, rng)
        words.append(word)
    return data, ", ".join(words)


def _mutated_once(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    changed = bytearray(data)
    at, length = rng.randrange(len(data) or 1), 1 + rng.randrange(40)
    kind = rng.choice(["flip", "set", "cut", "zeros", "double", "drop", "move", "append", "text"])
    if kind == "flip" and data:
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == "set" and data:
        changed[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)])
    elif kind == "cut":
        del changed[at:]
    elif kind == "zeros":
        changed[at : at + length] = bytes(len(changed[at : at + length]))
    elif kind == "double":
        changed[at:at] = changed[at : at + length]
    elif kind == "drop":
        del changed[at : at + length]
    elif kind == "move":
        block = changed[at : at + length]
        del changed[at : at + length]
        to = rng.randrange(len(changed) + 1)
        changed[to:to] = block
    elif kind == "append":
        changed += rng.choice([b"\n", b"\0", b"0\n", bytes(16), bytes(changed[:length])])
    else:
        changed[at:at] = rng.choice([b"-", b".", b"e", b"\n", b"\r", b",", b'"', b"\xff", b"\xef\xbb\xbf", b"9" * 30])
    return bytes(changed), f"{kind} at {at}"


def mutate_file(path: Path, rng: random.Random) -> str:
    """Damage a file, a JSON file also in one of its fields, and return words for it."""
    if path.suffix == ".json" and rng.random() < 0.4:
        return mutate_field(path, rng)
    data, words = mutated(path.read_bytes(), rng)
    path.write_bytes(data)
    return words


def mutate_field(path: Path, rng: random.Random) -> str:
    """Give a field of a JSON file another value, leave the file's hash as it is, and return the field."""
    content = json.loads(path.read_text())
    inner, trail = content, list[str]()
    while isinstance(inner, dict | list) and inner:
        key = rng.choice(sorted(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))
        trail.append(str(key))
        if not (isinstance(inner[key], dict | list) and inner[key]) or rng.random() < 0.2:
            inner[key] = rng.choice(JSON_VALUES)
            break
        inner = inner[key]
    path.write_text(json.dumps(content))
    return f"field {'.'.join(trail)}"


def mutated_lines(text: str, rng: random.Random) -> tuple[str, str]:
    """Return a text with a line dropped, doubled, moved or indented anew, or with two of its words exchanged."""
    lines = text.splitlines(keepends=True)
    at, kind = rng.randrange(len(lines)), rng.choice(["drop", "double", "move", "indent", "words"])
    if kind == "drop":
        del lines[at]
    elif kind == "double":
        lines.insert(rng.randrange(len(lines) + 1), lines[at])
    elif kind == "move":
        lines.insert(rng.randrange(len(lines)), lines.pop(at))
    elif kind == "indent":
        lines[at] = rng.choice(["", " ", "  ", "\t", "- "]) + lines[at].lstrip()
    else:
        last = (lines[at].split() or ["\n"])[-1]
        lines[at] = lines[at].replace(last, rng.choice(text.split()))
    return "".join(lines), f"{kind} line {at + 1}"
