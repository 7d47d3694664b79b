import numpy as np
import pytest

from ensemble.data.folds import FoldTable
from ensemble.decision.cross_fitting import OofLogits


@pytest.fixture
def rng():
    return np.random.default_rng(20)


@pytest.fixture
def make_oof(rng):
    """Return OOF logits of members whose logits lie at +-separation, noise 1; label 0 is a quarter of the rows.

    `common` is the share of the noise's variance that all members have in common.
    """

    def make(n=600, separations=(1.0, 0.6, 0.2), k=4, groups=None, common=0.0):
        labels = (np.arange(n) % 4 > 0).astype(np.int8)
        fold_of = np.arange(n) // 4 % k
        noise = rng.normal(size=(n, len(separations)))
        if common:
            noise = np.sqrt(1 - common) * noise + np.sqrt(common) * rng.normal(size=(n, 1))
        logits = noise + np.outer(2.0 * labels - 1, separations)
        members = tuple(f"m{j}" for j in range(len(separations)))
        return OofLogits(FoldTable(np.arange(n).astype(str), labels, fold_of, groups), members, logits)

    return make
