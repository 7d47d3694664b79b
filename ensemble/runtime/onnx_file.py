"""Seals and opens the ONNX file of an exported model. It is checked before onnxruntime sees it; nothing is executed.

The file is an ordinary `onnx.ModelProto`. Its last field is the metadata entry `thera.sha256`, the SHA-256 of all bytes
before it, so that one changed or missing byte is noticed. The format is that of protocol buffers (protobuf.dev,
encoding guide); the numbers of the fields are those of onnx.proto3. No library of ONNX is needed to check it.

A file is refused if it names operators outside the standard ones of ONNX, which may be code of another library, or has
data outside the file, functions, or parts for training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ensemble.data.files import as_text
from ensemble.errors import ArtifactError, DataError, printable
from ensemble.runtime.facts import ADDED, EXPORT_AGAIN, SCHEMA, ModelFacts, facts_text, plain_facts, read_facts

MAX_BYTES = 2**31 - 1
"""The largest file: protocol buffers have no longer messages, and data outside the file is refused."""

FACTS_KEY, SCHEMA_KEY, HASH_KEY = "thera.facts", "thera.schema", "thera.sha256"
"""The keys of the metadata."""

STANDARD = (b"", b"ai.onnx")
"""The domain of the standard operators of ONNX, in both spellings."""

DEEPEST = 8
"""The deepest nesting of graphs within graphs that is read: an `If` within a `Loop` has two."""

# The numbers of fields in onnx.proto3, as far as they are read.
_GRAPH, _OPSET, _METADATA, _TRAINING, _FUNCTIONS = 7, 8, 14, 20, 25
_NODE, _INITIALISER, _SPARSE_INITIALISER = 1, 5, 15
_ATTRIBUTE, _DOMAIN = 5, 7
_TENSORS, _GRAPHS, _SPARSE = (5, 10), (6, 11), (22, 23)
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


class _Damaged(ValueError):
    """The bytes are no message of protocol buffers."""


@dataclass(frozen=True)
class Sealed:
    """An exported model: the bytes of the whole file, its facts, and its SHA-256."""

    data: bytes
    facts: ModelFacts
    sha256: str


def sealed(model: bytes, facts: ModelFacts) -> bytes:
    """Return the file of a serialised `ModelProto` without metadata and of its facts."""
    body = model + _entry(SCHEMA_KEY, str(SCHEMA)) + _entry(FACTS_KEY, facts_text(facts))
    return body + _entry(HASH_KEY, hashlib.sha256(body).hexdigest())


def opened(path: Path) -> Sealed:
    """Read an exported model, once its hash and its content are checked.

    Raises
    ------
    ArtifactError
        It is missing, damaged, changed, of another program or of a newer version, or holds what is refused; or the JSON
        file beside it states other facts.
    """
    where = printable(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ArtifactError(where, "is larger than any model that thera writes", EXPORT_AGAIN)
        data = path.read_bytes()
    except FileNotFoundError:
        raise ArtifactError(where, "is not there", "export a run: thera export RUN") from None
    except OSError as error:
        raise ArtifactError(where, f"cannot be read ({error.strerror})", "restore it") from None
    result = checked(data, where)
    _check_json(path, result.facts)
    return result


def checked(data: bytes, where: str) -> Sealed:
    """Return an exported model from the bytes of its file; see `opened`."""
    entry = len(_entry(HASH_KEY, "0" * 64))
    body, tail = data[:-entry], data[-entry:]
    is_sealed = tail[:-64] == _entry(HASH_KEY, "0" * 64)[:-64]
    try:
        metadata = _metadata(data)
    except (_Damaged, UnicodeError):
        metadata = {}
    schema = metadata.get(SCHEMA_KEY, "")
    if schema.isdecimal() and schema.isascii() and len(schema) < 9 and int(schema) > SCHEMA:
        problem = f"has schema {schema}; this thera reads {SCHEMA}"
        raise ArtifactError(where, problem, "use the version that wrote it, or a newer one")
    if not is_sealed:
        known = any(f"thera.{name}".encode() in data for name in ("facts", "schema", "sha256"))
        problem = "is cut short or damaged" if known else "is no model that thera exported, or only a part of one"
        raise ArtifactError(where, problem, EXPORT_AGAIN)
    if hashlib.sha256(body).hexdigest().encode() != tail[-64:]:
        raise ArtifactError(where, "was changed after thera wrote it (its hash differs)", EXPORT_AGAIN)
    if schema != str(SCHEMA) or FACTS_KEY not in metadata:
        raise ArtifactError(where, "states no facts that this thera reads", EXPORT_AGAIN)
    try:
        _check_model(data, where)
    except _Damaged as error:
        raise ArtifactError(where, f"is damaged ({error})", EXPORT_AGAIN) from None
    return Sealed(data, read_facts(metadata[FACTS_KEY], where), tail[-64:].decode())


def json_beside(path: Path) -> Path:
    """Return the path of the JSON file with the same facts."""
    return path.with_suffix(".json")


def _check_json(path: Path, facts: ModelFacts) -> None:
    """Refuse a JSON file beside the model that states other facts; it is for readers, and may be absent."""
    beside = json_beside(path)
    if not beside.is_file():
        return
    remedy = f"remove it: the facts are in {printable(path.name)} too"
    try:
        content = json.loads(as_text(beside.read_bytes(), printable(beside)))
        stated = {key: value for key, value in content.items() if key not in ("schema", "content_sha256")}
    except (OSError, ValueError, AttributeError, RecursionError, DataError) as error:
        raise ArtifactError(printable(beside), f"is damaged ({printable(error)})", remedy) from None
    if ADDED | stated != plain_facts(facts):
        raise ArtifactError(printable(beside), f"states other facts than {printable(path.name)}", remedy)


# --- the content ------------------------------------------------------------------------------------------------------


def _check_model(data: bytes, where: str) -> None:
    for number, value in _fields(memoryview(data)):
        if number == _OPSET:
            for inner, domain in _fields(_message(value)):
                if inner == 1:
                    _check_domain(domain, where)
        elif number in (_TRAINING, _FUNCTIONS):
            raise ArtifactError(where, "holds functions or parts for training, which are refused", EXPORT_AGAIN)
        elif number == _GRAPH:
            _check_graph(_message(value), where, 0)


def _check_graph(graph: memoryview, where: str, depth: int) -> None:
    if depth > DEEPEST:
        raise _Damaged("its graphs are nested too deeply")
    for number, value in _fields(graph):
        if number == _INITIALISER:
            _check_tensor(_message(value), where)
        elif number == _SPARSE_INITIALISER:
            raise _Damaged("it holds sparse tensors")
        elif number == _NODE:
            for inner, part in _fields(_message(value)):
                if inner == _DOMAIN:
                    _check_domain(part, where)
                elif inner == _ATTRIBUTE:
                    _check_attribute(_message(part), where, depth)


def _check_attribute(attribute: memoryview, where: str, depth: int) -> None:
    for number, value in _fields(attribute):
        if number in _TENSORS:
            _check_tensor(_message(value), where)
        elif number in _GRAPHS:
            _check_graph(_message(value), where, depth + 1)
        elif number in _SPARSE:
            raise _Damaged("it holds sparse tensors")


def _check_tensor(tensor: memoryview, where: str) -> None:
    for number, value in _fields(tensor):
        if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
            raise ArtifactError(where, "has weights outside the file, which are refused", EXPORT_AGAIN)


def _check_domain(domain: memoryview | int, where: str) -> None:
    name = bytes(_message(domain))
    if name not in STANDARD:
        found = printable(name.decode("utf-8", "replace"))
        raise ArtifactError(where, f"uses operators of {found}, which are refused", "use standard operators of ONNX")


def _metadata(data: bytes) -> dict[str, str]:
    entries: dict[str, str] = {}
    for number, value in _fields(memoryview(data)):
        if number == _METADATA:
            parts = {inner: bytes(_message(part)).decode("utf-8") for inner, part in _fields(_message(value))}
            if parts.get(1, "") in entries:
                raise _Damaged("a key of its metadata occurs twice")
            entries[parts.get(1, "")] = parts.get(2, "")
    return entries


# --- protocol buffers -------------------------------------------------------------------------------------------------


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yield the number and the value of each field: the bytes of one with a length, the integer of any other."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        if key >= 2**32:  # other readers would keep the lower bits alone, and see another field
            raise _Damaged("the number of a field of it is too large")
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == 2:
            length, at = _varint(message, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise _Damaged("a field of it has an unknown type")
        if length > end - at:
            raise _Damaged("it ends within a field")
        part = message[at : at + length]
        at += length
        yield number, part if kind == 2 else int.from_bytes(part, "little")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return an integer and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise _Damaged("it ends within a number")
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise _Damaged("a number in it is too long")


def _message(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise _Damaged("a field of it has another type")
    return value


def _entry(key: str, value: str) -> bytes:
    """Return a field `metadata_props` of a `ModelProto`."""
    inner = b"\x0a" + _length(len(key)) + key.encode() + b"\x12" + _length(len(value)) + value.encode("ascii")
    return b"\x72" + _length(len(inner)) + inner


def _length(n: int) -> bytes:
    """Return a length as protocol buffers write it."""
    data = bytearray()
    while n > 127:
        data.append(n & 127 | 128)
        n >>= 7
    return bytes((*data, n))
