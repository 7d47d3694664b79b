from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import sigmoid_focal_loss

from ensemble.config import MemberConfig
from ensemble.members.losses import class_weights, classification_loss, focal_loss

LOGITS = torch.linspace(-12, 12, 97)


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [None, 0.25, 0.9])
def test_equals_torchvision(label: float, gamma: float, alpha: float | None) -> None:
    labels = torch.full_like(LOGITS, label)
    expected = sigmoid_focal_loss(LOGITS.double(), labels.double(), alpha=-1 if alpha is None else alpha, gamma=gamma)
    torch.testing.assert_close(focal_loss(LOGITS, labels, gamma, alpha).double(), expected, rtol=1e-5, atol=1e-7)


@given(st.floats(-100, 100), st.sampled_from([0.0, 1.0]))
def test_gamma_zero_is_cross_entropy(logit: float, label: float) -> None:
    z, y = torch.tensor([logit]), torch.tensor([label])
    torch.testing.assert_close(focal_loss(z, y, 0.0, None), binary_cross_entropy_with_logits(z, y, reduction="none"))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_finite_with_finite_gradients_far_out(gamma: float, alpha: float | None) -> None:
    logits = torch.tensor([-100.0, -100.0, 0.0, 100.0, 100.0], requires_grad=True)
    losses = focal_loss(logits, torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0]), gamma, alpha)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_half_precision_logits_are_widened() -> None:
    logits = torch.tensor([0.1, -3.0], dtype=torch.bfloat16)
    labels = torch.tensor([1.0, 0.0])
    assert focal_loss(logits, labels, 2.0, None).dtype == torch.float32
    assert torch.equal(focal_loss(logits, labels, 2.0, None), focal_loss(logits.float(), labels, 2.0, None))


def config(loss: str, **values: float) -> MemberConfig:
    return MemberConfig.model_validate({"arch": "resnet18", "loss": loss} | values)


LABELS = (torch.arange(97) % 4 > 0).float()
GIVEN = LABELS.numpy().astype(int)


def test_weights_are_those_of_scikit_learn() -> None:
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=GIVEN)
    assert class_weights("weighted-bce", GIVEN) == pytest.approx(tuple(expected))
    assert class_weights("weighted-focal", GIVEN) == class_weights("weighted-bce", GIVEN)
    assert class_weights("bce", GIVEN) is None and class_weights("focal", GIVEN) is None


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("loss", ["bce", "weighted-bce"])
def test_cross_entropy_equals_torchs_on_smoothed_labels(loss: str, smoothing: float) -> None:
    weights = class_weights(loss, GIVEN)
    found = classification_loss(LOGITS, LABELS, config(loss, label_smoothing=smoothing), weights)
    soft = LABELS * (1 - smoothing) + smoothing / 2
    each = None if weights is None else torch.where(LABELS > 0.5, weights[1], weights[0])
    expected = binary_cross_entropy_with_logits(LOGITS, soft, weight=each, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_weighted_focal_is_torchvisions_times_the_weight() -> None:
    weights = class_weights("weighted-focal", GIVEN)
    assert weights is not None
    found = classification_loss(LOGITS, LABELS, config("weighted-focal", gamma=1.5), weights)
    plain = sigmoid_focal_loss(LOGITS, LABELS, alpha=-1, gamma=1.5)
    torch.testing.assert_close(found, plain * torch.where(LABELS > 0.5, weights[1], weights[0]), rtol=1e-5, atol=1e-6)


def test_focal_is_the_focal_loss_as_it_is() -> None:
    found = classification_loss(LOGITS, LABELS, config("focal", gamma=3.0, alpha=0.25), None)
    assert torch.equal(found, focal_loss(LOGITS, LABELS, 3.0, 0.25))


def test_alpha_belongs_to_the_focal_loss() -> None:
    with pytest.raises(ValueError, match="alpha belongs to the focal loss, not to weighted-focal"):
        config("weighted-focal", alpha=0.25)
