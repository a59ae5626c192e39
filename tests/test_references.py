"""References without diffusion are themselves checked, on what is known in closed form."""

import functools
import math

import numpy as np
import pytest
import torch

from benchmarks.closures import Components, closure_reference
from benchmarks.galaxies import chain_power, whitened
from benchmarks.harness import Benchmark
from benchmarks.hmc import hmc, tempered_log_evidence
from benchmarks.references import by_chain, deviation, planned, weighted
from benchmarks.spectra import mixture_reference
from envs import make_problem
from envs.problems.radio import sky
from system.config_file import load_config


def test_hmc_has_the_mean_and_the_covariance_of_a_gaussian(generator):
    """Standard deviations of 0.3 to 3.2, correlated; the errors are those between 400 chains."""
    root = torch.tensor([[0.3, 0.0, 0.0], [0.5, 1.0, 0.0], [-1.0, 0.4, 3.0]], dtype=torch.float64)
    mean, inverse = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), torch.linalg.inv(root)
    start = torch.zeros(400, 3, dtype=torch.float64)
    chains = hmc(
        lambda z: -((z - mean) @ inverse.T).square().sum(1) / 2, start, warmup=60, draws=30, generator=generator
    )
    assert 0.6 < chains.acceptance < 0.95
    error = chains.draws.mean(0).std(0) / math.sqrt(400)
    assert float(((chains.draws.mean((0, 1)) - mean) / error).abs().max()) < 4
    centred = chains.draws - mean
    products = torch.einsum("sci,scj->cij", centred, centred) / len(centred)
    error = products.std(0) / math.sqrt(400)
    assert float(((products.mean(0) - root @ root.T) / error).abs().max()) < 4


def test_the_tempered_evidence_of_a_gaussian_is_exact(generator):
    """z ~ N(0, I), y = z + noise of 0.3 in four dimensions: log Z = log N(y; 0, 1.09 I)."""
    y = torch.linspace(-2, 2, 4, dtype=torch.float64)
    exact = float(torch.distributions.Normal(0.0, math.sqrt(1.09)).log_prob(y).sum())
    constant = 4 * math.log(0.3 * math.sqrt(2 * math.pi))
    found, ends = [], []
    for _ in range(6):
        start = torch.randn(512, 4, generator=generator, dtype=torch.float64)
        evidence, end = tempered_log_evidence(
            lambda z: -((z - y) / 0.3).square().sum(1) / 2 - constant, start, generator=generator
        )
        found.append(evidence)
        ends.append(end)
    assert np.mean(found) == pytest.approx(exact, abs=4 * np.std(found) / math.sqrt(5)) and np.std(found) < 0.2
    means = torch.stack([end.mean(0) for end in ends])
    assert float(((means.mean(0) - y / 1.09) / (means.std(0) / math.sqrt(6))).abs().max()) < 6
    assert torch.cat(ends).var(0).numpy() == pytest.approx(np.full(4, 0.09 / 1.09), rel=0.15)


def test_the_power_of_a_chain_is_that_of_its_ends(generator):
    """2,000 ends: the variance of a frequency is known to sqrt(2 / 2000) = 3 %."""
    prior = make_problem("galaxy-field", {"size": 6, "num_steps": 8}).prior
    power = chain_power(prior)
    _, white = whitened(make_problem("galaxy-field", {"size": 6, "num_steps": 8}), power)
    assert white(torch.zeros(2, 36, dtype=torch.float64)).shape == (2,)
    field, _ = whitened(make_problem("galaxy-field", {"size": 6, "num_steps": 8}), torch.ones(6, 6).double())
    ends = field(prior.sample(2_000, generator).double().flatten(1))  # the transform is its own inverse
    ratio = ends[:, 0].square().mean(0) / power
    assert float((ratio - 1).abs().max()) < 4.5 * math.sqrt(2 / 2_000)
    assert float((power / prior.denoiser.power - 1).abs().max()) > 0.1  # eight steps are few, and it shows
    with pytest.raises(TypeError, match="must be a Gaussian field"):
        chain_power(make_problem("lgcp", {"grid": 2, "num_steps": 2}).prior)


def test_the_tempered_evidence_of_a_field_of_which_one_cell_was_seen_is_that_of_quadrature():
    """The field integrates out but for that cell, of variance one: a lognormal rate under seven counts."""
    problem = make_problem("galaxy-field", {"size": 4, "num_steps": 4})
    field, _ = whitened(problem, problem.prior.denoiser.power)

    def log_likelihood(value):
        log_rate = math.log(5.0) + 1.5 * (value - 0.5)
        return 7 * log_rate - log_rate.exp() - math.lgamma(8)

    line = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = (log_likelihood(line) - line.square() / 2).exp() / math.sqrt(2 * math.pi)
    exact = float(torch.trapezoid(density, line).log())
    found = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(512, 16, generator=generator, dtype=torch.float64)
        found.append(
            tempered_log_evidence(lambda z: log_likelihood(field(z)[:, 0, 1, 2]), start, generator=generator)[0]
        )
    assert np.mean(found) == pytest.approx(exact, abs=4 * np.std(found) / math.sqrt(5)) and np.std(found) < 0.2


def test_the_reference_of_a_spectrum_is_that_of_draws_of_its_prior(generator):
    """Few counts, so that 8,000 draws of the mixture are enough; both have errors of their own."""
    options = {"bins": 3, "spectra": 60, "bandwidth": 0.3, "flux": 4e-6, "num_steps": 2}
    problem = make_problem("xray-spectrum", options)
    found = mixture_reference(problem, draws=100)
    draws = problem.prior.denoiser.sample(8_000, generator)
    log_weight = problem.likelihood.log_prob(draws, problem.measurements)
    weight = log_weight.exp() / log_weight.exp().sum()
    exact = float(log_weight.logsumexp(0)) - math.log(8_000)
    error = math.hypot(found.standard_error, math.sqrt(float(weight.square().sum())))
    assert found.log_partition == pytest.approx(exact, abs=4 * error) and error < 0.08
    for power in (1, 2):
        expected = weight @ draws**power
        errors = ((weight**2) @ (draws**power - expected).square()).sqrt()
        errors = (errors**2 + (found.weights**2) @ (found.samples**power - expected).square()).sqrt()
        assert float(((found.weights @ found.samples**power - expected) / errors).abs().max()) < 4
    with pytest.raises(TypeError, match="must be xray-spectrum"):
        mixture_reference(make_problem("gmm-25"))


def test_right_answers_differ_by_their_error_and_wrong_ones_by_more(generator):
    """300 elements, so the root mean square is known to 4 %; weights, and chains that stick, are allowed for."""
    centre = torch.zeros(300, dtype=torch.float64)
    chains = torch.randn(40, 100, 300, generator=generator, dtype=torch.float64)
    chains[20:] = chains[:20]  # every draw twice: half as many are worth something
    samples = torch.randn(4_000, 300, generator=generator, dtype=torch.float64)
    weights = torch.rand(4_000, generator=generator, dtype=torch.float64).square()
    weights = weights / weights.sum()
    mean, spread = deviation(weighted(samples, weights, centre), by_chain(chains, centre))
    assert mean == pytest.approx(1, abs=0.16) and spread == pytest.approx(1, abs=0.16)
    mean, spread = deviation(weighted(samples + 0.1, weights, centre), by_chain(chains, centre))
    assert mean > 2.5
    mean, spread = deviation(weighted(1.1 * samples, weights, centre), by_chain(chains, centre))
    assert mean < 1.3 and spread > 4


def test_the_runs_of_the_comparison_are_planned_and_load(tmp_path):
    trees, plan = planned(Benchmark(short=True, json=None, out=tmp_path, jobs=1))
    assert set(trees) == {"galaxy_field", "xray_spectrum"} and len(plan) == 2
    assert {load_config(run.config, list(run.overrides)).max_seconds for run in plan} == {20.0}


@pytest.mark.slow
@pytest.mark.parametrize("each", [1, 2])
def test_the_reference_of_closures_agrees_with_a_population_tempered_from_the_prior(each, generator, monkeypatch):
    """A faint source, so that the population reaches the posterior; it knows nothing of modes or components."""
    monkeypatch.setattr(sky, "shapes", functools.partial(sky.shapes, each=each))
    problem = make_problem("radio-closure", {"size": 8, "snr": 3.0, "num_steps": 2})
    density = problem.prior.denoiser
    root = density.eigenvectors * density.eigenvalues.sqrt()
    means = torch.linalg.solve(root, density.means.double().T).T  # in coordinates in which kernels are N(0, I)

    def log_prior(z):
        return (density.log_weights - 0.5 * torch.cdist(z, means).square()).logsumexp(1)

    def log_likelihood(z):
        return problem.likelihood.log_prob((z @ root.T).reshape(-1, 1, 8, 8), problem.measurements.expand(len(z), -1))

    found, mean = [], []
    for _ in range(3):
        start = torch.linalg.solve(root, density.sample(300, generator).double().flatten(1).T).T
        evidence, end = tempered_log_evidence(
            log_likelihood, start, log_prior=log_prior, share=0.7, generator=generator
        )
        found.append(evidence)
        mean.append((end @ root.T).mean(0))
    ours = [closure_reference(problem, population=300, seed=seed) for seed in range(3)]
    error = math.hypot(np.std(found, ddof=1), np.std([each.log_partition for each in ours], ddof=1)) / math.sqrt(3)
    assert error < 0.3
    assert np.mean([each.log_partition for each in ours]) == pytest.approx(np.mean(found), abs=4 * error)
    theirs, mine = torch.stack(mean), torch.stack([each.draws.flatten(1).mean(0) for each in ours])
    spread = ((theirs.var(0) + mine.var(0)) / 3).sqrt()
    assert float(((theirs.mean(0) - mine.mean(0)) / spread).square().mean().sqrt()) < 2


def test_slopes_of_closures_are_those_of_their_residuals(generator):
    problem = make_problem("radio-closure", {"size": 8, "num_steps": 2})
    parts = Components(problem.prior.denoiser, problem.likelihood, problem.measurements)
    row, z = torch.tensor([0, 500]), 0.1 * torch.randn(2, 64, generator=generator, dtype=torch.float64)
    way = torch.randn(64, generator=generator, dtype=torch.float64)
    found = (parts.residuals(row, z + 1e-6 * way) - parts.residuals(row, z - 1e-6 * way)) / 2e-6
    assert torch.allclose(parts.slopes(row, z) @ way, found, rtol=1e-6, atol=1e-5)


def test_the_reference_of_closures_is_for_closures_alone():
    with pytest.raises(TypeError, match="must be radio-closure"):
        closure_reference(make_problem("radio-uv", {"size": 8, "num_steps": 2}))
    with pytest.raises(ValueError, match="one of these is dark"):
        closure_reference(make_problem("radio-closure", {"prior": "field", "size": 8, "num_steps": 2}))
