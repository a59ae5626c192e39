"""Modes of a posterior under a mixture: closed forms, a fine grid, and which components are left out."""

import pytest
import torch

from diffusion.denoiser import GaussianDenoiser, MixtureDenoiser
from envs import make_problem, mixture_modes
from envs.asked import Asked, LikelihoodCalls
from envs.likelihoods import GaussianLikelihood, PoissonLikelihood
from envs.mixture_modes import Components
from envs.operators import Lognormal, Matrix

MATRIX = torch.tensor([[1.0, 0.4, 0.0], [0.2, 0.9, 0.3]], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.2, 0.0], [0.2, 0.4, 0.1], [0.0, 0.1, 0.3]], dtype=torch.float64)


def _components(prior, likelihood, measurement, calls=None):
    return Components(prior, likelihood, measurement, Asked("the likelihood", None, calls))


def test_of_a_linear_measurement_each_is_the_mean_of_its_component(generator):
    means = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    seen = torch.tensor([0.5, -0.3])
    components = _components(MixtureDenoiser(means, COVARIANCE), GaussianLikelihood(Matrix(MATRIX), 0.5), seen)
    row, z = components.modes()
    gain = COVARIANCE @ MATRIX.T @ torch.linalg.inv(MATRIX @ COVARIANCE @ MATRIX.T + 0.25 * torch.eye(2))
    expected = means + (seen.double() - means @ MATRIX.T) @ gain.T
    assert sorted(row.tolist()) == [0, 1, 2, 3]
    assert components.placed(row, z).numpy() == pytest.approx(expected[row].numpy(), abs=1e-6)
    inside = torch.eye(3) + components.root.T @ (4 * MATRIX.T @ MATRIX) @ components.root
    assert components.precision(components.placed(row, z)).numpy() == pytest.approx(inside.numpy())


def test_of_counts_it_is_the_maximum_of_the_density_on_a_grid():
    """x of one element behind exp(x), which bends; one Gaussian component."""
    prior = GaussianDenoiser(torch.tensor([0.3], dtype=torch.float64), 0.8)
    likelihood = PoissonLikelihood(Lognormal((1,), 0.5), 5.0)
    components = _components(prior, likelihood, torch.tensor([22.0]))
    row, z = components.modes()
    grid = torch.linspace(-4, 4, 80_001, dtype=torch.float64)[:, None]
    density = likelihood.log_prob(grid, torch.full((len(grid), 1), 22.0)) + prior.log_prob(grid)
    assert row.tolist() == [0]
    assert float(components.placed(row, z)) == pytest.approx(float(grid[density.argmax()]), abs=2e-4)


def test_only_components_that_y_speaks_for_are_left():
    """Two hundred along a line, seen with little noise: those near y, the nearest among them."""
    means = torch.linspace(-100, 100, 201, dtype=torch.float64)[:, None]
    likelihood = GaussianLikelihood(Matrix(torch.eye(1, dtype=torch.float64)), 0.5)
    row, _ = _components(MixtureDenoiser(means, 0.25), likelihood, torch.tensor([7.1])).modes()
    assert 107 in row.tolist() and len(row) <= 20
    assert float((means[row, 0] - 7.1).abs().max()) < 10


@pytest.mark.parametrize(("higher", "steep", "first"), [(5, 1e7, True), (10, 3e4, False)])
def test_a_wide_mode_is_not_left_out_for_many_that_are_higher_and_narrow(monkeypatch, higher, steep, first):
    """Of 60 components 5 nats higher and e^-14 as wide none has the weight of the one; 10 nats and e^-8, all have."""
    monkeypatch.setattr(mixture_modes, "MOST", 40)

    class Bent:
        """y tells x to 1e-7 around 1, which it prefers, and says nothing of x below 0."""

        measurement_shape = (1,)

        def standardised(self, value, measurement):
            rising = torch.where(value > 0, steep * (value - 1), 0.0)
            return (measurement - rising).sum(1, keepdim=True)

        def log_prob(self, value, measurement):
            return -0.5 * self.standardised(value, measurement).square().sum(1) + higher * (value[:, 0] > 0)

        def gradient(self, value, measurement):
            return torch.where(value > 0, steep, 0.0) * self.standardised(value, measurement)

    means = torch.cat([torch.ones(60, 1), -torch.ones(1, 1)]).double()
    row, _ = _components(MixtureDenoiser(means, 0.01), Bent(), torch.zeros(1)).modes()
    assert (60 in row.tolist()) == (int(row[0]) == 60) == first


def test_every_x_that_the_likelihood_is_asked_about_is_counted():
    calls = LikelihoodCalls()
    problem = make_problem("gmm-linear", {"num_steps": 2})
    components = _components(problem.prior.denoiser, problem.likelihood, problem.measurements[0], calls)
    z = torch.zeros(3, len(components.root), dtype=torch.float64)
    components.log_joint(torch.arange(3), z)
    assert calls.count == 3
    components.gradient(components.placed(torch.arange(3), z))
    assert calls.count == 6
    components.precision(components.placed(torch.arange(3), z))
    assert calls.count == 9


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ([[3.0, 0.0], [0.0, -0.9]], [4.0, 0.0, 0.0, 0.5]),
        ([[float("nan"), 0.0], [0.0, 1.0]], [1.0, 0.0, 0.0, 2.0]),
    ],
)
def test_a_precision_is_positive_whatever_the_information_is(monkeypatch, matrix, expected):
    """That of learned noise may have either sign."""
    monkeypatch.setattr(mixture_modes, "information_matrix", lambda *_: torch.tensor(matrix, dtype=torch.float64))
    prior = GaussianDenoiser(torch.zeros(2), 1.0)
    components = _components(prior, GaussianLikelihood(Matrix(torch.eye(2)), 0.5), torch.zeros(2))
    assert components.precision(torch.zeros(3, 2)).flatten().tolist() == pytest.approx(expected)


def test_more_components_are_left_of_few_elements():
    for dim, expected in ((2, 200), (160, 101), (256, 40), (1000, 40)):
        likelihood = GaussianLikelihood(Matrix(torch.eye(dim, dtype=torch.float64)), 0.5)
        assert _components(GaussianDenoiser(torch.zeros(dim), 1.0), likelihood, torch.zeros(dim)).most == expected


def test_a_density_that_is_no_number_counts_as_zero():
    class Unsound:
        measurement_shape = (1,)

        def log_prob(self, value, measurement):
            return torch.tensor([torch.nan, torch.inf, -torch.inf, 0.5])

    components = _components(GaussianDenoiser(torch.zeros(1), 1.0), Unsound(), torch.zeros(1))
    found = components.log_joint(torch.zeros(4, dtype=torch.int64), torch.zeros(4, 1).double())
    assert found.tolist() == [-torch.inf] * 3 + [0.5]


def test_closures_that_come_in_gently_lead_to_modes_of_more_evidence(monkeypatch):
    """Phases wrap: of three sources, by Laplace's approximation, steps at beta = 1 alone end 6 nats or more lower."""
    found = {}
    whole = mixture_modes.BETAS
    for betas in (whole, whole[:1]):
        monkeypatch.setattr(mixture_modes, "BETAS", betas)
        for seed in range(3):
            problem = make_problem("radio-closure", {"size": 8, "seed": seed, "num_steps": 2})
            components = _components(problem.prior.denoiser, problem.likelihood, problem.measurements[0])
            row, z = components.modes()
            width = torch.stack([torch.logdet(components.precision(x[None])) for x in components.placed(row, z)])
            found[len(betas), seed] = float((components.log_joint(row, z) - 0.5 * width).logsumexp(0))
    for seed in range(3):
        assert found[len(whole), seed] > found[1, seed] + 4
