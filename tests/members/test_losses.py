from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchvision.ops import sigmoid_focal_loss

from ensemble.config import MemberConfig
from ensemble.errors import ConfigError
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


# --- more than two classes --------------------------------------------------------------------------------------------

C = 5
MANY = 8 * torch.randn((200, C), generator=torch.Generator().manual_seed(0))
OF_MANY = torch.arange(200).remainder(7).clamp(max=C - 1)  # class 4 is three times as frequent
LOSSES = ("focal", "weighted-focal", "bce", "weighted-bce")


def focal_in_numpy(gamma: float) -> np.ndarray:
    """Return the focal loss (200, C) of every label of `MANY` by its formula, in float64."""
    exponents = np.exp(MANY.double().numpy())
    total = exponents.sum(axis=1, keepdims=True)
    p, others = exponents / total, (total - exponents) / total
    return -(others**gamma) * np.log(p)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_softmax_focal_is_its_formula(gamma: float) -> None:
    expected = focal_in_numpy(gamma)[np.arange(200), OF_MANY.numpy()]
    found = focal_loss(MANY, OF_MANY.float(), gamma, None)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-7)
    assert found.dtype == torch.float32
    halves = focal_loss(MANY.bfloat16(), OF_MANY, gamma, None)
    assert torch.equal(halves, focal_loss(MANY.bfloat16().float(), OF_MANY, gamma, None))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_equals_torchs(smoothing: float) -> None:
    found = classification_loss(MANY, OF_MANY.float(), config("bce", label_smoothing=smoothing), None)
    expected = cross_entropy(MANY, OF_MANY, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_any_loss_is_its_formula_with_smoothed_labels_and_the_weight_of_the_image(loss: str, smoothing: float) -> None:
    labels = OF_MANY.numpy()
    weights = class_weights(loss, labels, C)
    found = classification_loss(MANY, OF_MANY.float(), config(loss, gamma=1.5, label_smoothing=smoothing), weights)
    soft = (1 - smoothing) * np.eye(C)[labels] + smoothing / C
    expected = (soft * focal_in_numpy(0.0 if loss.endswith("bce") else 1.5)).sum(axis=1)
    if loss.startswith("weighted"):
        expected *= (len(labels) / C / np.bincount(labels))[labels]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_two_logits_of_which_the_first_is_0_give_the_loss_and_the_gradient_of_one(loss: str, smoothing: float) -> None:
    one = LOGITS.clone().requires_grad_()
    two = torch.stack([torch.zeros_like(LOGITS), LOGITS], dim=1).requires_grad_()
    member, weights = config(loss, label_smoothing=smoothing), class_weights(loss, GIVEN)
    of_one, of_two = (classification_loss(logits, LABELS, member, weights) for logits in (one, two))
    torch.testing.assert_close(of_two, of_one, rtol=1e-5, atol=1e-6)
    of_one.sum().backward()
    of_two.sum().backward()
    assert one.grad is not None and two.grad is not None
    torch.testing.assert_close(two.grad[:, 1], one.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(two.grad[:, 0], -one.grad, rtol=1e-4, atol=1e-6)


@given(st.lists(st.floats(-50, 50), min_size=3, max_size=6), st.floats(-100, 100), st.floats(0, 5))
def test_a_constant_added_to_all_logits_changes_nothing(logits: list[float], shift: float, gamma: float) -> None:
    z = torch.tensor(logits).repeat(len(logits), 1)
    labels = torch.arange(len(logits))
    torch.testing.assert_close(
        focal_loss(z + shift, labels, gamma, None), focal_loss(z, labels, gamma, None), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_focal_is_finite_with_finite_gradients_far_out(gamma: float, smoothing: float) -> None:
    rows = [[1e3, 0.0, -1e3], [-1e3, 1e3, 1e3], [1e30, -1e30, 0.0], [0.0, 0.0, 0.0]]
    logits = torch.tensor([row for row in rows for _ in range(3)], requires_grad=True)
    losses = classification_loss(
        logits, torch.arange(12) % 3, config("focal", gamma=gamma, label_smoothing=smoothing), None
    )
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_weights_of_many_classes_are_those_of_scikit_learn() -> None:
    labels = OF_MANY.numpy()
    expected = compute_class_weight("balanced", classes=np.arange(C), y=labels)
    assert class_weights("weighted-bce", labels, C) == pytest.approx(tuple(expected))
    present = labels[(labels != 1) & (labels != 4)]
    expected = compute_class_weight("balanced", classes=np.array([0, 2, 3]), y=present)
    assert class_weights("weighted-focal", present, C) == pytest.approx((expected[0], 0, *expected[1:], 0))


def test_alpha_belongs_to_two_classes() -> None:
    with pytest.raises(ConfigError, match="the focal loss: alpha weighs two classes, not 5; leave it out"):
        classification_loss(MANY, OF_MANY, config("focal", alpha=0.25), None)
