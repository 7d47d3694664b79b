"""Winograd's convolution is a convolution: outputs and gradients, against float64 and on whole numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ensemble.members.cpu import winograd

SIZES = st.integers(1, 13)


def drawn(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    found = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return found.contiguous(memory_format=torch.channels_last)


def assert_near(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Within 1e-5 of the largest number; the sums themselves are exact to 1e-7."""
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5 * float(exact.abs().max()))


@settings(max_examples=80, deadline=None)
@given(
    images=st.integers(1, 5),
    channels=st.integers(1, 6),
    out=st.integers(1, 6),
    height=SIZES,
    width=SIZES,
    padding=st.integers(0, 2),
    most_bytes=st.sampled_from([1, 2**11, 2**23]),
)
def test_any_size(images: int, channels: int, out: int, height: int, width: int, padding: int, most_bytes: int) -> None:
    """However many images are computed at once."""
    assume(min(height, width) + 2 * padding >= 3)
    x, weight = drawn((images, channels, height, width), 0), drawn((out, channels, 3, 3), 1)
    exact = [each.double().requires_grad_() for each in (x, weight)]
    y = torch.conv2d(*exact, None, 1, padding)
    slope = drawn(tuple(y.shape), 2)
    y.backward(slope.double())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(winograd, "MOST_BYTES", most_bytes)
        found = winograd.convolve(x, winograd.transformed_kernel(weight), padding)
        of_weight = winograd.weight_gradient(x, slope, padding)
    assert found.shape == y.shape and found.is_contiguous(memory_format=torch.channels_last)
    assert of_weight.shape == weight.shape
    assert_near(found, y.detach())
    assert exact[1].grad is not None
    assert_near(of_weight, exact[1].grad)


def test_the_transforms_are_exact() -> None:
    """Of one tile and one kernel, in whole numbers: the kernel's 24ths cancel."""
    image, kernel, output = (winograd._matrix(of).double() for of in ("image", "kernel", "output"))
    tile = torch.randint(-9, 10, (6, 6), generator=torch.Generator().manual_seed(0)).double()
    weight = torch.randint(-9, 10, (3, 3), generator=torch.Generator().manual_seed(1)).double()
    products = (image @ tile @ image.t()) * (kernel @ weight @ kernel.t())
    found = output @ products @ output.t()
    exact = torch.conv2d(tile[None, None], weight[None, None])[0, 0]
    torch.testing.assert_close(found, exact, rtol=0, atol=2e-4)  # the matrices are float32
    assert torch.equal(found.round(), exact)


def test_parts_are_of_much_the_same_size(monkeypatch: pytest.MonkeyPatch) -> None:
    of_an_image = 4 * 36 * 4 * 64  # bytes
    for most, parts in ((of_an_image, [1] * 7), (3 * of_an_image, [3, 3, 1]), (4 * of_an_image, [4, 3]), (2**30, [7])):
        monkeypatch.setattr(winograd, "MOST_BYTES", most)
        assert [len(part) for part in torch.zeros(7).split(winograd._images_at_once(7, 4, 64))] == parts
