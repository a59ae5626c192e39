"""Closures: what no gain changes, how many there are, and a density that is one."""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats

from envs.data import VisibilityTable
from envs.data.closures import closure_set
from envs.likelihoods import ClosureLikelihood, DifferentiableLikelihood, SimulableLikelihood
from envs.operators import Closures, Visibilities
from envs.operators.closures import wrapped

PIXEL = 1e-9


def _array(count, times=1, seed=0, std=0.01):
    """Every pair of `count` stations, at `times` moments; a bright point off centre and a weaker one."""
    rng = np.random.default_rng(seed)
    pairs = [(a, b) for a, b in combinations("ABCDEFGH"[:count], 2)] * times
    u, v = rng.uniform(-0.4 / PIXEL, 0.4 / PIXEL, (2, len(pairs)))
    sources = ((1.0, 2.0, -1.0), (0.45, -1.0, 3.0))
    value = sum(flux * np.exp(-2j * math.pi * PIXEL * (u * east + v * north)) for flux, east, north in sources)
    return VisibilityTable(
        name="made",
        u=u,
        v=v,
        value=value,
        std=np.full(len(pairs), std),
        time=np.repeat(np.arange(times) * 0.1, len(pairs) // times),
        stations=np.array(pairs),
    )


def _operator(table, closures, shape=(1, 8, 8)):
    seen = Visibilities(shape, torch.from_numpy(table.u), torch.from_numpy(table.v), PIXEL)
    rows = (torch.from_numpy(part) for part in (closures.triangles, closures.signs, closures.quadrangles))
    return Closures(seen, *rows)


def _with(table, value):
    columns = {name: getattr(table, name) for name in ("name", "u", "v", "std", "time", "stations")}
    return VisibilityTable(value=value, **columns)


@pytest.mark.parametrize("count", [3, 4, 5, 7])
def test_as_many_are_independent_as_there_are_phases_and_amplitudes_without_gains(count):
    closures = closure_set(_array(count, times=2))
    assert len(closures.triangles) == 2 * (count - 1) * (count - 2) // 2
    assert len(closures.quadrangles) == 2 * count * (count - 3) // 2
    assert float(np.linalg.eigvalsh(closures.covariance).min()) > 0


def test_complex_gains_of_the_stations_change_no_closure():
    table = _array(6, times=3)
    rng = np.random.default_rng(1)
    gains = {
        (name, t): rng.lognormal(0, 1) * np.exp(2j * math.pi * rng.random()) for name in "ABCDEF" for t in range(3)
    }
    factor = [
        gains[a, round(t / 0.1)] * np.conj(gains[b, round(t / 0.1)])
        for (a, b), t in zip(table.stations, table.time, strict=True)
    ]
    before = closure_set(table)
    spoiled = _with(table, table.value * np.array(factor))
    after = np.concatenate(
        [
            (before.signs * np.angle(spoiled.value)[before.triangles]).sum(1),
            np.log(np.abs(spoiled.value))[before.quadrangles] @ [1, 1, -1, -1],
        ]
    )
    count = len(before.triangles)
    assert np.abs(np.angle(spoiled.value) - np.angle(table.value)).max() > 1  # or there is nothing to test
    turned = (after[:count] - before.value[:count] + math.pi) % (2 * math.pi) - math.pi
    assert np.abs(turned).max() < 1e-12
    assert after[count:] == pytest.approx(before.value[count:], abs=1e-12)


def test_the_operator_gives_the_closures_of_the_table_that_its_image_has():
    table = _array(5, times=2)
    closures = closure_set(table)
    image = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    image[0, 0, 4 + 1, 4 - 2], image[0, 0, 4 - 3, 4 + 1] = 1.0, 0.45
    assert _operator(table, closures)(image)[0].numpy() == pytest.approx(closures.value, abs=1e-10)
    brighter = _operator(table, closures)(3.7 * image)[0].numpy()
    assert brighter == pytest.approx(closures.value, abs=1e-10)  # blind to the total flux


def test_noise_of_visibilities_gives_closures_of_the_covariance_that_is_claimed():
    """20,000 draws at a signal to noise of 30 or more, elements of the covariance to 5 standard errors or 4 %."""
    table = _array(5)
    table = _with(table, table.value)
    closures = closure_set(_with(table, table.value))
    rng = np.random.default_rng(2)
    noise = 0.01 * (rng.standard_normal((20_000, len(table))) + 1j * rng.standard_normal((20_000, len(table))))
    seen = table.value + noise
    phases = (np.angle(seen)[:, closures.triangles] * closures.signs).sum(-1)
    count = len(closures.triangles)
    phases = (phases - closures.value[:count] + math.pi) % (2 * math.pi) - math.pi
    amplitudes = np.log(np.abs(seen))[:, closures.quadrangles] @ [1, 1, -1, -1] - closures.value[count:]
    found = np.cov(np.concatenate([phases, amplitudes], 1).T)
    scale = np.sqrt(np.outer(*[closures.covariance.diagonal()] * 2))
    assert np.abs(found - closures.covariance).max() < (5 / 20_000**0.5 + 0.04) * scale.max()
    assert (np.abs(found - closures.covariance) / scale).max() < 5 / 20_000**0.5 + 0.04
    assert np.abs(closures.covariance[:count, :count] / scale[:count, :count]).max() > 0.3  # shared baselines


def test_the_mean_log_amplitude_is_not_biased_by_noise():
    """E log|V + n| - log|V| = E_1(1 / 2 r^2) / 2, which is 6e-4 for r = 1/3."""
    from scipy.special import exp1

    rng = np.random.default_rng(3)
    noise = rng.standard_normal(400_000) + 1j * rng.standard_normal(400_000)
    drawn = np.log(np.abs(1 + noise / 3))
    assert drawn.mean() == pytest.approx(exp1(4.5) / 2, abs=4 * drawn.std() / 400_000**0.5)
    assert exp1(4.5) / 2 < 1.1e-3


def test_a_systematic_share_adds_to_the_variance():
    table = _array(3, std=1e-6)
    assert closure_set(table, systematic=0.02).covariance[0, 0] == pytest.approx(3 * 0.02**2, rel=1e-4)


def _likelihood(count=4, std=0.05):
    table = _array(count, std=std)
    closures = closure_set(table)
    return ClosureLikelihood(_operator(table, closures), torch.from_numpy(closures.covariance)), closures


def _images(number, generator):
    return torch.rand(number, 1, 8, 8, generator=generator, dtype=torch.float64) + 0.2


def test_the_density_of_one_closure_phase_is_one_on_the_circle(generator):
    """By quadrature over the whole circle, at the largest standard deviation that is let in and at half of it."""
    table = _array(3)
    closures = closure_set(table)
    operator = _operator(table, closures)
    value = _images(1, generator)
    angle = torch.linspace(-math.pi, math.pi, 4_001, dtype=torch.float64)[:, None]
    for std in (0.75, 0.375):
        likelihood = ClosureLikelihood(operator, torch.tensor([[std**2]]))
        density = likelihood.log_prob(value.expand(4_001, 1, 8, 8), angle).exp()
        lost = 2 * stats.norm.sf(math.pi / std)
        assert float(torch.trapezoid(density, angle[:, 0])) == pytest.approx(1 - lost, abs=1e-9)
        assert lost < 3e-5
        turned = likelihood.log_prob(value.expand(4_001, 1, 8, 8), angle + 2 * math.pi).exp()
        assert turned.numpy() == pytest.approx(density.numpy(), rel=1e-6)


def test_the_density_of_correlated_closures_integrates_to_one(generator):
    """Over y, by importance sampling: uniform angles, broad normal log amplitudes."""
    likelihood, closures = _likelihood(4, 0.15)
    phases, count = len(closures.triangles), 60_000
    value = _images(1, generator)
    centre = likelihood.operator(value)[0, phases:]
    spread = torch.from_numpy(closures.covariance.diagonal()[phases:].copy()).sqrt() * 1.3
    width = 0.5
    offset = (torch.rand(count, phases, generator=generator, dtype=torch.float64) * 2 - 1) * width * math.pi
    noise = torch.randn(count, len(centre), generator=generator, dtype=torch.float64)
    drawn = torch.cat([likelihood.operator(value)[0, :phases] + offset, centre + spread * noise], 1)
    proposal = torch.distributions.Normal(centre, spread).log_prob(drawn[:, phases:]).sum(1)
    proposal = proposal - phases * math.log(2 * width * math.pi)
    weight = (likelihood.log_prob(value.expand(count, 1, 8, 8), drawn) - proposal).exp()
    error = float(weight.std()) / count**0.5
    assert error < 0.05
    assert float(weight.mean()) == pytest.approx(1, abs=4 * error)


def test_it_is_the_multivariate_normal_of_scipy_and_simulates_itself(generator):
    likelihood, closures = _likelihood()
    value = _images(3, generator)
    measurement = likelihood.sample(value, generator)
    expected = stats.multivariate_normal(np.zeros(len(closures.value)), closures.covariance)
    residual = (measurement - likelihood.operator(value)).numpy()
    phases = len(closures.triangles)
    residual[:, :phases] = (residual[:, :phases] + math.pi) % (2 * math.pi) - math.pi
    assert likelihood.log_prob(value, measurement).numpy() == pytest.approx(expected.logpdf(residual), rel=1e-9)
    many = likelihood.sample(value[:1].expand(20_000, 1, 8, 8), generator)
    assert float(many[:, :phases].abs().max()) <= math.pi
    white = likelihood.standardised(value[:1].expand(20_000, 1, 8, 8), many)
    assert np.cov(white.numpy().T) == pytest.approx(np.eye(len(closures.value)), abs=5 * 2**0.5 / 20_000**0.5)
    assert isinstance(likelihood, DifferentiableLikelihood) and isinstance(likelihood, SimulableLikelihood)


def test_the_gradient_is_that_of_finite_differences(generator):
    likelihood, _ = _likelihood()
    value = _images(3, generator)
    measurement = likelihood.sample(value, generator)
    direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    ahead, behind = (likelihood.log_prob(value + sign * 1e-6 * direction, measurement) for sign in (1, -1))
    slope = (likelihood.gradient(value, measurement) * direction).flatten(1).sum(1)
    assert slope.numpy() == pytest.approx(((ahead - behind) / 2e-6).numpy(), rel=1e-4, abs=1e-4)


def test_angles_are_moved_into_one_turn():
    angle = torch.tensor([0.0, math.pi, -math.pi, 3.5, -3.5, 7.0], dtype=torch.float64)
    expected = [0.0, math.pi, math.pi, 3.5 - 2 * math.pi, 2 * math.pi - 3.5, 7 - 2 * math.pi]
    assert wrapped(angle).numpy() == pytest.approx(expected, abs=1e-12)


def test_closures_that_cannot_be_are_refused():
    table = _array(4)
    closures = closure_set(table)
    operator = _operator(table, closures)
    with pytest.raises(ValueError, match=r"closure phase 0 has a standard deviation of 0.9 rad; .* at most 0.75"):
        ClosureLikelihood(operator, 0.81 * torch.eye(5))
    with pytest.raises(ValueError, match="positive definite: closure 1 depends on those before"):
        ClosureLikelihood(operator, torch.tensor([0.01, 0.0, 0.01, 0.01, 0.01]).diag())
    with pytest.raises(ValueError, match=r"covariance must be \[5, 5\], got \(4, 4\)"):
        ClosureLikelihood(operator, torch.eye(4))
    with pytest.raises(ValueError, match="no three stations see the source at one time"):
        closure_set(_array(2))
    twice = VisibilityTable(
        name="made",
        u=np.ones(2),
        v=np.ones(2),
        value=np.ones(2, complex),
        std=np.ones(2),
        time=np.zeros(2),
        stations=np.array([["A", "B"], ["B", "A"]]),
    )
    with pytest.raises(ValueError, match=r"baseline B-A is there twice at 0\.0000 h; average first"):
        closure_set(twice)
    value = table.value.copy()
    value[2] = 0
    place = rf"{'-'.join(table.stations[2])} at {table.time[2]:.4f} h"
    with pytest.raises(ValueError, match=rf"1 visibilities are zero and have no phase, the first of baseline {place}"):
        closure_set(replace(table, value=value))
    with pytest.raises(ValueError, match=r"triangles must be rows 0\.\.5 of the visibilities, got 9"):
        Closures(operator.visibilities, torch.full((1, 3), 9), torch.ones(1, 3), torch.zeros(0, 4).long())
