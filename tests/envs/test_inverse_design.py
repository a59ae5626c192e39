"""Inverse design: the simulator against closed forms and another recursion, the evidence against plain Monte Carlo."""

import math

import numpy as np
import pytest
import torch

from diffusion.box_denoiser import BoxDenoiser
from envs import make_problem
from envs.likelihoods import DifferentiableLikelihood
from envs.operators import ThinFilms
from envs.operators.thin_film import reflectance

GLASS, LOW, HIGH = 1.52, 1.46, 2.35
COLOURS = np.linspace(400.0, 700.0, 13)


def airy(thickness, indices, wavelength, substrate, medium=1.0):
    """R of one stack at one wavelength by Airy's sum over the interfaces, from the substrate up (Parratt 1954)."""
    stack = [medium, *indices, substrate]
    amplitude = 0j
    for upper in reversed(range(len(stack) - 1)):
        fresnel = (stack[upper] - stack[upper + 1]) / (stack[upper] + stack[upper + 1])
        amplitude = (fresnel + amplitude) / (1 + fresnel * amplitude)
        if upper:
            amplitude *= np.exp(-2j * 2 * np.pi * stack[upper] * thickness[upper - 1] / wavelength)
    return abs(amplitude) ** 2


def test_a_bare_substrate_and_films_of_no_thickness_reflect_as_fresnel_has_it():
    expected = ((1 - GLASS) / (1 + GLASS)) ** 2
    assert expected == pytest.approx(0.04258, abs=1e-5)
    for thickness, indices in ((np.empty((2, 0)), ()), (np.zeros((2, 3)), (LOW, HIGH, LOW))):
        found = reflectance(thickness, indices, COLOURS, substrate=GLASS)
        assert found.shape == (2, 13) and found == pytest.approx(expected, rel=1e-12)


def test_a_quarter_wave_layer_reflects_as_its_closed_form_and_half_a_wave_does_not_show():
    wavelength = np.array([550.0])
    quarter = 550.0 / 4 / LOW
    found, half = reflectance(np.array([[quarter], [2 * quarter]]), (LOW,), wavelength, substrate=GLASS)[:, 0]
    assert found == pytest.approx(((GLASS - LOW**2) / (GLASS + LOW**2)) ** 2, rel=1e-12)
    assert half == pytest.approx(((1 - GLASS) / (1 + GLASS)) ** 2, rel=1e-12)
    perfect = reflectance(np.array([[550.0 / 4 / GLASS**0.5]]), (GLASS**0.5,), wavelength, substrate=GLASS)
    assert perfect[0, 0] == pytest.approx(0, abs=1e-28)


@pytest.mark.parametrize("pairs", [1, 2, 5, 10])
def test_the_peak_of_a_quarter_wave_stack_is_that_of_macleod(pairs):
    """Admittance (n_H / n_L)^2p n_s of p pairs, high index outermost."""
    indices = (HIGH, LOW) * pairs
    thickness = np.array([[550.0 / 4 / index for index in indices]])
    admittance = (HIGH / LOW) ** (2 * pairs) * GLASS
    found = reflectance(thickness, indices, np.array([550.0]), substrate=GLASS)
    assert found[0, 0] == pytest.approx(((1 - admittance) / (1 + admittance)) ** 2, rel=1e-12)


@pytest.mark.parametrize("layers", [1, 3, 6])
def test_any_stack_reflects_as_by_the_recursion_over_its_interfaces(layers):
    rng = np.random.default_rng(layers)
    thickness, indices = rng.uniform(0, 400, (20, layers)), rng.uniform(1.2, 3.0, layers)
    found = reflectance(thickness, indices, COLOURS, substrate=GLASS, medium=1.33)
    expected = [[airy(row, indices, colour, GLASS, 1.33) for colour in COLOURS] for row in thickness]
    assert found == pytest.approx(np.array(expected), rel=1e-10, abs=1e-14)


def test_what_is_not_reflected_goes_through_from_either_side():
    """R is the same for light from behind, as nothing is absorbed; and it is within [0, 1]."""
    rng = np.random.default_rng(0)
    thickness, indices = rng.uniform(0, 400, (50, 5)), rng.uniform(1.2, 3.0, 5)
    found = reflectance(thickness, indices, COLOURS, substrate=GLASS)
    behind = reflectance(thickness[:, ::-1], indices[::-1], COLOURS, substrate=1.0, medium=GLASS)
    assert found == pytest.approx(behind, rel=1e-10, abs=1e-14)
    assert found.min() >= 0 and found.max() < 1 and found.std() > 0.1
    assert transmittance(thickness, indices) == pytest.approx(1 - found, rel=1e-10)


def transmittance(thickness, indices):
    """n_s |2 / (B + C)|^2 of whole matrices, multiplied one by one."""
    found = np.empty((len(thickness), len(COLOURS)))
    for (row, column), _ in np.ndenumerate(found):
        matrix = np.eye(2, dtype=complex)
        for index, width in zip(indices, thickness[row], strict=True):
            phase = 2 * np.pi * index * width / COLOURS[column]
            film = [[np.cos(phase), 1j * np.sin(phase) / index], [1j * index * np.sin(phase), np.cos(phase)]]
            matrix = matrix @ np.array(film)
        electric, magnetic = matrix @ np.array([1, GLASS])
        found[row, column] = GLASS * abs(2 / (electric + magnetic)) ** 2
    return found


def test_the_operator_takes_standardised_thicknesses_keeps_the_dtype_and_refuses_what_is_none():
    operator = ThinFilms((LOW, HIGH), [500.0, 600.0], substrate=GLASS, middle=100.0, scale=20.0)
    found = operator(torch.tensor([[1.0, -0.5]]))
    assert found.dtype == torch.float32 and found.shape == (1, *operator.measurement_shape)
    expected = reflectance(np.array([[120.0, 90.0]]), (LOW, HIGH), operator.wavelengths, substrate=GLASS)
    assert found.numpy() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match=r"positive indices, got \[1.46, 0.0\] on 1.52"):
        ThinFilms((LOW, 0.0), [500.0], substrate=GLASS, middle=1.0, scale=1.0)
    with pytest.raises(ValueError, match=r"wavelengths must be positive, got \[-1.0\]"):
        ThinFilms((LOW,), [-1.0], substrate=GLASS, middle=1.0, scale=1.0)


@pytest.fixture(scope="module")
def problem():
    return make_problem("inverse-design")


def test_the_evidence_is_the_share_of_designs_that_meet_the_specification(problem):
    """By 200,000 plain draws of the box, of which none is in the reference."""
    rng = np.random.default_rng(1)
    films = rng.uniform(10.0, 250.0, (200_000, 4))
    found = reflectance(films, (LOW, HIGH, LOW, HIGH), np.linspace(450.0, 650.0, 9), substrate=GLASS)
    likelihood = np.exp(-0.5 * np.square(found / 0.02).sum(1))
    error = likelihood.std() / likelihood.mean() / len(films) ** 0.5
    share = math.exp(problem.exact[0].log_partition) * (2 * math.pi * 0.02**2) ** 4.5
    assert problem.measurements.tolist() == [[0.0] * 9] and error < 0.15
    assert math.log(share) == pytest.approx(math.log(likelihood.mean()), abs=4 * error)
    assert problem.exact[0].effective_number > 2_000


def test_the_posterior_has_designs_that_differ_by_half_a_wave_in_one_layer(problem):
    """The high-index layer in the middle: thin, or half a wave thicker, with the same reflectance at the centre."""
    drawn = problem.likelihood.likelihood.operator.thickness(problem.exact[0].sample(4_000)).numpy()
    thick = drawn[:, 1] > 190
    assert 0.1 < thick.mean() < 0.3
    lower, upper = np.median(drawn[~thick, 1]), np.median(drawn[thick, 1])
    assert 60 < lower < 120 and 200 < upper < 250
    assert np.quantile(drawn[thick, 1], 0.02) - np.quantile(drawn[~thick & (drawn[:, 2] < 100), 1], 0.98) > 20


def test_x_is_uniform_in_the_box_of_designs_that_can_be_made_and_the_simulator_has_no_gradient(problem):
    denoiser = problem.prior.denoiser
    assert isinstance(denoiser, BoxDenoiser) and problem.gradient is None and problem.simulable
    assert not isinstance(problem.likelihood, DifferentiableLikelihood)
    thickness = problem.likelihood.likelihood.operator.thickness
    assert thickness(denoiser.low).tolist() == pytest.approx([10.0] * 4)
    assert thickness(denoiser.high).tolist() == pytest.approx([250.0] * 4)
    assert float(denoiser.sample(20_000).var()) == pytest.approx(1, abs=0.02)


def test_a_design_drawn_from_the_prior_is_measured_with_noise():
    measured = make_problem("inverse-design", {"target": None, "noise_std": 0.01})
    residual = measured.likelihood.standardised(measured.truth, measured.measurements)
    assert 0.2 < float(residual.square().mean()) < 2.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "at least one layer and one wavelength, got 0 and 9"),
        ({"thickness": (20.0, 10.0)}, r"thickness must be two increasing positive lengths in nm, got \[20.0, 10.0\]"),
        ({"band": (450.0,)}, r"band must be two increasing positive lengths in nm, got \[450.0\]"),
        ({"target": 1.2}, r"target must be a reflectance within \[0, 1\], or null, got 1.2"),
        ({"noise_std": 0.0}, "noise_std must be a positive finite standard deviation, got 0.0"),
    ],
)
def test_what_is_no_coating_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_problem("inverse-design", options)
