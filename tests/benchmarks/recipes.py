"""What does each recipe of the public solutions give on the same rows?

    python tests/benchmarks/recipes.py --images train_img --labels label_train.txt

Takes a fixed part of the rows, runs every file of configs/recipes and an ensemble of three on it with the same folds
and as many epochs, and prints a table: nested HTER with its interval, and how far it lies from the ensemble's, paired.
What is done already is not done again. The runs lie in checkpoints/recipes/, the table in its README.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import yaml

from ensemble.config import load_config, overridden, seed_sequence
from ensemble.data.source import parse_labels
from ensemble.decision.comparison import compare_calls
from ensemble.evaluation import nested_calls
from ensemble.pipeline import run_config
from ensemble.progress import say
from ensemble.reports.tables import Table
from ensemble.runs import FROM_SCRATCH, Run, write_whole
from ensemble.trainer import Machine

RECIPES = sorted((Path(__file__).parents[2] / "configs/recipes").glob("*.yaml"))

PUBLISHED = {
    "small-cnn-vote": "0.0840 (pooled OOF of 5 folds, at 0.5, 50 epochs)",
    "simple-cnn/simple_cnn-bce": "0.1725 (one split)",
    "simple-cnn/simple_cnn-weighted-bce": "0.1565 (one split)",
    "mobilenetv2-transfer": "one of 0.1391, 0.1553, 0.2840, 0.0850 (one split, ImageNet weights)",
    "resnet18-transfer": "about 0.15 (balanced accuracy 0.85, one split, ImageNet weights)",
    "lenet-cleaned/lenet": "0.1190 (one split), 0.1255 (OOF)",
    "lenet-cleaned/lenet-cleaned": "0.0757 (rows removed from the test set too)",
}

ENSEMBLE = {
    "about": "The three members of the design, stacked",
    "run": "",
    "data": {"images": "images"},
    "members": [
        {"arch": "resnet18", "pretrained": False, "augment": "light"},
        {"arch": "mobilenetv2", "pretrained": False, "augment": "light"},
        {"arch": "convnext_nano", "pretrained": False, "lr": 1e-3, "augment": "light"},
    ],
}


def part_of(images: Path, labels: Path, n: int) -> Path:
    """Write the manifest of `n` rows beside the images, drawn from seed 0 with both classes in their shares."""
    given = parse_labels(labels.read_bytes(), str(labels))
    files = sorted(images.iterdir(), key=lambda path: int(path.stem))
    if len(files) != len(given):
        raise SystemExit(f"{len(files)} images and {len(given)} labels")
    rng = np.random.default_rng(seed_sequence(0, "recipes"))
    zeros, ones = (rng.permutation(np.flatnonzero(given == label)) for label in (0, 1))
    share = round(n * len(zeros) / len(given))
    rows = np.sort(np.concatenate([zeros[:share], ones[: n - share]]))
    path = images.parent / f"recipes-{n}.csv"
    lines = [f"{images.name}/{files[row].name},{given[row]}\n" for row in rows]
    write_whole(path, ("path,label\n" + "".join(lines)).encode())
    return path


def main(images: Path, labels: Path, n: int, epochs: int, jobs: int | None, place: Path) -> None:
    manifest = part_of(images, labels, n)
    place.mkdir(parents=True, exist_ok=True)
    (place / "ensemble.yaml").write_text(yaml.safe_dump(ENSEMBLE | {"run": str(place / "ensemble")}))
    for path in (place / "ensemble.yaml", *RECIPES):
        config = overridden(load_config(path), place / path.stem, manifest, None, 3, epochs)
        run_config(config, Machine("auto", jobs=jobs), say)
    to = nested_calls(place / "ensemble", True, say)
    scratch = []
    rows = [_row("ensemble", place / "ensemble", to.called, to, epochs)]
    for path in RECIPES:
        members = [member.name for member in Run(place / path.stem).members()]
        for name in members:
            where = place / path.stem / "members" / name
            told = path.stem if len(members) == 1 else f"{path.stem}/{name}"
            facts = Run(place / path.stem).member(name).read()
            if not facts["config"]["pretrained"] or facts.get("started_from") == FROM_SCRATCH:
                scratch.append(told)
            rows.append(_row(told, where, nested_calls(where, True, say).called, to, epochs))
    table = Table(
        f"Recipes on the same {n} rows, 3 folds, {epochs} epochs",
        ("recipe", "published", "HTER here", "95 %", "less the ensemble's", "95 %, paired"),
        tuple(rows),
        (
            "HTER is nested, views identity + hflip, each at its own threshold, on labels as given, all rows.",
            f"From scratch: {', '.join(scratch) or 'none'}. With {epochs} epochs a step schedule of 20 takes no step.",
        ),
    )
    write_whole(place / "README.md", ("#" + table.markdown()[1:]).encode())
    print(table.text(), end="")


def _row(told: str, where: Path, called: np.ndarray, to: object, epochs: int) -> tuple[str, ...]:
    compared = compare_calls(to.labels, to.called, called, to.groups, to.seed)  # type: ignore[attr-defined]
    b, apart = compared.b, compared.hter
    return (
        told,
        PUBLISHED.get(told, PUBLISHED.get(told.split("/")[0], "")),
        f"{b.rates.hter:.4f}",
        f"{b.hter.low:.4f} to {b.hter.high:.4f}",
        f"{apart.value:+.4f}",
        f"{apart.interval.low:+.4f} to {apart.interval.high:+.4f}",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--out", type=Path, default=Path("checkpoints/recipes"))
    given = parser.parse_args()
    main(given.images, given.labels, given.rows, given.epochs, given.jobs, given.out)
