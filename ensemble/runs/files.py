"""Files that are there whole or not at all (temporary name, fsync, rename, fsync of the folder), and locks.

Tensors are safetensors, tables are CSV keyed by id, the rest is JSON; nothing is ever pickled.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ensemble.errors import ArtifactError, LockedError, ResourceError, printable

if TYPE_CHECKING:
    import torch

SCHEMA = 1
"""Of the JSON files, which name it; one of another schema is refused."""

LOGIT_DECIMALS = 5
"""Logits are rounded to this many decimals when they are made; the file holds them as they are used."""

Tensors: TypeAlias = "dict[str, torch.Tensor]"


def write_whole(path: Path, data: bytes) -> str:
    """Write a file so that it is there whole or not at all, and return its SHA-256."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file to fill; move it to `path` once it is filled and on disk, remove it on any error.

    Raises
    ------
    ResourceError
        The disk is full, or the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space and run the same command again" if full else "choose a place that can be written"
        raise ResourceError(path, f"cannot be written ({error.strerror or error})", remedy) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(path: Path, value: Any) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
    return write_whole(path, text.encode("utf-8", "backslashreplace"))  # of a lone surrogate: its JSON escape


def read_json(path: Path, remedy: str) -> Any:
    """Read a JSON file of this schema.

    Raises
    ------
    ArtifactError
        It is missing, damaged, or of a newer schema.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        schema = value["schema"]
    except FileNotFoundError:
        raise ArtifactError(path, "is not there", remedy) from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ArtifactError(path, f"is damaged ({printable(error)})", remedy) from None
    if schema != SCHEMA:
        raise ArtifactError(path, f"has schema {schema}; this thera reads {SCHEMA}", "use the version that wrote it")
    return value


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a CSV file, ids first; an id that a spreadsheet would take for a formula gets a leading apostrophe."""
    return write_whole(path, table_bytes(columns, rows))


def table_bytes(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Return the CSV file that `write_table` writes."""
    cells = [(_escaped(str(row[0])), *row[1:]) for row in rows]
    bare = any("\r" in str(row[0]) for row in cells)  # Python before 3.13 leaves it unquoted
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(columns)
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL).writerows(cells)
    return text.getvalue().encode("utf-8", "surrogateescape")


def read_table(path: Path, columns: Sequence[str], remedy: str) -> list[tuple[str, ...]]:
    """Read back the columns of a CSV file that `write_table` wrote, one tuple of texts a column."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            head, *rows = csv.reader(file)
        if head != list(columns) or any(len(row) != len(head) for row in rows):
            raise ValueError(f"columns are not {','.join(columns)}")
    except FileNotFoundError:
        raise ArtifactError(path, "is not there", remedy) from None
    except (OSError, ValueError, csv.Error) as error:
        raise ArtifactError(path, f"is damaged ({printable(error)})", remedy) from None
    texts = list(zip(*rows, strict=True)) or [()] * len(head)
    texts[0] = tuple(id_[1:] if id_[:1] == "'" else id_ for id_ in texts[0])
    return texts


def _escaped(id_: str) -> str:
    return "'" + id_ if id_[:1] in "=+-@\t\r'" else id_


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or raise an ArtifactError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(path, f"cannot be read ({error.strerror})", "restore it") from None


def write_tensors(path: Path, tensors: Tensors) -> str:
    """Write a safetensors file whole, and return its SHA-256."""
    from safetensors.torch import save

    return write_whole(path, save(tensors))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Write a safetensors file of numpy arrays whole, without torch, and return its SHA-256."""
    from safetensors.numpy import save

    return write_whole(path, save(dict(arrays)))


def read_tensors(path: Path) -> Tensors:
    """Read a safetensors file; nothing in it is executed, whatever it is.

    Raises
    ------
    ArtifactError
        It is no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ArtifactError(path, f"is no safetensors file ({printable(error)})", "give one") from None


def write_logits(path: Path, ids: np.ndarray, logits: np.ndarray, views: Sequence[str]) -> str:
    """Write logits (n, views) as a CSV file keyed by id (n,), rounded to `LOGIT_DECIMALS`, and return its SHA-256."""
    rows = ((id_, *(f"{x:.{LOGIT_DECIMALS}f}" for x in row)) for id_, row in zip(ids, logits, strict=True))
    return write_table(path, _logit_columns(views), rows)


def read_logits(path: Path, views: Sequence[str], sha256: str, remedy: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids (n,) and the float64 logits (n, views) of a file, once its hash is verified."""
    ids, *logits = read_table(path, _logit_columns(views), remedy)
    if file_sha256(path) != sha256:
        raise ArtifactError(path, "is not the file that thera wrote (its hash differs)", remedy)
    return np.array(ids), np.array(logits, np.float64).T


def _logit_columns(views: Sequence[str]) -> tuple[str, ...]:
    return ("id", *(f"logit_{view}" for view in views))


def refuse_differences(where: object, found: Mapping[str, Any], wanted: Mapping[str, Any], remedy: str) -> None:
    """Raise an ArtifactError that names every key whose value differs."""
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    if keys:
        told = ", ".join(f"{key} was {printable(found.get(key))} and is {printable(wanted.get(key))}" for key in keys)
        raise ArtifactError(where, f"was made differently: {told}", remedy)


# --- locks ------------------------------------------------------------------------------------------------------------

_held: list[IO[str]] = []


def _let_go() -> None:
    """Leave the locks to the parent, or a forked data worker would hold them on after its parent was killed."""
    for file in _held:
        file.close()


os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold `folder` for this process; the lock of a killed process is free again.

    Parameters
    ----------
    wait : bool
        Wait for another holder instead of giving up: for work that takes no time.

    Raises
    ------
    LockedError
        Another process holds it; its pid and host are named.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+")  # noqa: SIM115
    except OSError as error:
        raise ResourceError(
            folder, f"cannot be written ({error.strerror})", "choose a place that can be written"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            holder = printable(file.read().strip()) or "another process"
            raise LockedError(folder, f"{holder} works here", "wait for it, or stop it first") from None
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}")
        file.flush()
        _held.append(file)
        try:
            yield
        finally:
            _held.remove(file)
