"""Strided 1 × 1 convolutions of few channels have the right gradients, which oneDNN's own have not."""

from __future__ import annotations

import copy

import pytest
import torch
from layers import SubclassedConv2d, assert_close, images, layer, run
from torch import nn

from ensemble.members.safe_convolutions import SampledConv2d, sample_strided


@pytest.mark.parametrize("stride", [(2, 2), (3, 3), (2, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("channels", [2, 3, 7, 13])
def test_strided_1_by_1_of_few_channels(channels: int, stride: tuple[int, int]) -> None:
    """Of 2 to 7 channels oneDNN's own gradient is wrong here, or does not return; with AVX-512 up to 15."""
    own = layer(channels, 48, 1, stride)
    safe = copy.deepcopy(own)
    sample_strided(safe)
    assert type(safe) is SampledConv2d
    for side in (48, 47):
        x = images((8, channels, side, side))
        for _ in range(3):
            assert_close(own, run(safe, x), x)


def test_only_strided_1_by_1_of_few_channels_are_sampled() -> None:
    kept = [
        layer(16, 8, 1, 2),
        layer(3, 8, 1),
        layer(3, 8, 2, 2),
        layer(4, 8, 1, 2, groups=2),
        SubclassedConv2d(3, 8, 1, 2),
    ]
    unsafe = layer(15, 8, 1, 2), layer(3, 8, 1, 2, padding="valid")
    network = nn.Sequential(*kept, layer(3, 8, 1, 2, padding=1), *unsafe)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    sample_strided(network)
    assert [type(each) is SampledConv2d for each in network] == [False] * 6 + [True] * 2
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
