"""Initial states of chaotic systems: the operator against scipy, the posterior against another sampler's numbers."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from envs import make_problem
from envs.data.lorenz import lorenz63_derivative, lorenz96_derivative
from envs.operators import Evolution
from envs.operators.evolution import runge_kutta_step
from envs.problems.chaos.systems import SYSTEMS, orbit_energy


def henon_heiles_derivative(state):
    u, v, p, q = state.T
    return np.stack([p, q, -u - 2 * u * v, -v - u**2 + v**2], axis=1)


DERIVATIVES = {
    "lorenz63": lorenz63_derivative,
    "lorenz96": lorenz96_derivative,
    "henon-heiles": henon_heiles_derivative,
}
SCALES = {"lorenz63": 8.0, "lorenz96": 3.6, "henon-heiles": 0.2}


def states(name, count, generator):
    dim = len(SYSTEMS[name].elements)
    value = SCALES[name] * torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return value + torch.tensor([0.0, 0.0, 25.0]) if name == "lorenz63" else value


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_equations_of_motion_are_those_written_out(name, generator):
    value = states(name, 20, generator)
    expected = DERIVATIVES[name](value.numpy())
    assert SYSTEMS[name].derivative(value).numpy() == pytest.approx(expected, rel=1e-12, abs=1e-11)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_later_states_are_those_of_an_integrator_of_tight_tolerance(name, generator):
    """Over one Lyapunov time, to a hundredth of the standard deviation of the states."""
    system, value = SYSTEMS[name], states(name, 3, generator)
    stride = round(0.5 / system.exponent / system.step)
    seen = range(len(system.elements))
    operator = Evolution(system.derivative, len(seen), seen, step=system.step, stride=stride, times=2)
    found = operator(value)
    assert operator.times.tolist() == pytest.approx([stride * system.step, 2 * stride * system.step])
    for row, start in enumerate(value.numpy()):
        solved = solve_ivp(
            lambda _, state: DERIVATIVES[name](state[None])[0],
            (0, float(operator.times[-1])),
            start,
            t_eval=operator.times.numpy(),
            method="DOP853",
            rtol=1e-11,
            atol=1e-11,
        )
        assert found[row].numpy() == pytest.approx(solved.y.T, abs=0.01 * SCALES[name])


def test_the_error_of_a_step_falls_with_its_fifth_power(generator):
    derivative, value = SYSTEMS["lorenz63"].derivative, states("lorenz63", 50, generator)

    def error(step):
        fine = value
        for _ in range(50):
            fine = runge_kutta_step(derivative, fine, step / 50)
        return (runge_kutta_step(derivative, value, step) - fine).abs().max()

    assert math.log2(float(error(0.004) / error(0.002))) == pytest.approx(5, abs=0.2)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_gradient_is_that_of_finite_differences(name, generator):
    problem_seen = SYSTEMS[name].elements[:1]
    system, value = SYSTEMS[name], states(name, 4, generator)
    operator = Evolution(
        system.derivative, value.shape[1], range(len(problem_seen)), step=system.step, stride=5, times=3
    )
    direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    leaf = value.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(operator(leaf).sin().sum(), leaf)
    step = 1e-5
    above, below = (operator(value + sign * step * direction).sin().sum() for sign in (1, -1))
    assert float((gradient * direction).sum()) == pytest.approx(float((above - below) / (2 * step)), rel=1e-5)


def test_a_star_keeps_its_energy_for_thirty_orbits(generator):
    system, value = SYSTEMS["henon-heiles"], states("henon-heiles", 100, generator)
    value = value[orbit_energy(value) < 1 / 6]
    operator = Evolution(system.derivative, 4, range(4), step=system.step, stride=940, times=1)
    assert orbit_energy(operator(value)[:, 0]).numpy() == pytest.approx(orbit_energy(value).numpy(), rel=0.02, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "time", "tolerance"), [("lorenz63", 30.0, 0.05), ("lorenz96", 20.0, 0.1), ("henon-heiles", 300.0, 0.015)]
)
def test_errors_grow_with_the_lyapunov_exponent(name, time, tolerance, generator):
    """A small error, followed and brought back to its size at every step, over 60 states on the attractor.

    Of stars: over orbits near the energy of escape, where most are chaotic.
    """
    system, value = SYSTEMS[name], states(name, 2_000, generator)
    if name == "henon-heiles":
        value = value[(orbit_energy(value) > 0.12) & (orbit_energy(value) < 1 / 6)]
    value = value[:60]
    error = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    error = 1e-7 * error / error.norm(dim=1, keepdim=True)
    growth = torch.zeros(60, dtype=torch.float64)
    steps, spin_up = round(time / system.step), round(10.0 / system.step)
    for index in range(spin_up + steps):
        following = runge_kutta_step(system.derivative, value, system.step)
        error = runge_kutta_step(system.derivative, value + error, system.step) - following
        size = error.norm(dim=1, keepdim=True)
        if index >= spin_up:
            growth += (size.squeeze(1) / 1e-7).log()
        value, error = following, 1e-7 * error / size
    assert float(growth.mean()) / (steps * system.step) == pytest.approx(system.exponent, abs=tolerance)


def test_far_from_the_attractor_what_is_seen_stays_a_number_without_a_gradient():
    problem = make_problem("chaos-lorenz63", {"num_steps": 2})
    far = torch.full((1, 3), 1e4, requires_grad=True)
    seen = problem.likelihood.operator(far)
    assert bool(torch.isfinite(seen).all()) and float(seen.detach().abs().max()) <= 300
    gradient = problem.likelihood.gradient(far, problem.measurements)
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("name", ["chaos-lorenz63", "chaos-henon-heiles"])
def test_the_truth_is_a_draw_of_the_prior_that_was_measured_with_the_noise(name):
    problem = make_problem(name, {"num_steps": 2, "count": 200, "horizon": 0.3})
    truth = problem.likelihood.standardised(problem.truth.double(), problem.measurements.double()).square()
    assert float(truth.mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / truth.numel()))
    assert float(problem.truth.std(0).mean()) == pytest.approx(problem.prior.data_std, rel=0.15)


def test_residuals_of_the_reference_posterior_have_a_reduced_chi_square_of_one():
    """Over measurements, as the truth and a draw of the posterior have one distribution given y."""
    problem = make_problem("chaos-henon-heiles", {"num_steps": 2, "count": 5, "horizon": 0.2})
    squares = []
    for row, measurement in enumerate(problem.measurements):
        draws = problem.exact[row].sample(500, torch.Generator().manual_seed(row))
        residual = problem.likelihood.standardised(draws, measurement.double().expand(500, *measurement.shape))
        squares.append(float(residual.square().mean()))
    assert np.mean(squares) == pytest.approx(1, abs=4 * np.std(squares) / math.sqrt(5))
    assert np.std(squares) < 1


def test_the_evidence_of_lorenz_is_that_of_many_draws_of_the_prior(generator):
    problem = make_problem("chaos-lorenz63", {"num_steps": 2, "horizon": 0.4})
    exact = problem.exact[0]
    draws = problem.prior.denoiser.sample(30_000, generator)
    log_likelihood = problem.likelihood.log_prob(draws, problem.measurements.double().expand(30_000, 4, 1))
    weight = log_likelihood.exp()
    error = float(weight.std() / weight.mean()) / math.sqrt(30_000)
    assert error < 0.1 and exact.log_partition_error < 0.03
    combined = math.hypot(error, exact.log_partition_error)
    assert exact.log_partition == pytest.approx(float(weight.mean().log()), abs=4 * combined)
    mean = (weight[:, None] * draws).sum(0) / weight.sum()
    assert exact.mean.numpy() == pytest.approx(mean.numpy(), abs=4 * 8 * combined)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lorenz63", {"seen": ("w",)}, "elements x, y, z, got 'w'"),
        ("lorenz63", {"seen": ()}, "elements x, y, z, got ''"),
        ("lorenz63", {"prior": "lorenz63-kd"}, "did you mean 'lorenz63-kde'"),
        ("lorenz63", {"times": 0}, r"at least 1 and horizon positive, got 0 and 1\.0"),
        ("lorenz63", {"horizon": 0.0}, "got 4 and 0.0"),
        ("lorenz63", {"count": 0}, "count must be at least 1, got 0"),
        ("henon-heiles", {"prior": "lorenz63-kde"}, r"needs a prior of 4 elements, got one of shape \(3,\)"),
        ("henon-heiles", {"noise_std": 0.0}, "noise_std must be a positive"),
    ],
)
def test_options_that_cannot_be(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_problem(f"chaos-{name}", options)


def test_an_evolution_says_what_it_cannot_do():
    derivative = SYSTEMS["lorenz63"].derivative
    with pytest.raises(ValueError, match=r"some of the 3 of x, 0..2, got \[3\]"):
        Evolution(derivative, 3, [3], step=0.1, stride=1, times=1)
    with pytest.raises(ValueError, match=r"stride and times at least 1, got 0\.1, 0 and 1"):
        Evolution(derivative, 3, [0], step=0.1, stride=0, times=1)
