"""Tables whose columns have other names: `--image-column` and `--label-column` name them."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples import fill, text

from ensemble.cli import main
from ensemble.config import DataConfig
from ensemble.config_reading import load_config, overridden
from ensemble.data.source import open_labelled, open_source, open_unlabelled
from ensemble.errors import ConfigError, DataError
from ensemble.predict_config import PredictConfig

TABLE = "file,x_ray,verdict,second\n1.jpg,b.jpg,0,1\n2.jpg,a.jpg,1,1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    text(tmp_path / "set.csv", TABLE)
    return fill(tmp_path, "a.jpg", "b.jpg", "1.jpg", "2.jpg")


@pytest.mark.parametrize(
    ("image", "label", "ids", "labels"),
    [
        ("x_ray", "verdict", ["b.jpg", "a.jpg"], [0, 1]),  # also where `file` has a known name
        (None, "verdict", ["1.jpg", "2.jpg"], [0, 1]),
        ("x_ray", "second", ["b.jpg", "a.jpg"], [1, 1]),
    ],
)
def test_a_manifest_is_read_by_given_columns(
    folder: Path, image: str | None, label: str, ids: list[str], labels: list[int]
) -> None:
    source = open_source(folder / "set.csv", image_column=image, label_column=label)
    assert source.ids.tolist() == ids and source.labels is not None and source.labels.tolist() == labels
    assert source.read(0).decode() == ids[0]


def test_a_label_file_is_read_by_given_columns(tmp_path: Path) -> None:
    images = fill(tmp_path / "img", "a.jpg", "b.jpg")
    labels = text(tmp_path / "l.csv", "x_ray;verdict\nb.jpg;0\na.jpg;1\n")
    config = DataConfig(images=images, labels=labels, image_column="x_ray", label_column="verdict")
    source = open_labelled(config)
    assert source.labels is not None and source.labels.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"must have the columns path\[,label\].*or give --image-column"):
        open_source(images, labels)


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        ("xray", None, "--image-column: .*set.csv has no column xray; its columns are file, x_ray, verdict, second"),
        (None, "Verdict", "--label-column: .*set.csv has no column Verdict; its columns are file, x_ray, verdict"),
    ],
)
def test_a_column_that_does_not_exist_is_refused(
    folder: Path, image: str | None, label: str | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_source(folder / "set.csv", image_column=image, label_column=label)


def test_columns_belong_to_tables(tmp_path: Path) -> None:
    images, lines = fill(tmp_path / "img", "1.jpg", "2.jpg"), text(tmp_path / "l.txt", "0\n1\n")
    with pytest.raises(ConfigError, match="--label-column: neither the images nor their labels are a table"):
        open_source(images, lines, label_column="verdict")
    no_labels = text(tmp_path / "l.csv", "name,verdict\n1.jpg,0\n2.jpg,1\n")
    with pytest.raises(DataError, match=r"has no column of labels; its columns are name, verdict; .*--label-column"):
        open_source(images, no_labels)


def test_prediction_reads_the_given_column_of_a_table_alone(folder: Path) -> None:
    def config(images: Path) -> PredictConfig:
        return PredictConfig(images=(images,), image_column="x_ray")

    assert open_unlabelled(config(folder / "set.csv")).ids.tolist() == ["b.jpg", "a.jpg"]
    assert len(open_unlabelled(config(folder / "a.jpg"))) == 1


def test_columns_given_to_a_run_belong_to_its_images(tmp_path: Path) -> None:
    path = text(
        tmp_path / "run.yaml",
        "run: r\ndata: {images: a.csv, image_column: x, label_column: y}\nmembers: [{arch: lenet}]\n"
        "predict: {images: b.csv, image_column: x}\n",
    )
    config = load_config(path)
    named = overridden(config, image_column="z", label_column="t")
    assert (named.data.image_column, named.data.label_column) == ("z", "t")
    assert named.predict is not None and named.predict.image_column == "z"
    assert overridden(config).data == config.data and overridden(config).predict == config.predict
    other = overridden(config, images=Path("c.csv"))
    assert (other.data.image_column, other.data.label_column) == (None, None)


def test_the_command_names_the_columns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--images", str(folder / "set.csv"), "--label-column", "y", "--run", str(folder / "run")]
    with pytest.raises(SystemExit) as stopped:
        main(["train-member", "--arch", "lenet", *data])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        f"error: --label-column: {folder}/set.csv has no column y; its columns are file, x_ray, verdict, second\n"
    )


def test_a_table_without_a_known_column_of_labels_needs_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, "a.jpg")
    text(tmp_path / "set.csv", "path,verdict\na.jpg,0\n")
    with pytest.raises(SystemExit) as stopped:
        main(["train-member", "--arch", "lenet", "--images", str(tmp_path / "set.csv"), "--run", str(tmp_path / "run")])
    expected = f"error: {tmp_path}/set.csv: has no labels; give --label-column or --labels\n"
    assert (stopped.value.code, capsys.readouterr().err) == (3, expected)
