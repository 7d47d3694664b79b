import numpy as np
import pytest

from ensemble.data.folds import FoldTable
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import fit_decision


@pytest.fixture(scope="session")
def decision():
    rng = np.random.default_rng(3)
    labels = (np.arange(400) % 4 > 0).astype(np.int8)
    logits = rng.normal(size=(400, 2)) + np.outer(2.0 * labels - 1, (1.0, 0.5))
    oof = OofLogits(FoldTable(np.arange(400), labels, np.arange(400) // 4 % 4), ("cnn[b]", "a|b"), logits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ensemble.decision.assessment.REPLICATES", 50)
        return fit_decision(oof, ("plain", "flip"), repeats=3)
