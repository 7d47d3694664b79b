"""Compute the losses that training minimises, from logits and labels: focal loss, cross-entropy, class weights."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from ensemble.config import MemberConfig


def focal_loss(logits: torch.Tensor, labels: torch.Tensor, gamma: float, alpha: float | None) -> torch.Tensor:
    """Return the focal loss of each image, ``-a (1 - p)^gamma log p``, where p is the probability of the given label.

    It is computed in log-space and float32, so that the loss and its gradients are finite for every finite logit.

    Parameters
    ----------
    logits : tensor (b,)
        Log-odds of label 1.
    labels : tensor (b,)
        0 or 1.
    gamma : float
        At least 0; 0 is cross-entropy.
    alpha : float, optional
        Weight a of label 1; label 0 has the weight 1 - alpha. If it is None, both have the weight 1.

    Returns
    -------
    float32 tensor (b,)

    References
    ----------
    Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation 5.

    Examples
    --------
    >>> focal_loss(torch.zeros(1), torch.ones(1), gamma=0.0, alpha=None)
    tensor([0.6931])
    """
    signed = logits.float() * (2 * labels.float() - 1)
    loss = -torch.exp(gamma * logsigmoid(-signed)) * logsigmoid(signed)
    return loss if alpha is None else loss * _by_label(labels, 1 - alpha, alpha)


def _by_label(labels: torch.Tensor, of_0: float, of_1: float) -> torch.Tensor:
    """Return `of_1` for label 1 and `of_0` for label 0.

    `torch.where` would copy the two numbers to a GPU in every update, which makes the host wait.
    """
    ones = (labels > 0.5).float()
    return of_1 * ones + of_0 * (1 - ones)


def class_weights(loss: str, labels: np.ndarray) -> tuple[float, float] | None:
    """Return the weights of label 0 and label 1 in a weighted loss, n / (2 n_c); None for other losses.

    Parameters
    ----------
    loss : str
        The name of a loss, as in `MemberConfig`.
    labels : int array (n,)
        The labels of the training rows.

    Examples
    --------
    >>> class_weights("weighted-bce", np.array([0, 1, 1, 1]))
    (2.0, 0.6666666666666666)
    """
    if not loss.startswith("weighted-"):
        return None
    ones = int(np.count_nonzero(labels == 1))
    return labels.size / (2 * (labels.size - ones)), labels.size / (2 * ones)


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, config: MemberConfig, weights: tuple[float, float] | None
) -> torch.Tensor:
    """Return the loss of each image, as a member's config defines it.

    Label smoothing by s is the sum of the loss of the image's label, with weight 1 - s / 2, and the loss of the other
    label, with weight s / 2. The class weight is always that of the image's own label.

    Parameters
    ----------
    logits : tensor (b,)
    labels : tensor (b,)
        0 or 1.
    config : MemberConfig
    weights : pair of floats, optional
        The weights of label 0 and label 1, from `class_weights`.

    Returns
    -------
    float32 tensor (b,)
    """
    gamma = 0.0 if config.loss.endswith("bce") else config.gamma
    loss = focal_loss(logits, labels, gamma, config.alpha)
    if config.label_smoothing:
        other = focal_loss(logits, 1 - labels, gamma, config.alpha)
        loss = (1 - config.label_smoothing / 2) * loss + config.label_smoothing / 2 * other
    return loss if weights is None else loss * _by_label(labels, *weights)
