"""Forward operators: adjoints, spectra, and every map against an independent one."""

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage, signal

from envs.operators import (
    Clipped,
    CodedMagnitudes,
    Convolution,
    FastVisibilities,
    FourierMagnitudes,
    LinearlyComposed,
    MaskedFourier,
    Matrix,
    NonlinearBlurSurrogate,
    Pixels,
    Quantised,
    Separable,
    SparseMatrix,
    Visibilities,
    box_mask,
    compose,
    gaussian_kernel,
    lower_resolution,
    motion_kernel,
    radon,
    random_lines,
    random_mask,
    random_projections,
)

GREY, COLOUR = (1, 8, 8), (3, 6, 8)


def _coils(count):
    drawn = torch.randn(count, 8, 8, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return torch.view_as_complex(drawn)


def _any(rows, columns):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))


def _sparse():
    generator = torch.Generator().manual_seed(6)
    rows, columns = (torch.randint(size, (60,), generator=generator) for size in (20, 48))
    return SparseMatrix((3, 4, 4), (4, 5), rows, columns, torch.randn(60, generator=generator))


def _nearly_full():
    rows, columns = torch.arange(20).repeat_interleave(48), torch.arange(48).repeat(20)
    some = torch.rand(960, generator=torch.Generator().manual_seed(8)) < 0.5
    return SparseMatrix((3, 4, 4), (4, 5), rows[some], columns[some], _any(960, 1)[some, 0])


def _frequencies(count):
    drawn = torch.rand(2, count, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return (drawn - 0.5) / 1e-6


LINEAR = {
    "matrix": Matrix(_any(3, 8), (2, 4)),
    "projections": random_projections(GREY, 20),
    "pixels": Pixels(random_mask(COLOUR, 0.4)),
    "periodic blur": Convolution(COLOUR, motion_kernel(5)),
    "blur": Convolution(COLOUR, motion_kernel(5), boundary="zero"),
    "mean": lower_resolution(COLOUR, 2),
    "bicubic": lower_resolution(GREY, 4, "bicubic"),
    "separable": Separable(GREY, _any(5, 8), _any(3, 8)),
    "sparse": _sparse(),
    "nearly full": _nearly_full(),
    "radon": radon(GREY, 5, pixel_size=0.3),
    "frequencies": MaskedFourier(GREY, random_lines(8, 8, 2.0)),
    "frequencies of coils": MaskedFourier((2, 8, 8), random_lines(8, 8, 2.0, seed=1), _coils(3)),
    "visibilities": Visibilities((1, 6, 9), *_frequencies(12), pixel_size=1e-6, brightness=0.3),
    "fast visibilities": FastVisibilities((1, 6, 9), *_frequencies(12), pixel_size=1e-6, brightness=0.3),
    "composed": compose(lower_resolution(GREY, 2), Convolution(GREY, gaussian_kernel(0.7, 5))),
}


@pytest.fixture(params=LINEAR)
def linear(request):
    return LINEAR[request.param]


def _normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_the_adjoint_is_that_of_the_inner_product(linear, generator):
    value, measurement = _normal(generator, 4, *linear.event_shape), _normal(generator, 4, *linear.measurement_shape)
    seen, back = linear(value), linear.adjoint(measurement)
    assert seen.shape == measurement.shape and back.shape == value.shape
    left, right = (seen * measurement).flatten(1).sum(1), (value * back).flatten(1).sum(1)
    assert left.numpy() == pytest.approx(right.numpy(), rel=1e-11, abs=1e-11)
    assert float(left.abs().min()) > 1e-3


def test_it_is_its_matrix_and_keeps_the_dtype(linear, generator):
    value = _normal(generator, 3, *linear.event_shape)
    matrix = linear.as_matrix()
    expected = value.flatten(1) @ matrix.T
    assert matrix.dtype == torch.float64
    assert linear(value).flatten(1).numpy() == pytest.approx(expected.numpy(), rel=1e-10, abs=1e-10)
    single = linear(value.float())
    assert single.dtype == linear.adjoint(single).dtype == torch.float32
    assert single.flatten(1).numpy() == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-4)


def test_the_spectrum_is_that_of_the_matrix_times_its_transpose(linear, generator):
    matrix, spectrum = linear.as_matrix(), linear.spectrum()
    gram = matrix @ matrix.T
    measurement = _normal(generator, 3, *linear.measurement_shape)
    coordinates = spectrum.analyse(measurement)
    assert coordinates.shape == (3, len(gram)) and float(spectrum.values.min()) >= 0
    assert coordinates.norm(dim=1).numpy() == pytest.approx(measurement.flatten(1).norm(dim=1).numpy(), rel=1e-10)
    assert spectrum.synthesise(coordinates).numpy() == pytest.approx(measurement.numpy(), rel=1e-9, abs=1e-9)
    applied = spectrum.synthesise(coordinates * spectrum.values).flatten(1)
    assert applied.numpy() == pytest.approx((measurement.flatten(1) @ gram).numpy(), rel=1e-9, abs=1e-9)
    scale = torch.tensor([0.3, 1.0, 4.0])
    for row, solved in enumerate(spectrum.solve(measurement, scale, 0.25).flatten(1)):
        whole = scale[row].double() * gram + 0.25 * torch.eye(len(gram), dtype=torch.float64)
        assert (whole @ solved).numpy() == pytest.approx(measurement[row].flatten().numpy(), rel=1e-8, abs=1e-8)


def test_the_pseudoinverse_is_that_of_the_matrix(linear, generator):
    measurement = _normal(generator, 3, *linear.measurement_shape)
    expected = measurement.flatten(1) @ torch.linalg.pinv(linear.as_matrix(), rtol=1e-5).T
    assert linear.pseudoinverse(measurement).flatten(1).numpy() == pytest.approx(expected.numpy(), rel=1e-6, abs=1e-6)


def test_a_matrix_acts_on_x_flattened_and_pixels_gathers(generator):
    matrix = torch.randn(3, 8, generator=generator)
    value = _normal(generator, 5, 2, 4)
    expected = torch.stack([matrix.double() @ row.flatten() for row in value])
    assert Matrix(matrix)(value).numpy() == pytest.approx(expected.numpy(), rel=1e-12)
    mask = torch.tensor([[[True, False, True], [False, False, True]]])
    image = torch.randn(4, 1, 2, 3, generator=generator)
    assert Pixels(mask)(image).tolist() == image[:, mask].tolist()
    assert Pixels(mask).indices.tolist() == [0, 2, 5]


@pytest.mark.parametrize("boundary", ["periodic", "zero"])
@pytest.mark.parametrize(
    "kernel", [motion_kernel(5, seed=2), torch.arange(15.0).reshape(3, 5), gaussian_kernel(0.8, 7)]
)
def test_a_blur_is_the_convolution_of_scipy(boundary, kernel, generator):
    image = _normal(generator, 8, 9)
    if boundary == "periodic":
        expected = ndimage.convolve(image.numpy(), kernel.double().numpy(), mode="wrap")
    else:
        expected = signal.convolve2d(image.numpy(), kernel.double().numpy(), mode="same")
    found = Convolution((1, 8, 9), kernel, boundary)(image[None, None])[0, 0]
    assert found.numpy() == pytest.approx(expected, rel=1e-10, abs=1e-10)


def test_kernels_are_those_of_their_names():
    impulse = np.zeros((31, 31))
    impulse[15, 15] = 1
    expected = ndimage.gaussian_filter(impulse, 1.3, truncate=4)
    size = 2 * int(4 * 1.3 + 0.5) + 1
    half = size // 2
    found = gaussian_kernel(1.3, size).numpy()
    assert found == pytest.approx(expected[15 - half : 16 + half, 15 - half : 16 + half], rel=1e-6, abs=1e-12)
    assert len(gaussian_kernel(1.3)) == 13
    traces = [motion_kernel(15, seed) for seed in range(20)]
    for trace in traces:
        assert float(trace.sum()) == pytest.approx(1) and float(trace.min()) >= 0
        edges = torch.stack([trace[0].sum(), trace[-1].sum(), trace[:, 0].sum(), trace[:, -1].sum()])
        assert float(edges.max()) > 0  # it fills the kernel
    assert all((first != second).any() for first, second in itertools.pairwise(traces))
    assert (motion_kernel(15, 3) == traces[3]).all()


def test_lower_resolution_is_the_mean_of_blocks_or_bicubic_as_torch_has_it(generator):
    image = _normal(generator, 2, *COLOUR)
    mean = image.reshape(2, 3, 3, 2, 4, 2).mean((3, 5))
    assert lower_resolution(COLOUR, 2)(image).numpy() == pytest.approx(mean.numpy(), rel=1e-12)
    bicubic = torch.nn.functional.interpolate(image, (3, 4), mode="bicubic", antialias=True)
    assert lower_resolution(COLOUR, 2, "bicubic")(image).numpy() == pytest.approx(bicubic.numpy(), abs=1e-12)


def test_tomography_is_the_line_integral_of_a_gaussian_and_the_sums_of_rows_and_columns(generator):
    size, angles, width, pixel = 64, 18, 6.0, 0.1
    offset = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    centre = torch.tensor([9.0, -4.0], dtype=torch.float64)  # right, down
    right, down = offset[None, :] - centre[0], offset[:, None] - centre[1]
    image = (-0.5 * (right.square() + down.square()) / width**2).exp()
    sinogram = radon((1, size, size), angles, pixel)(image[None, None])[0]
    angle = torch.arange(angles, dtype=torch.float64) * torch.pi / angles
    middle = centre[0] * angle.cos() + centre[1] * angle.sin()
    closed = (2 * torch.pi) ** 0.5 * width * pixel * (-0.5 * (offset - middle[:, None]).square() / width**2).exp()
    assert float((sinogram - closed).abs().max()) < 0.01 * float(closed.max())  # bilinear between pixels
    noise = _normal(generator, 1, 1, 8, 8)
    views = radon(GREY, 2)(noise)[0]
    assert views[0].numpy() == pytest.approx(noise[0, 0].sum(0).numpy(), rel=1e-9, abs=1e-9)
    assert views[1].numpy() == pytest.approx(noise[0, 0].sum(1).numpy(), rel=1e-9, abs=1e-9)


def test_measured_frequencies_are_those_of_numpy(generator):
    mask, coils = random_lines(8, 8, 2.0, centre=0.25), _coils(2)
    value = _normal(generator, 3, 2, 8, 8)
    image = (value[:, 0] + 1j * value[:, 1]).numpy()[:, None] * coils.numpy()
    expected = np.fft.fft2(image, norm="ortho")[..., mask.numpy()]
    found = MaskedFourier((2, 8, 8), mask, coils)(value)
    assert found.shape == (3, 2, int(mask.sum()), 2)
    assert (found[..., 0] + 1j * found[..., 1]).numpy() == pytest.approx(expected, abs=1e-12)
    assert bool(mask[:, [0, 1]].all()) and int(mask.sum()) == 32 and bool((mask == mask[:1]).all())


def test_magnitudes_are_those_of_numpy_and_know_no_sign(generator):
    value = _normal(generator, 3, *COLOUR)
    oversampled = FourierMagnitudes(COLOUR)(value)
    expected = np.abs(np.fft.rfft2(value.numpy(), s=(12, 16), norm="ortho"))
    assert oversampled.numpy() == pytest.approx(expected.reshape(3, -1), abs=1e-10)
    for same in (-value, value.flip(2, 3)):
        assert FourierMagnitudes(COLOUR)(same).numpy() == pytest.approx(oversampled.numpy(), abs=1e-10)
    with pytest.raises(ValueError, match=r"must be an image \[C, H, W\], got shape \(6, 7\)"):
        CodedMagnitudes((6, 7))
    operator = CodedMagnitudes(COLOUR, 3)
    coded = operator(value)
    expected = np.abs(np.fft.rfft2(value.numpy()[:, None] * operator.masks.numpy(), norm="ortho"))
    assert coded.shape == (3, *operator.measurement_shape) and coded.numpy() == pytest.approx(expected, abs=1e-10)
    assert operator(-value).numpy() == pytest.approx(coded.numpy(), abs=1e-10)
    assert not np.allclose(operator(value.flip(2, 3)).numpy(), coded.numpy(), atol=0.1)


def test_the_gradient_of_a_magnitude_of_zero_is_zero():
    value = torch.zeros(1, *GREY, requires_grad=True)
    FourierMagnitudes(GREY)(value).sum().backward()
    assert float(value.grad.abs().max()) == 0


def test_detectors_saturate_and_round():
    value = torch.tensor([[-3.0, -0.4, 0.0, 0.2, 0.6]])
    assert Clipped((5,), 2.0)(value)[0].tolist() == pytest.approx([-1.0, -0.8, 0.0, 0.4, 1.0])
    assert Quantised((5,), 5)(value)[0].tolist() == [-1.0, -0.5, 0.0, 0.0, 0.5]


def test_the_surrogate_blur_is_no_convolution_and_keeps_to_its_range(generator):
    value = _normal(generator, 2, *GREY)
    operator = NonlinearBlurSurrogate(GREY, std=0.7)
    seen = operator(value)
    assert seen.shape == value.shape and float(seen.abs().max()) < 1
    assert float((operator(2 * value) - 2 * seen).abs().max()) > 0.1
    shifted = operator(value.roll((1, 2), (2, 3)))
    assert shifted.numpy() == pytest.approx(seen.roll((1, 2), (2, 3)).numpy(), abs=1e-12)  # the same everywhere
    assert NonlinearBlurSurrogate(GREY, std=0.7, weight=0.0)(value).numpy() == pytest.approx(
        Convolution(GREY, gaussian_kernel(0.7))(value).tanh().numpy(), abs=1e-12
    )


def test_random_projections_keep_lengths_on_average(generator):
    value = _normal(generator, 1, *GREY)
    squares = [float(random_projections(GREY, 20, seed)(value).square().sum()) for seed in range(500)]
    error = np.std(squares) / 500**0.5
    assert np.mean(squares) == pytest.approx(float(value.square().sum()), abs=4 * error)


def test_masks_hide_what_they_say():
    hidden = ~box_mask(COLOUR, 1, 2, 3, 4)
    assert int(hidden.sum()) == 3 * 12 and bool(hidden[:, 1:4, 2:6].all())
    mask = random_mask(COLOUR, 0.75)
    assert int(mask.sum()) == 3 * 12 and bool((mask == mask[:1]).all())


def test_operators_compose_linearly_where_both_are_linear(generator):
    value = _normal(generator, 2, *GREY)
    blur, mean = Convolution(GREY, gaussian_kernel(0.7, 5)), lower_resolution(GREY, 2)
    both = compose(mean, blur)
    assert isinstance(both, LinearlyComposed)
    assert both.as_matrix().numpy() == pytest.approx((mean.as_matrix() @ blur.as_matrix()).numpy(), abs=1e-12)
    clipped = compose(Clipped(mean.measurement_shape), mean)
    assert clipped.measurement_shape == (1, 4, 4) and not isinstance(clipped, LinearlyComposed)
    assert clipped(value).tolist() == (2 * mean(value)).clamp(-1, 1).tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Matrix(torch.zeros(3)), r"operator matrix must be \[Y, D\], got shape \(3,\)"),
        (lambda: Matrix(torch.zeros(3, 4), (5,)), r"a matrix of 4 columns does not act on x of shape \(5,\)"),
        (lambda: Pixels(torch.zeros(2, 2)), "the mask keeps no pixel; at least one must be measured"),
        (lambda: random_projections(GREY, 65), r"within 1..64, the size of x, got 65"),
        (lambda: box_mask(GREY, 6, 0, 3, 3), r"within the 8 x 8 pixels, got 3 x 3 at \(6, 0\)"),
        (lambda: random_mask(GREY, 1.0), r"hidden fraction must be within \[0, 1\), got 1.0"),
        (lambda: Convolution(GREY, torch.ones(2, 3)), r"h and w odd, got shape \(2, 3\)"),
        (lambda: Convolution(GREY, torch.ones(9, 9)), r"kernel of \(9, 9\) pixels is larger than the image, 8 x 8"),
        (lambda: Convolution(GREY, torch.ones(17, 3), "zero"), r"larger than what light can cross, 15 x 15"),
        (lambda: Convolution(GREY, torch.ones(3, 3), "reflect"), "boundary must be periodic or zero, got 'reflect'"),
        (lambda: gaussian_kernel(0.0), "standard deviation must be positive, got 0.0"),
        (lambda: gaussian_kernel(1.0, 4), "size must be odd and positive, got 4"),
        (lambda: motion_kernel(4), "odd and at least 3, got 4"),
        (lambda: lower_resolution(GREY, 3), "divide the 8 x 8 pixels, got 3"),
        (lambda: lower_resolution(GREY, 2, "nearest"), "mean or bicubic, got 'nearest'"),
        (lambda: radon((1, 4, 5), 3), r"images \[1, N, N\], got \(1, 4, 5\)"),
        (lambda: MaskedFourier(GREY, torch.ones(4, 4)), r"the image's \(8, 8\) pixels, got shape \(4, 4\)"),
        (lambda: MaskedFourier(GREY, torch.zeros(8, 8)), "keeps no frequency"),
        (lambda: random_lines(8, 8, 4.0, 0.5), r"centre within \[0, 1 / acceleration\], got 4.0 and 0.5"),
        (lambda: FourierMagnitudes(GREY, 0), "oversampling must be at least 1, got 0"),
        (lambda: CodedMagnitudes(GREY, 0), "at least one mask, got 0"),
        (lambda: Clipped(GREY, 0.0), "gain must be positive, got 0.0"),
        (lambda: Quantised(GREY, 1), "at least two levels, got 1"),
        (
            lambda: compose(lower_resolution(GREY, 2), lower_resolution(GREY, 2)),
            r"Separable takes x of shape \(1, 8, 8\), but Separable gives \(1, 4, 4\)",
        ),
        (
            lambda: compose(Pixels(torch.ones(GREY)), Clipped((1, 16, 16))),
            r"Pixels takes x of shape \(1, 8, 8\), but Clipped gives \(1, 16, 16\)",
        ),
        (
            lambda: SparseMatrix((4,), (2,), torch.tensor([2]), torch.tensor([0]), torch.ones(1)),
            r"rows must be within 0..1, got 2..2",
        ),
        (lambda: Convolution((1, 512, 512), torch.ones(3, 3)).as_matrix(), "262144 x 262144 numbers is more than"),
    ],
)
def test_an_operator_that_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
