"""Atomic writes, hashes, and the formats of files.

JSON is checked against a type when it is read, tables are CSV keyed by id, tensors are safetensors; nothing is pickled.
This file does not depend on the layout of a run, so every other wing may use it.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import io
import json
import os
import secrets
import socket
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ensemble.errors import ArtifactError, ResourceError, printable

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from pydantic import TypeAdapter

SCHEMA = 1
"""Schema of the JSON files. Each names it, and a file of another schema is refused."""

CONTENT_SHA256 = "content_sha256"
"""The key under which a JSON file holds the SHA-256 of its other content; older files do not have it."""

LOGIT_DECIMALS = 5
"""Decimals that logits are rounded to when they are made, so that a file holds them as they are used."""

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "'")
"""First characters by which a spreadsheet takes a cell for a formula, and the apostrophe that escapes them."""

Table: TypeAlias = "pd.DataFrame | Mapping[str, Sequence[object] | np.ndarray]"
"""Columns of equal length by their names, in their order."""

Tensors: TypeAlias = "dict[str, torch.Tensor]"

Columns: TypeAlias = Mapping[str, "type | np.dtype[Any]"]
"""The columns of a table by their names, in their order, and their types: `str`, bytes, integers or `np.float64`."""

BLOCK = 2**14
"""The rows of a table that are Python objects at a time while it is read."""

T = TypeVar("T")

Migrate: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""Brings the content of an older JSON file up to date."""


# --- atomic writes ----------------------------------------------------------------------------------------------


def write_whole(path: Path, data: bytes) -> str:
    """Write a file atomically, and return its SHA-256."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file; move the file to `path` once it is on disk, or remove it on any error.

    The temporary name carries host, process and a random part: several machines may write to one shared folder.

    Raises
    ------
    ResourceError
        The disk is full, the folder cannot be written, or `path` is a link, a folder or a device.
    """
    if kind := irregular(path):
        raise ResourceError(path, f"cannot be written: {kind} is not replaced", "remove it, or choose another place")
    unique = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.name}.{unique}.tmp")
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


def irregular(path: Path) -> str:
    """Return what is at a path, such as "a link", or "" where there is a regular file or nothing."""
    try:
        kind = stat.S_IFMT(path.lstat().st_mode)
    except OSError:
        return ""
    kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return "" if kind == stat.S_IFREG else kinds.get(kind, "a device")


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files of killed processes below a folder that this process has locked."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def remove_orphans(folder: Path, name: str = "") -> None:
    """Remove temporary files in a folder, or those of a name in it, whose process ran on this host and has ended."""
    for path in folder.glob(f".{glob.escape(name)}*.tmp"):
        with contextlib.suppress(ValueError, OSError):
            host, pid, _ = path.name.removesuffix(".tmp").rsplit(".", 2)
            if host.endswith(f".{socket.gethostname()}") and not is_running(int(pid)):
                path.unlink()


def is_running(pid: int) -> bool:
    """Return whether a process of this host runs."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM  # it is another user's
    return True


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or raise an ArtifactError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(path, f"cannot be read ({error.strerror})", "restore it") from None


# --- JSON -------------------------------------------------------------------------------------------------------------


def write_json(path: Path, value: object, with_hash: bool = True) -> str:
    """Write a dataclass or a mapping as `json_bytes` returns it, and return the SHA-256 of the file."""
    return write_whole(path, json_bytes(value, with_hash))


def json_bytes(value: object, with_hash: bool = True) -> bytes:
    """Return a dataclass or a mapping as JSON with sorted keys, the schema and, by default, the hash of its content.

    A file that thera does not read again, such as `report.json`, needs no hash.
    """
    plain = dict(value) if isinstance(value, Mapping) else _adapter(type(value)).dump_python(value, mode="json")
    content = json.loads(json.dumps({**plain, "schema": SCHEMA}, allow_nan=False, default=str))
    content.pop(CONTENT_SHA256, None)
    if with_hash:
        content[CONTENT_SHA256] = _content_sha256(content)
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # a lone surrogate becomes its JSON escape


def _content_sha256(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the content of a JSON file without its own hash; layout and order do not matter."""
    others = {key: value for key, value in content.items() if key != CONTENT_SHA256}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def read_json(
    path: Path, type_: type[T], remedy: str, migrate: Migrate | None = None, recorded: Sequence[str] = ()
) -> T:
    """Read a JSON file as a value of a type, usually a dataclass, every float to the last bit.

    Parameters
    ----------
    path : Path
    type_ : type
        The type of the content. Fields are checked strictly; unknown keys are ignored.
    remedy : str
        What the user can do if the file is missing or damaged.
    migrate : callable, optional
        Brings the content of an older file up to date.
    recorded : sequence of str
        The hashes of which the file must have one; empty where none is recorded.

    Raises
    ------
    ArtifactError
        The file is missing, damaged, of another schema, or not the recorded one; a field of a wrong type is named.
    """
    from pydantic import ValidationError

    try:
        data = path.read_bytes()
        content = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
        schema = content["schema"]
    except FileNotFoundError:
        raise ArtifactError(path, "is not there", remedy) from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ArtifactError(path, f"is damaged ({printable(error)})", remedy) from None
    if schema != SCHEMA:
        found = f"has schema {printable(schema)}; this thera reads {SCHEMA}"
        raise ArtifactError(path, found, "use the version that wrote it")
    try:
        current = content if migrate is None else migrate(content)
        value = _validated(current, type_)
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(map(str, fault["loc"]))
        raise ArtifactError(path, f"is damaged ({printable(field)}: {printable(fault['msg'])})", remedy) from None
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise ArtifactError(path, f"is damaged ({printable(error)})", remedy) from None
    if CONTENT_SHA256 in content and content[CONTENT_SHA256] != _content_sha256(content):
        raise ArtifactError(path, "was changed after thera wrote it (the hash of its content differs)", remedy)
    if recorded and hashlib.sha256(data).hexdigest() not in recorded:
        raise ArtifactError(path, "is not the file that is recorded in run.json (its hash differs)", remedy)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _validated(content: dict[str, Any], type_: type[T]) -> T:
    text, value = json.dumps(content, ensure_ascii=False), None
    try:
        value = _adapter(type_).validate_json(text.encode("utf-8"), strict=True)
    except UnicodeEncodeError:  # a name that is no UTF-8, which pydantic's JSON parser refuses
        value = _adapter(type_).validate_python(content)
    return value  # type: ignore[no-any-return]


def _adapter(type_: Any) -> TypeAdapter[Any]:
    if type_ not in _adapters:
        from pydantic import TypeAdapter

        _adapters[type_] = TypeAdapter(type_)
    return _adapters[type_]


_adapters: dict[Any, TypeAdapter[Any]] = {}
"""Adapters that were made already: to make one takes milliseconds."""


def refuse_differences(where: object, stored: Mapping[str, Any], requested: Mapping[str, Any], remedy: str) -> None:
    """Raise an ArtifactError that names every key whose value differs."""
    keys = [key for key in {**stored, **requested} if stored.get(key) != requested.get(key)]
    if keys:
        changes = [f"{key} was {printable(stored.get(key))} and is {printable(requested.get(key))}" for key in keys]
        raise ArtifactError(where, f"was made differently: {', '.join(changes)}", remedy)


# --- tables -----------------------------------------------------------------------------------------------------------


def write_table(path: Path, table: Table) -> str:
    """Write a table as CSV and return its SHA-256; see `table_bytes`."""
    return write_whole(path, table_bytes(table))


def table_bytes(table: Table) -> bytes:
    """Return a table as CSV. The first column holds ids; one that a spreadsheet would take for a formula is escaped.

    Floats are written in the shortest form that reads back as the same value, those that are not a number as an empty
    cell. pandas is not needed.
    """
    import csv

    names = list(table)
    ids, *others = (_cells(table[name]) for name in names)
    ids = [("'" + id_ if id_.startswith(FORMULA_STARTS) else id_) for id_ in map(str, ids)]
    # the csv module before Python 3.13 leaves a carriage return unquoted
    needs_quotes = any("\r" in id_ for id_ in ids)
    text = io.StringIO(newline="")
    body = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if needs_quotes else csv.QUOTE_MINIMAL)
    csv.writer(text, lineterminator="\n").writerow(names)
    body.writerows(zip(ids, *others, strict=True))
    return text.getvalue().encode("utf-8", "surrogateescape")


def _cells(column: Any) -> list[Any]:
    values = column.tolist() if hasattr(column, "tolist") else list(column)
    return [None if isinstance(value, float) and value != value else value for value in values]


def read_columns(
    path: Path, columns: Columns | None, remedy: str, sha256: str | None = None
) -> dict[str, NDArray[Any]]:
    """Read a table that `table_bytes` made. Beyond the file and the columns it takes the memory of a block of rows.

    Parameters
    ----------
    path : Path
    columns : mapping of str to type, or None
        The names in their order, and the types: `str`, a numpy type of bytes or integers, or `np.float64`. None reads
        any columns as text.
    remedy : str
        What the user can do if the file is missing or damaged.
    sha256 : str, optional
        The hash of the file as it was written.

    Returns
    -------
    dict of str to array (n,)
        Texts are numpy strings of a fixed width. The first column, the ids, is text without the escapes of
        `table_bytes`.

    Raises
    ------
    ArtifactError
        The file is missing or damaged, it is not the one with this hash, or its columns are not these.
    """
    import pandas as pd

    try:
        data = path.read_bytes()
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise ArtifactError(path, "is not the file that thera wrote (its hash differs)", remedy)
        with pd.read_csv(
            io.BytesIO(data),
            dtype=object,
            na_filter=False,
            encoding="utf-8",
            encoding_errors="surrogateescape",
            skip_blank_lines=False,
            index_col=False,
            chunksize=BLOCK,
        ) as blocks:
            of_blocks = [_columns_of_block(block, columns) for block in blocks]
    except FileNotFoundError:
        raise ArtifactError(path, "is not there", remedy) from None
    except (OSError, ValueError, OverflowError, pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise ArtifactError(path, f"is damaged ({printable(error)})", remedy) from None
    return {name: np.concatenate([block.pop(name) for block in of_blocks]) for name in list(of_blocks[0])}


def _columns_of_block(block: pd.DataFrame, columns: Columns | None) -> dict[str, NDArray[Any]]:
    if columns is None:
        columns = dict.fromkeys(block.columns, str)
    if list(block.columns) != list(columns):
        raise ValueError(f"columns are not {','.join(columns)}")
    texts = {name: block[name].tolist() for name in columns}
    ids = block.columns[0]
    texts[ids] = [id_[1:] if id_[:1] == "'" else id_ for id_ in texts[ids]]
    return {name: np.array(texts[name], np.str_).astype(type_, copy=False) for name, type_ in columns.items()}


def write_logits(path: Path, ids: np.ndarray, logits: np.ndarray, views: Sequence[str]) -> str:
    """Write logits as a CSV file keyed by id, rounded to `LOGIT_DECIMALS`, and return its SHA-256.

    Parameters
    ----------
    path : Path
    ids : str array (n,)
    logits : float array (n, views), or (n, views, C) of more than two classes
    views : sequence of str
    """
    values = np.asarray(logits)
    names = _logit_columns(views, values.shape[2] if values.ndim == 3 else 2)
    by_column = zip(names, values.reshape(len(values), -1).T, strict=True)
    return write_table(path, {"id": ids, **{name: decimals(column) for name, column in by_column}})


def decimals(logits: Iterable[float]) -> list[str]:
    """Return logits as texts with `LOGIT_DECIMALS` decimals."""
    return [f"{logit:.{LOGIT_DECIMALS}f}" for logit in logits]


def read_logits(path: Path, views: Sequence[str], sha256: str, remedy: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids (n,) and the float64 logits that `write_logits` wrote, once the file's hash is verified."""
    classes = _classes_in(path, views[0])
    names = _logit_columns(views, classes)
    table = read_columns(path, {"id": str} | dict.fromkeys(names, np.float64), remedy, sha256)
    logits = np.stack([table[name] for name in names], axis=1)
    return table["id"], logits.reshape(-1, len(views), *([classes] if classes > 2 else []))


def _classes_in(path: Path, view: str) -> int:
    """Return the number of classes in a file of logits, by its header."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="surrogateescape") as file:
        return max(2, file.readline().count(f",logit_{view}_"))
    return 2


def _logit_columns(views: Sequence[str], classes: int) -> tuple[str, ...]:
    if classes == 2:
        return tuple(f"logit_{view}" for view in views)
    return tuple(f"logit_{view}_{label}" for view in views for label in range(classes))


# --- tensors ----------------------------------------------------------------------------------------------------------


def write_tensors(path: Path, tensors: Tensors) -> str:
    """Write a safetensors file whole, and return its SHA-256."""
    from safetensors.torch import save

    return write_whole(path, save(tensors))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Write a safetensors file of numpy arrays whole, without torch, and return its SHA-256."""
    from safetensors.numpy import save

    return write_whole(path, save(dict(arrays)))


def read_tensors(path: Path) -> Tensors:
    """Read a safetensors file. Nothing in it is executed, whatever it is.

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
        if _is_of_torch(path):
            problem = "is no safetensors file but one of torch.save, which may hold code and is not loaded"
            call = "safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW)"
            raise ArtifactError(path, problem, f"convert it in Python: {call}") from None
        raise ArtifactError(path, f"is no safetensors file ({printable(error)})", "give one") from None


def _is_of_torch(path: Path) -> bool:
    """Return whether a file begins as the zips and pickles do that torch.save writes."""
    try:
        with open(path, "rb") as file:
            return file.read(4).startswith((b"PK\x03\x04", b"\x80"))
    except OSError:
        return False
