"""The weights that a member starts from: those of a file, or of the fold models of another member."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble.config import MemberConfig
from ensemble.errors import ArtifactError, printable, some
from ensemble.runs import files
from ensemble.runs.member import MemberFolder
from ensemble.runs.run import Run

if TYPE_CHECKING:
    from ensemble.data.dataset import Dataset
    from ensemble.data.folds import FoldTable


def is_member_folder(path: Path) -> bool:
    """Return whether a path is the folder of a member."""
    return (path / "member.json").is_file()


def starting_weights(
    member: MemberConfig, dataset: Dataset, table: FoldTable, folds: Sequence[int]
) -> tuple[list[files.Tensors | None], Any]:
    """Return the weights that the network of each fold starts from, and their hashes.

    From another member, the network of a fold starts from a fold model that was trained without the images of this
    fold; its OOF logits then stay those of images that it has never seen.

    Parameters
    ----------
    member : MemberConfig
    dataset : Dataset
        The images of the run.
    table : FoldTable
        The folds of the run.
    folds : sequence of int
        The folds to train.

    Returns
    -------
    list of tensors or None
        For each of `folds`, the state dict; None where the config gives no weights.
    str, list of str or None
        The SHA-256 of the file, or of the weights of each fold model of the other member.

    Raises
    ------
    ArtifactError
        The file or the other member cannot be read, or its fold models have seen images of the folds that they would
        be evaluated on.
    """
    path = member.weights
    if path is None:
        return [None] * len(folds), None
    if not is_member_folder(path):
        return [files.read_tensors(path)] * len(folds), files.file_sha256(path)
    other = MemberFolder(path)
    of_fold = _unseeing_fold_models(path, dataset, table)
    hashes = [other.weights_sha256(of_fold[fold]) for fold in range(table.k)]
    return [other.read_weights(of_fold[fold]) for fold in folds], hashes


def _unseeing_fold_models(path: Path, dataset: Dataset, table: FoldTable) -> list[int]:
    """Return for each fold the fold model of another member that has seen none of its images.

    Where the two runs share no images, any fold model will do.
    """
    run = Run(path.absolute().parents[1])
    there, digests = run.read_folds(), run.read_images()
    keys, others = (dataset.ids, there.ids) if digests is None else (dataset.digests, digests)
    _, here_rows, there_rows = np.intersect1d(keys, others, return_indices=True)
    chosen = []
    for fold in range(table.k):
        held_out = table.fold_of[here_rows] == fold
        of_other = np.unique(there.fold_of[there_rows[held_out]])
        if of_other.size > 1:
            both = table.ids[here_rows[held_out]]
            problem = f"its fold models have seen images that fold {fold} holds out ({some(both.tolist())})"
            raise ArtifactError(printable(path), problem, "start from a member that was trained in the same folds")
        chosen.append(int(of_other[0]) if of_other.size else fold % there.k)
    return chosen
