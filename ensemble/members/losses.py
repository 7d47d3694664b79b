"""Losses on logits."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid


def focal_loss(logits: torch.Tensor, labels: torch.Tensor, gamma: float, alpha: float | None) -> torch.Tensor:
    """Return the focal loss of each image, ``-a (1 - p)^gamma log p``, p being the probability of the given label.

    It is computed in log-space and float32: finite, with finite gradients, at any logit.

    Parameters
    ----------
    logits : tensor (b,)
        Log-odds of label 1.
    labels : tensor (b,)
        0 or 1.
    gamma : float
        At least 0; 0 is cross-entropy.
    alpha : float, optional
        Weight a of label 1; label 0 weighs 1 - alpha. Without it both weigh 1.

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
    return loss if alpha is None else loss * torch.where(labels > 0.5, alpha, 1 - alpha)
