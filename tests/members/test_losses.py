from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import sigmoid_focal_loss

from ensemble.members.losses import focal_loss

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
