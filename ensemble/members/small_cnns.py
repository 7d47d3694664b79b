"""Define small CNNs of public solutions of the TheraPanacea exercise, and register them with timm by their names.

Each network has convolutions, hidden layers on the flattened map, and one linear layer. Before the map is flattened, it
is pooled to the side that it has for images of 64 pixels, so that the parameters do not depend on the image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn


class ReplicatedConv2d(nn.Conv2d):
    """A convolution that replicates the border pixels and keeps the memory format channels last on a CUDA device.

    torch's kernel of this padding for CUDA returns contiguous maps for channels-last ones. The convolution would copy
    each of them back, and so would the backward pass. On other devices this is `torch.nn.Conv2d`.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, in, H, W) -> (b, out, H', W')."""
        if x.device.type != "cuda":
            return super().forward(x)
        padded = replicate_border(x, self._reversed_padding_repeated_twice)
        return nn.functional.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def replicate_border(x: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
    """Pad maps (b, c, H, W) with their border pixels; the result and its gradient are channels last in memory.

    A channels-last map is a contiguous volume (b, 1, H, W, c), so that padding the volume by nothing along c pads the
    map.

    Parameters
    ----------
    x : tensor (b, c, H, W)
    widths : sequence of int
        Left, right, top and bottom, in pixels.
    """
    volume = x.permute(0, 2, 3, 1).unsqueeze(1)
    padded = nn.functional.pad(volume, (0, 0, *widths), mode="replicate")
    return padded.squeeze(1).permute(0, 3, 1, 2)


class _PoolTo(nn.AdaptiveAvgPool2d):
    """Average pooling to a given side; a map of that side is returned unchanged."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.shape[-2:] == (self.output_size,) * 2 else super().forward(x)


class PlainCnn(nn.Module):
    """A network of convolutions, hidden layers and one linear layer, with the interface of a timm model.

    Parameters
    ----------
    features : torch.nn.Sequential
        (b, 3, H, W) -> (b, c, h, w).
    hidden : torch.nn.Sequential
        (b, c * side * side) -> (b, width).
    channels, side, width : int
    num_classes : int
    """

    def __init__(
        self, features: nn.Sequential, hidden: nn.Sequential, channels: int, side: int, width: int, num_classes: int
    ) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.head_hidden_size = num_classes, channels, width
        self.features, self.hidden = features, hidden
        self.pool, self.fc = _PoolTo(side), nn.Linear(width, num_classes)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.features(x)
        return y

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        y: torch.Tensor = self.hidden(self.pool(x).flatten(1))
        return y if pre_logits else self.fc(y)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes, self.fc = num_classes, nn.Linear(self.head_hidden_size, num_classes)


class _SmallCnn(PlainCnn):
    """The network of `small_cnn`.

    Four blocks of 3 × 3 convolutions have 16; 32, 32; 64, 64; and 128, 128 filters, with max pooling between the
    blocks. Two hidden layers of 64 and 128 units follow. Every convolution replicates the border pixels, and has batch
    norm, ReLU and dropout.
    """

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.25) -> None:
        blocks = ((16,), (32, 32), (64, 64), (128, 128))
        layers: list[nn.Module] = []
        before = in_chans
        for index, block in enumerate(blocks):
            layers += [nn.MaxPool2d(3, 2, 1)] if index else []
            for width in block:
                convolution = ReplicatedConv2d(before, width, 3, padding=1, padding_mode="replicate")
                layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(drop_rate)]
                before = width
        hidden = nn.Sequential(nn.Linear(128 * 8 * 8, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU())
        super().__init__(nn.Sequential(*layers), hidden, 128, 8, 128, num_classes)


class _SimpleCnn(PlainCnn):
    """The network of `simple_cnn`.

    Three 3 × 3 convolutions of 32, 64 and 128 filters each have batch norm, ReLU and 2 × 2 max pooling. A hidden layer
    of 128 units with dropout follows.
    """

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.5) -> None:
        layers: list[nn.Module] = []
        before = in_chans
        for width in (32, 64, 128):
            convolution = nn.Conv2d(before, width, 3, padding=1)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
            before = width
        hidden = nn.Sequential(nn.Linear(128 * 8 * 8, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(drop_rate))
        super().__init__(nn.Sequential(*layers), hidden, 128, 8, 128, num_classes)


class _LeNet(PlainCnn):
    """The network of `lenet`.

    Two 5 × 5 convolutions of 6 and 16 filters each have ReLU and 2 × 2 max pooling. Two hidden layers of 256 and 32
    units follow.
    """

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0) -> None:
        features = nn.Sequential(
            nn.Conv2d(in_chans, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)
        )
        hidden = nn.Sequential(
            nn.Linear(16 * 13 * 13, 256), nn.ReLU(), nn.Linear(256, 32), nn.ReLU(), nn.Dropout(drop_rate)
        )
        super().__init__(features, hidden, 16, 13, 32, num_classes)


def _timm_config(first: str) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 64, 64),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": first,
        "classifier": "fc",
    }


default_cfgs = generate_default_cfgs(
    {name: _timm_config("features.0") for name in ("small_cnn", "simple_cnn", "lenet")}
)


@register_model  # type: ignore[untyped-decorator]
def small_cnn(pretrained: bool = False, **values: Any) -> Any:
    """Return the seven-convolution network with dropout 0.25; with one logit it has 824,929 parameters."""
    return build_model_with_cfg(_SmallCnn, "small_cnn", pretrained, **values)


@register_model  # type: ignore[untyped-decorator]
def simple_cnn(pretrained: bool = False, **values: Any) -> Any:
    """Return the three-convolution network with dropout 0.5 before its last layer."""
    return build_model_with_cfg(_SimpleCnn, "simple_cnn", pretrained, **values)


@register_model  # type: ignore[untyped-decorator]
def lenet(pretrained: bool = False, **values: Any) -> Any:
    """Return a variant of LeNet-5 (LeCun et al. 1998) with ReLU and max pooling."""
    return build_model_with_cfg(_LeNet, "lenet", pretrained, **values)
