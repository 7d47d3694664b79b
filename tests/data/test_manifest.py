"""Faults 2 to 4, 12, 24 and 26 of the table, in manifests."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from samples import fill, text

from ensemble.data.source import open_source
from ensemble.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\na.jpg,1\n../out.jpg,0\n", "line 3: '../out.jpg' must be a path inside"),
        ("path,label\n/nowhere/a.jpg,1\n", "1 of 1 images are missing or not files: /nowhere/a.jpg (line 2)"),
        ("path,label,label\na.jpg,1,1\n", "two columns of one name"),
        ("path,label\na.jpg,cat\nb.jpg,1\n", "line 2: must be 0 or 1; got 'cat'"),
        ("path,label\na.jpg,1\naway.jpg,0\n", "line 3: away.jpg is a link out"),
        ("path,label\ndoor/out.jpg,0\n", "line 2: door/out.jpg is a link out"),
        ("path,label\na.jpg,1\nc.jpg,0\n", "1 of 2 images are missing or not files: c.jpg (line 3)"),
        ("path,label\na.jpg,1\n./a.jpg,0\n", "line 3: ./a.jpg is listed in line 2 already"),
        ("path,label\na.jpg,2\n", "line 2: must be 0 or 1; got '2'"),
        ("path,label\na.jpg,1,x\n", "line 2: has 3 columns; the first line has 2"),
        ("path,label\na.jpg,1\n\nb.jpg,0\n", "line 3: has 0 columns"),
        ("path,lable\na.jpg,1\n", "got 'path,lable'"),
        ("path,label\n", "lists no images"),
        ("path,group\na.jpg,\n", "line 2: has a blank group"),
        ('path\n"a.jpg\n', "is not valid CSV"),
        ("path\na.jpg\n".encode("utf-16"), "UTF-16"),
        (b"", "must have the columns"),
    ],
)
def test_manifests_that_are_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    fill(tmp_path / "m", "a.jpg", "b.jpg")
    fill(tmp_path, "out.jpg")
    (tmp_path / "m" / "away.jpg").symlink_to(tmp_path / "out.jpg")
    (tmp_path / "m" / "door").symlink_to(tmp_path)
    with pytest.raises(DataError) as error:
        open_source(text(tmp_path / "m" / "m.csv", content))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not valid Parquet"):
        open_source(text(tmp_path / "x.parquet", b"no parquet"))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_manifest(tmp_path: Path, kind: str) -> None:
    fill(tmp_path, "d/é,\n.jpg", "b.jpg", "=cmd().jpg")
    columns = {"path": ["d/é,\n.jpg", "b.jpg", "=cmd().jpg"], "label": [1, 0, 1], "group": ["x", "y", "x"]}
    if kind == "csv":
        with open(tmp_path / "m.csv", "w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows([columns, *zip(*columns.values(), strict=True)])
    else:
        parquet.write_table(pa.table(columns), tmp_path / "m.parquet")
    source = open_source(tmp_path / f"m.{kind}")
    assert source.ids.tolist() == columns["path"]
    assert source.labels is not None and source.labels.tolist() == [1, 0, 1]
    assert source.groups is not None and source.groups.tolist() == [0, 1, 0]
    assert source.read(0) == "d/é,\n.jpg".encode()
    with pytest.raises(ConfigError, match="has labels already"):
        open_source(tmp_path / f"m.{kind}", text(tmp_path / "l.txt", "1\n0\n1\n"))


def test_manifest_with_a_name_that_is_no_utf8_and_without_labels(tmp_path: Path) -> None:
    fill(tmp_path, os.fsdecode(b"\xff.jpg"))
    source = open_source(text(tmp_path / "m.csv", b"path\n\xff.jpg\n\n"))
    assert source.labels is None and source.groups is None
    assert source.read(0) == b"\xff.jpg"


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        ("path;label\na.jpg;1\nb.jpg;0\n", 0),
        ('"path","label"\n"a.jpg","1"\n"b.jpg","0"\n', 0),
        ("path, label\na.jpg, 1\nb.jpg, 0\n", 0),
        ("path,label\na.jpg,1.0\nb.jpg,0.0\n", 1),
        ("path,label\na.jpg,1\nb.jpg,-1\n", 1),
        ("path,label\na,1\nb,0\n", 1),
        ("image_id,target\na,1\nb,0\n", 1),
        ("path,label,patient_id,age\na.jpg,1,7,40\nb.jpg,0,8,50\n", 1),
        ("age\tlabel\tFileName\n40\t1\ta.jpg\n50\t0\tb.jpg\n", 1),
        ("path,label\na.jpg,on\nb.jpg,off\n", 1),
    ],
)
def test_forms_of_manifests(tmp_path: Path, content: str, notes: int) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "b.jpg").write_bytes(b"b")
    (tmp_path / "set.csv").write_text(content)
    source = open_source(tmp_path / "set.csv")
    assert source.ids.tolist() == ["a.jpg", "b.jpg"]
    assert source.labels is not None and source.labels.tolist() == [1, 0]
    assert len(source.notes) == notes
    assert source.read(1) == b"b"


def test_a_path_without_suffix_must_name_one_file(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).write_bytes(b"a")
    (tmp_path / "set.csv").write_text("path,label\na,1\n")
    with pytest.raises(DataError, match=r"line 2: may be a\.jpg, a\.png; write the suffix"):
        open_source(tmp_path / "set.csv")
