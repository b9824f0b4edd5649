from __future__ import annotations

import pytest
import torch

from models.gan.haar import haar, inverse_haar

SHAPES = [(8,), (8, 6), (4, 6, 8)]


@pytest.mark.parametrize("shape", SHAPES)
def test_inverse_is_exact_and_energy_is_kept(shape: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    y = haar(x)
    assert y.shape == (2, 3 * 2 ** len(shape), *(side // 2 for side in shape))
    torch.testing.assert_close(inverse_haar(y), x, atol=1e-14, rtol=0)
    torch.testing.assert_close(haar(inverse_haar(y)), y, atol=1e-14, rtol=0)
    assert y.square().sum().item() == pytest.approx(x.square().sum().item(), rel=1e-13)


def test_bands_are_those_of_the_filters() -> None:
    """Order LL, LH, HL, HH, the rows' letter first, as separable correlation with l = [1, 1]/√2 and h = [-1, 1]/√2."""
    x = torch.randn(1, 2, 6, 8, dtype=torch.float64)
    low, high = (torch.tensor([sign, 1.0], dtype=torch.float64) / 2**0.5 for sign in (1.0, -1.0))
    expected = []
    for rows, columns in ((low, low), (low, high), (high, low), (high, high)):
        kernel = torch.outer(rows, columns)[None, None]
        bands = [torch.nn.functional.conv2d(x[:, c : c + 1], kernel, stride=2) for c in range(2)]
        expected.append(torch.cat(bands, 1))
    torch.testing.assert_close(haar(x), torch.cat(expected, 1), atol=1e-14, rtol=0)
