"""Measure each recipe of the public solutions on the same rows.

    python tests/benchmarks/recipes.py --images train_img --labels label_train.txt

The script takes a fixed part of the rows, runs configs/ensemble.yaml and every file of configs/recipes on it with the
same folds, and prints a table: the nested HTER with its interval, and its paired difference to the ensemble's. Then it
measures the vote of the small CNN's fold models on as many other rows, which no fold model was trained on. Finished
runs are not repeated. The runs are in checkpoints/recipes/, and the tables in its README.md; the script writes two
manifests into the folder of the images.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ensemble.commands.evaluate import Side, read_side
from ensemble.commands.fit_stacker import averaged_oof
from ensemble.commands.predict import predict
from ensemble.commands.run import run as run_config
from ensemble.config import VIEW_SETS, ComputeConfig, seed_sequence
from ensemble.config_reading import load_config, overridden
from ensemble.data.labels import parse_labels
from ensemble.decision.assessment import compare_nested
from ensemble.decision.comparison import measure_predictions
from ensemble.decision.rates import auc, error_rates
from ensemble.predict_config import PredictConfig
from ensemble.progress import say
from ensemble.reports.table import Table
from ensemble.runs.files import write_whole
from ensemble.runs.member import FROM_SCRATCH
from ensemble.runs.run import Run

CONFIGS = Path(__file__).parents[2] / "configs"

EPOCHS = {"small-cnn-vote": 20, "simple-cnn": 20}
"""The epochs of the small networks, as many as two cores allow. The other networks train for `FEWER` epochs."""

FEWER = 6

FLIPPED = {"ensemble", "focal-oversampling"}
"""The recipes that average the logits of an image and its mirror image; the others were published without this."""


def manifests(images: Path, labels: Path, n: int) -> tuple[Path, Path]:
    """Write two stratified manifests of `n` rows each, drawn with seed 0, into the folder of the images."""
    given = parse_labels(labels.read_bytes(), str(labels))
    files = sorted(images.iterdir(), key=lambda path: int(path.stem))
    if len(files) != len(given):
        raise SystemExit(f"{len(files)} images and {len(given)} labels")
    rng = np.random.default_rng(seed_sequence(0, "recipes"))
    zeros, ones = (rng.permutation(np.flatnonzero(given == label)) for label in (0, 1))
    share = round(n * len(zeros) / len(given))
    if 2 * n > len(given):
        raise SystemExit(f"--rows must leave as many to predict: at most {len(given) // 2}")
    paths = images.parent / f"recipes-{n}.csv", images.parent / f"recipes-{n}-others.csv"
    for index, path in enumerate(paths):
        rows = zeros[index * share :][:share], ones[index * (n - share) :][: n - share]
        lines = [f"{images.name}/{files[row].name},{given[row]}\n" for row in np.sort(np.concatenate(rows))]
        write_whole(path, ("path,label\n" + "".join(lines)).encode())
    return paths


def main(images: Path, labels: Path, n: int, jobs: int | None, out: Path) -> None:
    learnt, others = manifests(images, labels, n)
    files = [CONFIGS / "ensemble.yaml", *sorted((CONFIGS / "recipes").glob("*.yaml"))]
    for path in files:
        epochs = EPOCHS.get(path.stem, FEWER)
        run_config(
            overridden(load_config(path), out / path.stem, learnt, None, 3, epochs),
            ComputeConfig(jobs=jobs),
            say,
        )
    to = read_side(out / "ensemble", True, say)
    rows, scratch = [], []
    for path in files:
        run, tta = Run(out / path.stem), path.stem in FLIPPED
        names = [member.name for member in run.members()]
        for name in names:
            facts = run.member(name).read()
            recipe = path.stem if len(names) == 1 or path.stem == "ensemble" else f"{path.stem}/{name}"
            if not facts.config["pretrained"] or facts.started_from == FROM_SCRATCH:
                scratch.append(recipe)
            if path.stem != "ensemble":
                rows.append(_row(recipe, run, name, tta, to, facts.config["epochs"]))
        if path.stem == "ensemble":
            whole = compare_nested(to.rule, to.rule, to.table.groups, to.seed).a
            hter = f"{whole.rates.hter:.4f}", f"{whole.hter.low:.4f} to {whole.hter.high:.4f}"
            rows.append(("ensemble, stacked", str(EPOCHS.get(path.stem, FEWER)), "2", *hter, "", "", "", ""))
    tables = [
        Table(
            f"Recipes on the same {n} rows, 3 folds",
            (
                "recipe",
                "epochs",
                "views",
                "HTER here",
                "95 % interval",
                "at 0.5",
                "AUC",
                "minus the ensemble's",
                "95 % interval, paired",
            ),
            tuple(rows),
            (
                "HTER is nested: every row is scored with its label as given, at the threshold fitted on the other "
                "folds. The columns at 0.5 and AUC are measured on the pooled OOF logits. One view is the image; two "
                "views are the image and its mirror image.",
                "If the logits of the fold models differ in scale, as they do without a weight average, a threshold "
                "fitted on other folds costs more.",
                f"Trained from scratch: {', '.join(dict.fromkeys(scratch)) or 'none'}.",
            ),
        ),
        _voting(out / "small-cnn-vote", others, ComputeConfig(jobs=jobs)),
    ]
    text = "\n".join(table.markdown() for table in tables)
    write_whole(out / "README.md", ("# Recipes of public solutions\n\n" + text).encode())
    print("\n".join(table.text() for table in tables), end="")


def _row(recipe: str, run: Run, name: str, tta: bool, to: Side, epochs: int) -> tuple[str, ...]:
    views = VIEW_SETS["tta" if tta else "plain"]
    side = read_side(run.folder / "members" / name, tta, say)
    logits = averaged_oof(run, (name,), views).logits[:, 0]
    compared = compare_nested(to.rule, side.rule, to.table.groups, to.seed)
    return (
        recipe,
        str(epochs),
        str(len(views)),
        f"{compared.b.rates.hter:.4f}",
        f"{compared.b.hter.low:.4f} to {compared.b.hter.high:.4f}",
        f"{error_rates(to.table.labels, logits >= 0).hter:.4f}",
        f"{auc(logits, to.table.labels):.3f}",
        f"{compared.hter.value:+.4f}",
        f"{compared.hter.interval.low:+.4f} to {compared.hter.interval.high:+.4f}",
    )


def _voting(folder: Path, others: Path, compute: ComputeConfig) -> Table:
    """Measure the vote of a run's fold models, each of them, and their mean, on rows that none was trained on."""
    labels = np.array([int(row["label"]) for row in _read(others)])
    predictions: dict[str, Sequence[int]] = {}
    for combine in ("vote", "mean"):
        config = PredictConfig(images=others, out=folder / f"label-{combine}.txt", tta=False, combine=combine)
        predict(folder, config, compute, say)
        predictions[combine] = [int(line) for line in config.out.read_text().split()]
        if combine == "vote":
            (table,) = (folder / "predictions").glob("*/predictions.csv")
            voted = _read(table)
            predictions |= {
                name: [int(row[name]) for row in voted] for name in voted[0] if name.startswith("vote_fold-")
            }
    rows = []
    for name, y_pred in predictions.items():
        measured = measure_predictions(labels, np.array(y_pred))
        low, high = measured.hter.low, measured.hter.high
        rates = measured.rates
        rows.append((name, f"{rates.fpr:.4f}", f"{rates.fnr:.4f}", f"{rates.hter:.4f}", f"{low:.4f} to {high:.4f}"))
    title = f"{folder.name}: {len(labels)} other rows, labelled by the vote, the mean of logits, and single fold models"
    return Table(title, ("labels of", "FPR", "FNR", "HTER", "95 % interval"), tuple(rows))


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--out", type=Path, default=Path("checkpoints/recipes"))
    given = parser.parse_args()
    main(given.images, given.labels, given.rows, given.jobs, given.out)
