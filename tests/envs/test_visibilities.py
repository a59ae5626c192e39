"""Visibilities: conventions on sources whose transform is known, and the fast transform against the direct sum."""

import math

import numpy as np
import pytest
import torch

from envs.operators import FastVisibilities, Visibilities, visibility_operator
from envs.operators.visibilities import ARCSECOND

KINDS = [Visibilities, FastVisibilities]


def _frequencies(count, pixel, generator):
    return (torch.rand(2, count, generator=generator, dtype=torch.float64) - 0.5) / pixel


def _complex(seen):
    return torch.view_as_complex(seen.contiguous()).numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 15, 22)])
def test_a_point_source_east_and_north_has_the_phase_of_its_offsets(kind, shape, generator):
    """Three pixels towards column 0 is east, l = 3 p; two towards row 0 is north, m = 2 p."""
    pixel = 0.01 * ARCSECOND
    u, v = _frequencies(40, pixel, generator)
    image = torch.zeros(1, *shape, dtype=torch.float64)
    image[0, 0, shape[1] // 2 - 2, shape[2] // 2 - 3] = 1.7
    expected = 0.5 * 1.7 * np.exp(-2j * math.pi * (u * 3 * pixel + v * 2 * pixel).numpy())
    seen = _complex(kind(shape, u, v, pixel, brightness=0.5)(image))[0]
    assert np.abs(seen - expected).max() < 2e-6


@pytest.mark.parametrize("kind", KINDS)
def test_an_offset_gaussian_of_one_jansky_has_its_closed_form(kind, generator):
    """exp(-2 pi^2 s^2 (u^2 + v^2)) exp(-2 pi i (u l + v m)); pixels of 0.4 s and a field of 13 s hide nothing."""
    pixel, size = 2e-9, 32
    width, east, north = 2.5 * pixel, 2.3 * pixel, -1.6 * pixel
    u, v = 0.6 * _frequencies(60, pixel, generator)
    along = (size // 2 - torch.arange(size, dtype=torch.float64)) * pixel
    square = (along - east).square() + (along[:, None] - north).square()
    image = (-0.5 * square / width**2).exp() * pixel**2 / (2 * math.pi * width**2)
    shift = np.exp(-2j * math.pi * (u * east + v * north).numpy())
    expected = np.exp(-2 * (math.pi * width) ** 2 * (u**2 + v**2).numpy()) * shift
    seen = _complex(kind((1, size, size), u, v, pixel)(image[None, None]))[0]
    assert np.abs(seen - expected).max() < 3e-6


def test_at_the_frequencies_of_a_grid_it_is_the_discrete_fourier_transform(generator):
    """numpy counts pixels towards the west and the south, from pixel [0, 0]."""
    size, pixel = 8, 3e-8
    grid = torch.arange(-4, 4, dtype=torch.float64) / (size * pixel)
    v, u = (axis.flatten() for axis in torch.meshgrid(grid, grid, indexing="ij"))
    image = torch.randn(1, 1, size, size, generator=generator, dtype=torch.float64)
    seen = _complex(Visibilities((1, size, size), u, v, pixel)(image))[0].reshape(size, size)
    expected = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image[0, 0].numpy()[::1, ::1])))
    assert np.abs(seen.conj() - expected).max() < 1e-12


@pytest.mark.parametrize("shape", [(1, 64, 64), (1, 33, 50)])
def test_the_fast_transform_is_the_direct_sum_to_one_part_in_a_hundred_thousand(shape, generator):
    pixel = 1e-6
    u, v = _frequencies(300, pixel, generator)
    u[0], v[0] = 0.5 / pixel, -0.5 / pixel  # at the edge of what the pixels carry
    u[1], v[1] = 0.0, 0.0
    value = torch.rand(2, *shape, generator=generator, dtype=torch.float64)
    direct, fast = Visibilities(shape, u, v, pixel), FastVisibilities(shape, u, v, pixel)
    for dtype in (torch.float32, torch.float64):
        error = (fast(value.to(dtype)).double() - direct(value)).norm() / direct(value).norm()
        assert float(error) < 1e-5
    noise = torch.randn(2, *shape, generator=generator, dtype=torch.float64)  # flat: no large V hides the small ones
    assert float((fast(noise) - direct(noise)).abs().max() / direct(noise).abs().max()) < 5e-6


@pytest.mark.parametrize("kind", KINDS)
def test_autograd_gives_the_adjoint(kind, generator):
    u, v = _frequencies(30, 1e-6, generator)
    operator = kind((1, 12, 10), u, v, 1e-6)
    value = torch.randn(2, 1, 12, 10, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 30, 2, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((operator(value) * weight).sum(), value)
    assert gradient.numpy() == pytest.approx(operator.adjoint(weight).numpy(), rel=1e-10, abs=1e-10)


def test_many_visibilities_of_many_pixels_take_the_fast_transform_and_others_the_direct_sum(generator):
    pixel = 1e-7

    def kind(size, count):
        return type(visibility_operator((1, size, size), *_frequencies(count, pixel, generator), pixel))

    assert kind(32, 2_000) is FastVisibilities
    assert kind(32, 1_999) is kind(16, 4_000) is Visibilities
    assert kind(256, 600) is FastVisibilities  # a matrix of more than 2^26 numbers


def test_frequencies_and_shapes_that_do_not_fit_are_refused():
    one, far = torch.tensor([1.0]), torch.tensor([6e5])
    with pytest.raises(ValueError, match=r"real image \[1, H, W\], got x of shape \(3, 8, 8\)"):
        Visibilities((3, 8, 8), one, one, 1e-6)
    with pytest.raises(
        ValueError, match=r"alias u and v beyond 5e\+05 wavelengths, got 6e\+05; take pixels of at most"
    ):
        FastVisibilities((1, 8, 8), one, far, 1e-6)
    with pytest.raises(ValueError, match=r"vectors of one length, got shapes \(1,\) and \(2,\)"):
        Visibilities((1, 8, 8), one, torch.ones(2), 1e-6)
    with pytest.raises(ValueError, match="pixel_size must be positive and finite, got 0"):
        Visibilities((1, 8, 8), one, one, 0.0)
    with pytest.raises(ValueError, match="600 visibilities of 256 x 256 pixels are a matrix of more than 67108864"):
        Visibilities((1, 256, 256), torch.ones(600), torch.ones(600), 1e-6)
    with pytest.raises(ValueError, match="u and v must be finite"):
        Visibilities((1, 8, 8), one, one * torch.nan, 1e-6)
