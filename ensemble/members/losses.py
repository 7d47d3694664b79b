"""Compute the losses that training minimises, from logits and labels: focal loss, cross-entropy, class weights.

With two classes an image has one logit z, and the probability of label 1 is the sigmoid of z. With C > 2 classes it has
C logits, and the probabilities are their softmax. Both agree at C = 2 for the logits (0, z).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import log_softmax, logsigmoid

from ensemble.config import MemberConfig
from ensemble.data.classes import refuse_alpha


def focal_loss(logits: torch.Tensor, labels: torch.Tensor, gamma: float, alpha: float | None) -> torch.Tensor:
    """Return the focal loss of each image, ``-a (1 - p)^gamma log p``, where p is the probability of the given label.

    It is computed in log-space and float32, so that the loss and its gradients are finite for every finite logit.

    Parameters
    ----------
    logits : tensor (..., b) or (..., b, C)
        Log-odds of label 1, or the logits of C classes.
    labels : tensor (..., b)
        0 or 1, or class indices.
    gamma : float
        At least 0; 0 is cross-entropy.
    alpha : float, optional
        Weight a of label 1 of two classes; label 0 has the weight 1 - alpha. If it is None, all have the weight 1.

    Returns
    -------
    float32 tensor (..., b)

    Raises
    ------
    ConfigError
        `alpha` is given for more than two classes.

    References
    ----------
    Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation 5.

    Examples
    --------
    >>> focal_loss(torch.zeros(1), torch.ones(1), gamma=0.0, alpha=None)
    tensor([0.6931])
    >>> focal_loss(torch.zeros(1, 4), torch.ones(1), gamma=0.0, alpha=None)
    tensor([1.3863])
    """
    refuse_alpha("the focal loss", alpha, _classes(logits, labels))
    log_p, log_others = _log_probabilities(logits, labels)
    loss = -torch.exp(gamma * log_others) * log_p
    return loss if alpha is None else loss * _by_label(labels, (1 - alpha, alpha))


def _log_probabilities(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logarithms of the probability of the label and of that of all other labels, each as `labels`.

    The second one is not computed as log(1 - p), which would lose its digits where p is close to 1.
    """
    if logits.ndim == labels.ndim:
        signed = logits.float() * (2 * labels.float() - 1)
        return logsigmoid(signed), logsigmoid(-signed)
    log_p, index = log_softmax(logits.float(), -1), labels.long().unsqueeze(-1)
    return log_p.gather(-1, index).squeeze(-1), log_p.scatter(-1, index, -torch.inf).logsumexp(-1)


def _classes(logits: torch.Tensor, labels: torch.Tensor) -> int:
    return 2 if logits.ndim == labels.ndim else logits.shape[-1]


def _by_label(labels: torch.Tensor, values: Sequence[float]) -> torch.Tensor:
    """Return the value of each label, float32.

    An index into a tensor of the values would copy them to a GPU in every update, which makes the host wait.
    """
    of_labels = [value * (labels == label).float() for label, value in enumerate(values)]
    return torch.stack(of_labels).sum(0)


def class_weights(loss: str, labels: np.ndarray, classes: int = 2) -> tuple[float, ...] | None:
    """Return the weight of each label in a weighted loss, n / (C n_c); None for other losses.

    C is the number of classes that have training rows. A class without training rows has the weight 0, which no row
    uses.

    Parameters
    ----------
    loss : str
        The name of a loss, as in `MemberConfig`.
    labels : int array (n,)
        The labels of the training rows.
    classes : int
        The number of weights to return.

    Examples
    --------
    >>> class_weights("weighted-bce", np.array([0, 1, 1, 1]))
    (2.0, 0.6666666666666666)
    """
    if not loss.startswith("weighted-"):
        return None
    counts = np.bincount(labels, minlength=classes).tolist()
    present = sum(n > 0 for n in counts)
    return tuple(labels.size / (present * n) if n else 0.0 for n in counts)


def soft_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each image with a distribution over the labels, minus the sum of t log p.

    Parameters
    ----------
    logits : tensor (b,) or (b, C)
    targets : tensor (b,) or (b, C)
        The probability of label 1, or of each class.

    Returns
    -------
    float32 tensor (b,)

    References
    ----------
    Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015.

    Examples
    --------
    >>> soft_cross_entropy(torch.zeros(1), torch.full((1,), 0.3))
    tensor([0.6931])
    """
    z, t = logits.float(), targets.float()
    if logits.ndim == 1:
        return -(t * logsigmoid(z) + (1 - t) * logsigmoid(-z))
    return -(t * log_softmax(z, -1)).sum(-1)


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, config: MemberConfig, weights: Sequence[float] | None
) -> torch.Tensor:
    """Return the loss of each image, as a member's config defines it.

    Label smoothing by s is the sum of the losses of all C labels. The image's own label has the weight 1 - s + s / C,
    and each other label has s / C. The class weight is always that of the image's own label. Losses named bce are
    cross-entropy for any number of classes.

    Parameters
    ----------
    logits : tensor (b,) or (b, C)
    labels : tensor (b,)
        0 or 1, or class indices.
    config : MemberConfig
    weights : sequence of C floats, optional
        The weight of each label, from `class_weights`.

    Returns
    -------
    float32 tensor (b,)
    """
    gamma = 0.0 if config.loss.endswith("bce") else config.gamma
    loss = focal_loss(logits, labels, gamma, config.alpha)
    if smoothing := config.label_smoothing:
        classes = _classes(logits, labels)
        steps = torch.arange(1, classes, device=labels.device).unsqueeze(1)
        others = (labels + steps) % classes  # (C - 1, b): the other labels of each image
        of_others = focal_loss(logits.expand(classes - 1, *logits.shape), others, gamma, config.alpha).sum(0)
        loss = (1 - smoothing * (classes - 1) / classes) * loss + smoothing / classes * of_others
    return loss if weights is None else loss * _by_label(labels, weights)
