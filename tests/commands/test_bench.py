from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny import write_tiny

from ensemble import progress
from ensemble.bench.material import Wish, member_of, open_material
from ensemble.bench.ours import OurTrainingTogether
from ensemble.bench.verbs import bench, decide
from ensemble.cli import main
from ensemble.members.plans import Plan


def quiet(_: str) -> None: ...


@pytest.fixture(scope="module")
def wish(tmp_path_factory: pytest.TempPathFactory) -> Wish:
    folder = tmp_path_factory.mktemp("bench")
    write_tiny(folder, 256, size=32)
    return Wish(("resnet10t",), folder / "img", folder / "labels.txt", limit=256, peers=True, rounds=2)


def number(cell: str) -> float:
    return float(re.match(r"[0-9.]+", cell)[0])


def test_training_is_held_against_its_peers(wish: Wish) -> None:
    (table,) = bench(("train",), wish, quiet)
    (row,) = table.rows
    cells = dict(zip(table.columns, row, strict=False))
    assert cells["architecture"] == "resnet10t" and number(cells["images/s"]) > 0
    assert number(cells["of the roofline"]) > 0  # above 100 % where the machine was busy while the ceiling was measured
    peers = [column for column in table.columns if "loop" in column or "timm" in column]
    assert len(peers) == 3 and row.count("") == 0
    ratio = number(row[table.columns.index(peers[0]) + 1])
    assert ratio == pytest.approx(number(cells["images/s"]) / number(cells[peers[0]]), rel=0.5)
    for told in ("images/s by plan", "images/s by batch", "augmentation makes", "--convolutions compiled"):
        assert any(told in note for note in table.notes)


def test_training_as_on_a_gpu_is_measured_epoch_by_epoch(wish: Wish) -> None:
    """Five folds in this process; each of a turn's images is augmented once."""
    with open_material(wish) as material:
        config = member_of("lenet").model_copy(update={"batch_size": 32})
        cpu = torch.device("cpu")
        ours = OurTrainingTogether(config, Plan("fp32"), material.mapped, material.labels, 5, 0, cpu)
        before = [value.clone() for learner in ours._learners for value in learner.network.state_dict().values()]
        with progress.progress(1, "test") as bar:
            assert [ours.run(bar), ours.run(bar)] == [5 * (205 // 32 * 32)] * 2
        after = [value for learner in ours._learners for value in learner.network.state_dict().values()]
        assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        ours.close()


@pytest.mark.filterwarnings("ignore")  # of the exporters
def test_prediction_and_loading_are_held_against_their_peers(wish: Wish) -> None:
    predicted, loaded = bench(("predict", "load"), wish, quiet)
    assert "timm eager fp32" in predicted.columns and number(predicted.rows[0][2]) > 0
    names = [row[0] for row in loaded.rows]
    assert names[1] == "thera" and len(names) == 4 and all(number(row[1]) > 0 for row in loaded.rows)
    assert all(number(row[2]) > 1 for row in loaded.rows[2:]), "a store that is slower than decoding is none"


def test_a_decision_is_clocked() -> None:
    table = decide(Wish(peers=True, rounds=1), n=2000)
    assert [row[0].split()[0] for row in table.rows] == ["the", "scikit-learn's", "a"]
    assert all(float(row[1]) > 0 for row in table.rows) and number(table.rows[1][2]) > 1


def test_an_unknown_subject_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["bench", "sleep"])
    assert left.value.code == 2
    assert "must be of train, predict, decide, load; got sleep" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    write_tiny(tmp_path, 8)
    with pytest.raises(SystemExit) as left:
        main(["bench", "train", "--device", "cuda", "--images", str(tmp_path / "img")])
    assert left.value.code == 2 and "torch sees 0 CUDA devices; use --device cpu" in capsys.readouterr().err


def test_images_that_are_not_there_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["bench", "load", "--images", str(tmp_path / "none")])
    assert left.value.code == 2 and "must be a folder of image files" in capsys.readouterr().err
