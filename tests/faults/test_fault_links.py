"""Fault 24 of the table: commands that read images follow links with `--follow-links`, and so does the estimator."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tiny import write_tiny

from ensemble import TheraClassifier
from ensemble.cli import main
from ensemble.config_reading import load_config, overridden
from ensemble.errors import ConfigError, DataError
from ensemble.runs.run import Run


def linked(folder: Path, n: int = 12) -> Path:
    """Return a folder of links to n images that lie elsewhere; their labels are beside it."""
    write_tiny(folder / "cache", n)
    (folder / "img").mkdir()
    for path in (folder / "cache/img").iterdir():
        os.symlink(path, folder / "img" / path.name)
    return folder / "img"


def test_run_passes_it_on_to_training_and_prediction(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("run: r\ndata: {images: a}\nmembers: [{arch: lenet}]\npredict: {images: b}\n")
    config = overridden(load_config(path), follow_links=True, on_bad="skip", exif="apply", bad_label=1)
    assert config.data.follow_links and config.data.on_bad == "skip" and config.data.exif == "apply"
    assert config.predict is not None and config.predict.follow_links
    assert (config.predict.on_bad, config.predict.bad_label) == ("skip", 1)
    assert not overridden(load_config(path)).data.follow_links


def test_class_folders_of_true_labels_may_have_links(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, names = linked(tmp_path), [f"{number:03d}.png" for number in range(1, 13)]
    for row, name in enumerate(names):
        (tmp_path / "classes" / str(row % 2)).mkdir(parents=True, exist_ok=True)
        os.symlink(images / name, tmp_path / "classes" / str(row % 2) / name)
    file = tmp_path / "p.csv"
    file.write_text("name,label\n" + "".join(f"{row % 2}/{name},{row % 2}\n" for row, name in enumerate(names)))
    command = ["evaluate", str(file), "--labels", str(tmp_path / "classes")]
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 3 and "or give --follow-links" in capsys.readouterr().err
    main([*command, "--follow-links"])
    assert "HTER 0.0000" in capsys.readouterr().out
    main(["compare", str(file), str(file), *command[2:], "--follow-links"])


def test_true_labels_are_read_from_a_given_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.csv").write_text("name,label\na.png,0\nb.png,1\n")
    (tmp_path / "t.csv").write_text("x_ray,verdict\na.png,0\nb.png,1\n")
    command = ["evaluate", str(tmp_path / "p.csv"), "--labels", str(tmp_path / "t.csv")]
    main([*command, "--image-column", "x_ray", "--label-column", "verdict"])
    assert "HTER 0.0000" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*command, "--label-column", "y"])
    assert "has no column y; its columns are x_ray, verdict" in capsys.readouterr().err


def test_the_estimator_reads_as_its_parameters_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = linked(tmp_path)
    (tmp_path / "cache/img/012.png").write_bytes(b"")
    labels = np.array([row % 4 != 0 for row in range(12)], int)
    read: list[Path] = []
    monkeypatch.setattr("ensemble.commands.fit_stacker.fit_stacker", lambda *_: None)
    monkeypatch.setattr("ensemble.commands.train.train_members", lambda run, *_: read.append(run))
    monkeypatch.setattr(TheraClassifier, "_load", lambda *_: None)

    def classifier(**parameters: object) -> TheraClassifier:
        return TheraClassifier(members=("lenet",), run=tmp_path / "run", **parameters)  # type: ignore[arg-type]

    with pytest.raises(DataError, match="--follow-links"):
        classifier().fit(images, labels)
    with pytest.raises(DataError, match=r"012\.png is empty"):
        classifier(follow_links=True).fit(images, labels)
    with pytest.raises(ConfigError, match="exif: must be ignore or apply; got turn"):
        classifier(follow_links=True, exif="turn").fit(images, labels)
    assert not read
    classifier(follow_links=True, on_bad="skip").fit(images, labels)
    paths = [str(path) for path in sorted(images.iterdir())]
    classifier(on_bad="skip", exif="apply").fit(paths, labels)
    assert len(read) == 2 and len(list(Run(tmp_path / "run").pixels.glob("*/store.json"))) == 2
