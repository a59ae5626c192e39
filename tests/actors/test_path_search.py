"""Path-space search: detailed balance by enumeration, and the posterior from paths of the prior."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from actors import path_search, rollout
from actors.known_paths import estimates_along, ratio_along
from actors.path_search import PathSearch
from actors.path_weights import log_acceptance, prefix_log_weight, suffix_log_weight
from diffusion.path import path_log_prior
from diffusion.posterior import ControlPosterior
from envs import make_problem
from envs.likelihoods import EventLikelihood

STATES, STEPS, BETA = 3, 3, 0.7


class TinyChain:
    """A chain of three steps on three states, with kernels p, q and n drawn at random, and its 81 paths.

    The way to the posterior begins at p, or at one more chain that is drawn at random.
    """

    def __init__(self, begins="prior") -> None:
        generator = np.random.default_rng(0)
        self.base = generator.dirichlet(np.ones(STATES))
        self.prior, self.kernel, self.noising = (
            generator.dirichlet(np.ones(STATES), size=(STEPS, STATES)) for _ in range(3)
        )
        self.log_likelihood = generator.normal(size=STATES)
        self.paths = np.array(list(itertools.product(range(STATES), repeat=STEPS + 1)))
        along = range(STEPS)
        self.log_prior = np.log([[self.prior[k, s[k], s[k + 1]] for k in along] for s in self.paths])
        self.log_kernel = np.log([[self.kernel[k, s[k], s[k + 1]] for k in along] for s in self.paths])
        self.log_noising = np.log([[self.noising[k, s[k + 1], s[k]] for k in along] for s in self.paths])
        self.log_base = np.log(self.base[self.paths[:, 0]])
        start = self.prior if begins == "prior" else generator.dirichlet(np.ones(STATES), size=(STEPS, STATES))
        log_start = np.log([[start[k, s[k], s[k + 1]] for k in along] for s in self.paths])
        self.log_start = torch.from_numpy(log_start - self.log_prior)
        log_target = self.log_base + BETA * self.log_prior.sum(1) + (1 - BETA) * log_start.sum(1)
        log_target += BETA * self.log_likelihood[self.paths[:, -1]]
        self.target = np.exp(log_target) / np.exp(log_target).sum()

    def transition(self, move, index, acceptance=log_acceptance):
        """[81, 81] matrix of a move at `index`, its acceptance by the functions under test."""
        if move == "suffix":
            ratio = torch.from_numpy((self.log_kernel - self.log_prior)[:, index:])
            reached = torch.from_numpy(self.log_likelihood[self.paths[:, -1]])
            weight = suffix_log_weight(ratio, reached, BETA, self.log_start[:, index:])
            kept, proposal = self.paths[:, : index + 1], self.log_kernel[:, index:].sum(1)
        else:
            log_prior, log_noising = self.log_prior[:, :index], self.log_noising[:, :index]
            known = map(torch.from_numpy, (self.log_base, log_prior, log_noising))
            weight = prefix_log_weight(*known, BETA, self.log_start[:, :index])
            kept, proposal = self.paths[:, index:], self.log_noising[:, :index].sum(1)
        count = len(self.paths)
        matrix = np.zeros((count, count))
        for old, new in itertools.product(range(count), repeat=2):
            if (kept[old] == kept[new]).all():
                log_accept = float(acceptance(weight[new : new + 1], weight[old : old + 1]))
                matrix[old, new] = math.exp(proposal[new] + log_accept)
        matrix[np.diag_indices(count)] += 1 - matrix.sum(1)
        return matrix

    def imbalance(self, matrix):
        """Largest difference of the probability flows between any two paths, there and back."""
        flow = self.target[:, None] * matrix
        return np.abs(flow - flow.T).max()


MOVES = [("suffix", index) for index in range(STEPS)] + [("prefix", index) for index in range(1, STEPS + 1)]


@pytest.mark.parametrize("begins", ["prior", "elsewhere"])
@pytest.mark.parametrize(("move", "index"), MOVES)
def test_both_moves_are_in_detailed_balance_with_the_tempered_posterior(move, index, begins):
    chain = TinyChain(begins)
    matrix = chain.transition(move, index)
    assert matrix.min() >= -1e-15 and matrix.sum(1) == pytest.approx(np.ones(len(matrix)), abs=1e-12)
    assert chain.imbalance(matrix) < 1e-12
    assert chain.target @ matrix == pytest.approx(chain.target, abs=1e-12)


@pytest.mark.parametrize(("move", "index"), MOVES)
@pytest.mark.parametrize(
    "wrong", [lambda new, old: log_acceptance(old, new), lambda new, old: torch.zeros_like(new)], ids=["sign", "always"]
)
def test_a_wrong_acceptance_is_out_of_balance(move, index, wrong):
    chain = TinyChain()
    assert chain.imbalance(chain.transition(move, index, wrong)) > 1e-4


def test_both_moves_together_reach_every_path():
    chain = TinyChain()
    sweep = chain.transition("suffix", 1) @ chain.transition("prefix", STEPS)
    assert np.linalg.matrix_power(sweep, 2_000)[0] == pytest.approx(chain.target, abs=1e-9)


def test_a_weight_that_is_not_finite_is_never_taken_and_given_up_for_any_other():
    inf, nan = math.inf, math.nan
    new = torch.tensor([-inf, nan, inf, 1.0, 1.0, -inf], dtype=torch.float64)
    old = torch.tensor([0.0, 0.0, 0.0, -inf, nan, -inf], dtype=torch.float64)
    assert log_acceptance(new, old).tolist() == [-inf, -inf, -inf, 0.0, 0.0, -inf]


def tempered(problem, count, seed=0, control=None):
    """A population at beta = 1, moved five times at every temperature."""
    search = PathSearch(problem, 0, count, generator=torch.Generator().manual_seed(seed))
    while search.beta < 1:
        search.temper()
        for _ in range(5):
            search.sweep(control)
    search.adapting = False
    return search


def consistent(search):
    """Whether what a population carries along is what its states give."""
    rows = torch.zeros(len(search.states), dtype=torch.long)
    denoised, guidance = estimates_along(search.problem, search.states, rows, search.guidance is not None)
    log_prior = path_log_prior(search.prior, search.states, denoised)
    assert search.denoised.numpy() == pytest.approx(denoised.numpy(), abs=1e-4)
    assert search.log_prior.numpy() == pytest.approx(log_prior.numpy(), abs=2e-3)
    noising = search.prior.noising.path_log_prob(search.states)
    assert search.log_noising.numpy() == pytest.approx(noising.numpy(), abs=2e-3)
    likelihood = search.problem.log_likelihood(search.samples, rows)
    assert search.log_likelihood.numpy() == pytest.approx(likelihood.numpy(), rel=1e-5)
    if guidance is not None:
        assert search.guidance.numpy() == pytest.approx(guidance.numpy(), abs=1e-3)


class WithoutGradient:
    """A likelihood that can only be evaluated."""

    def __init__(self, likelihood) -> None:
        self.log_prob, self.measurement_shape = likelihood.log_prob, likelihood.measurement_shape


@pytest.fixture
def blind_problem(gaussian_problem):
    """The Gaussian problem without a gradient: only the prior proposes."""
    return dataclasses.replace(gaussian_problem, likelihood=WithoutGradient(gaussian_problem.likelihood))


@pytest.mark.parametrize("gradient", [False, True])
def test_what_paths_carry_along_stays_what_their_states_give(gaussian_problem, blind_problem, gradient):
    search = tempered(gaussian_problem if gradient else blind_problem, 64)
    assert (search.guidance is not None) == gradient
    consistent(search)
    assert search.paths().log_behaviour_ratio.shape == (64,)
    assert search.paths(guided=False).guidance is None


def _exact_base(problem):
    """Mean square of s_0 / sigma_0 over exact paths."""
    states = problem.exact[0].sample_path(100_000, torch.Generator().manual_seed(0))
    return (states[:, 0] / problem.prior.sigma[0]).square().mean()


def test_without_a_gradient_the_prior_s_proposals_reach_the_exact_moments(blind_problem):
    search = tempered(blind_problem, 2_000)
    draws = []
    for _ in range(100):
        search.sweep()
        draws.append(search.samples.double())
    # Of the base too, which the prefix moves keep to by its density alone.
    base = search.states[:, 0].double() / float(blind_problem.prior.sigma[0])
    assert float(base.square().mean()) == pytest.approx(float(_exact_base(blind_problem)), abs=4 * math.sqrt(2 / 8_000))
    exact, values = blind_problem.exact[0], torch.cat(draws)
    error = (values.mean(0) - exact.mean) / exact.variance.sqrt()
    assert float(error.abs().max()) < 4 / math.sqrt(2_000)
    assert (values.std(0) / exact.variance.sqrt()).numpy() == pytest.approx(np.ones(4), abs=4 / math.sqrt(2 * 2_000))


@pytest.fixture(scope="module")
def searched():
    """1,000 paths of the Gaussian problem in 16 dimensions, from the prior."""
    problem = make_problem("gaussian-linear", {"dim": 16})
    search = tempered(problem, 1_000)
    search.adapting = False
    return problem, search


def test_a_thousand_prior_paths_reach_the_exact_gaussian_posterior(searched):
    problem, search = searched
    draws = []
    for _ in range(30):
        search.sweep()
        draws.append(search.samples.double())
    values, exact = torch.stack(draws), problem.exact[0]
    factor = torch.linalg.cholesky(exact.covariance)
    white = torch.linalg.solve_triangular(factor, (values.flatten(0, 1) - exact.mean).T, upper=False).T
    # The draws are worth a thousand at least: that many paths, which move on from sweep to sweep.
    assert float(white.mean(0).square().mean()) < 2 / 1_000
    covariance = white.T @ white / len(white)
    assert float((covariance - torch.eye(16)).square().mean()) < 2 / 1_000


def test_tempering_estimates_the_evidence(searched):
    problem, search = searched
    assert search.log_partition == pytest.approx(problem.exact[0].log_partition, abs=0.3)


def test_a_posterior_as_a_kernel_leaves_the_target_alone(blind_problem):
    """A control moved away from zero proposes; the exact moments stay."""
    posterior = shifted_posterior(blind_problem)
    search = tempered(blind_problem, 2_000, control=posterior.control)
    shares = [float(search.redraw_suffix(index, posterior.control).double().mean()) for index in range(10)]
    assert min(shares) > 0 and max(shares) < 1
    for _ in range(100):
        search.sweep(posterior.control)
    exact, values = blind_problem.exact[0], search.samples.double()
    error = (values.mean(0) - exact.mean) / exact.variance.sqrt()
    assert float(error.abs().max()) < 4 / math.sqrt(2_000)
    consistent(search)


def shifted_posterior(problem, std=0.5):
    """A posterior whose control is far from zero."""
    torch.manual_seed(0)
    posterior = ControlPosterior(problem.prior, (2,), None, hidden=8, depth=1).requires_grad_(False)
    torch.nn.init.normal_(posterior.network.head.weight, std=std)
    return posterior


def test_on_the_way_from_a_control_the_population_is_that_of_its_weighted_paths(gaussian_problem):
    """At beta < 1, where 200,000 fresh paths with weights w^beta say what the mean and the spread are."""
    posterior = shifted_posterior(gaussian_problem, std=2.0)  # log q - log p spreads by 1.8 nats
    generator = torch.Generator().manual_seed(1)
    search = PathSearch(gaussian_problem, 0, 4_000, generator=generator, start=posterior.control)

    def carried():
        known = search.measurement_id, search.states, search.denoised, search.guidance
        ratio = ratio_along(gaussian_problem, posterior.control, *known)[0]
        assert search.log_start.numpy() == pytest.approx(ratio.numpy(), abs=2e-3)
        made = search.paths()
        weight = made.log_likelihood.double() - made.log_behaviour_ratio
        power = (1 - search.beta) * (search.log_likelihood.double() - ratio.double().sum(1))
        assert weight.numpy() == pytest.approx((power + search.log_partition).numpy(), abs=0.01)

    while search.beta < 0.4:
        search.temper()
        carried()
        for _ in range(20):
            search.sweep(posterior.control)
    for _ in range(20):
        search.redraw_suffix(gaussian_problem.num_steps // 2, posterior.control)
    assert search.beta < 0.95
    carried()
    consistent(search)
    rows = torch.zeros(200_000, dtype=torch.long)
    fresh = rollout(gaussian_problem, posterior.control, rows, generator=generator)
    log_weight = search.beta * fresh.log_weight
    weight, paths = log_weight.softmax(0), fresh.states.double()
    error = math.sqrt(1 / len(search.states) + float(weight.square().sum()))
    for step in (0, 5, gaussian_problem.num_steps):
        mean = weight @ paths[:, step]
        std = (weight @ (paths[:, step] - mean).square()).sqrt()
        found = search.states[:, step].double()
        assert float(((found.mean(0) - mean) / std).abs().max()) < 4.5 * error
        assert float((found.std(0) / std - 1).abs().max()) < 4.5 * error
    for value, found in (
        (fresh.log_likelihood, search.log_likelihood),
        (fresh.log_ratio.sum(1), search.log_start.sum(1)),
        (fresh.log_ratio[:, :5].sum(1), search.log_start[:, :5].sum(1)),
    ):
        mean = float(weight @ value.double())
        std = float(weight @ (value.double() - mean).square()) ** 0.5
        assert abs(float(found.double().mean()) - mean) < 4.5 * error * std
    expected = float(log_weight.logsumexp(0)) - math.log(len(rows))
    assert search.log_partition == pytest.approx(expected, abs=0.15)


def test_a_control_is_a_place_to_begin_at(gaussian_problem):
    posterior = shifted_posterior(gaussian_problem)
    generator = torch.Generator().manual_seed(0)
    search = PathSearch(gaussian_problem, 0, 1_000, generator=generator, start=posterior.control)
    with pytest.raises(ValueError, match=r"cannot be written down on its way from a control, got beta 0"):
        search.state_dict()
    while search.beta < 1:
        search.temper()
        search.settle(posterior.control)
    exact, values = gaussian_problem.exact[0], search.samples.double()
    error = (values.mean(0) - exact.mean) / exact.variance.sqrt()
    assert float(error.abs().max()) < 5 / math.sqrt(1_000)
    assert search.log_partition == pytest.approx(tempered(gaussian_problem, 4_000).log_partition, abs=0.2)
    assert not search.log_start.any() and search.state_dict()[1]["beta"] == 1
    consistent(search)


def test_redrawing_parts_of_x_alone_keeps_the_exact_moments(blind_problem):
    """From index 0, where a whole new x is hardly ever accepted, under a kernel that is off."""
    posterior, search = shifted_posterior(blind_problem), tempered(blind_problem, 2_000)
    shares = []
    for index in itertools.islice(itertools.cycle(range(0, 8, 2)), 60):
        shares.append(float(search.redraw_suffix(index, posterior.control, (1,)).double().mean()))
    whole = float(search.redraw_suffix(0, posterior.control).double().mean())
    assert shares[-4] > 2 * whole
    exact, values = blind_problem.exact[0], search.samples.double()
    error = (values.mean(0) - exact.mean) / exact.variance.sqrt()
    assert float(error.abs().max()) < 4 / math.sqrt(2_000)
    assert (values.std(0) / exact.variance.sqrt()).numpy() == pytest.approx(np.ones(4), abs=4 / math.sqrt(2 * 2_000))
    consistent(search)


def test_noise_that_is_kept_makes_the_same_path_again(blind_problem):
    posterior, search = shifted_posterior(blind_problem), tempered(blind_problem, 50)
    known = search.states[:, 3:], search.denoised[:, 3:], None
    noise = ratio_along(blind_problem, posterior.control, search.measurement_id, *known, first=3, with_noise=True)[1]
    nowhere = torch.zeros(50, 4, dtype=torch.bool)
    again = path_search.rollout(
        blind_problem,
        posterior.control,
        search.measurement_id,
        start=search.states[:, 3],
        first=3,
        noise=noise,
        renewed=nowhere,
    )
    assert again.states.numpy() == pytest.approx(search.states[:, 3:].numpy(), abs=1e-4)
    assert again.log_likelihood.numpy() == pytest.approx(search.log_likelihood.numpy(), rel=1e-3, abs=1e-3)


def test_paths_settle_when_they_have_forgotten(blind_problem, monkeypatch):
    search = tempered(blind_problem, 500)
    monkeypatch.setattr(path_search, "MAX_SWEEPS", 1_000)
    before, sweeps = search.samples.clone(), search.sweeps
    assert 0 < search.settle() < 1
    assert 1 < search.sweeps - sweeps < 1_000
    one, other = (value.double() - value.double().mean(0) for value in (before, search.samples))
    assert float((one * other).sum() / (one.square().sum() * other.square().sum()).sqrt()) < 0.55
    sweeps = search.sweeps
    search.settle(stop=lambda: True)
    assert search.sweeps == sweeps + 1


def test_the_guided_kernel_of_a_fitted_population_is_accepted_where_the_prior_is_not():
    problem = make_problem("gmm-linear", {"dim": 16})
    search = tempered(problem, 500)
    assert float(search.redraw_suffix(0, search._guide).double().mean()) > 0.5
    assert float(search.redraw_suffix(0, None).double().mean()) < 0.05


def test_the_gains_of_the_guided_kernel_are_the_most_likely_ones(gaussian_problem):
    """Perturbing any gain lowers the mean log q of the paths it was fitted to."""
    search = tempered(gaussian_problem, 400)
    search.fit_guide()
    guide = search._guide

    def log_likelihood():
        known = search.measurement_id, search.states, search.denoised, search.guidance
        return ratio_along(gaussian_problem, guide, *known)[0].double().sum(1).mean()

    best = log_likelihood()
    for row in (0, 1):
        for step in (2, 5, 8):
            for shift in (-0.2, 0.2):
                guide.gain[row, step] += shift
                assert log_likelihood() < best
                guide.gain[row, step] -= shift


class _Half:
    """Another likelihood where the first element of x is above a limit, zero elsewhere."""

    def __init__(self, likelihood, limit):
        self.likelihood, self.limit = likelihood, limit
        self.measurement_shape = likelihood.measurement_shape

    def log_prob(self, value, measurement):
        return torch.where(value[:, 0] > self.limit, self.likelihood.log_prob(value, measurement), -math.inf)


@pytest.mark.parametrize(("limit", "possible"), [(-3.0, 1.0), (0.3, 0.25), (0.8, 0.11)])
def test_paths_of_zero_likelihood_are_left_behind_and_count_in_the_evidence(blind_problem, limit, possible):
    problem = dataclasses.replace(blind_problem, likelihood=_Half(blind_problem.likelihood, limit))
    draws = rollout(problem, None, torch.zeros(100_000, dtype=torch.long), generator=torch.Generator().manual_seed(1))
    weight = draws.log_likelihood.double().exp()
    assert float((weight > 0).double().mean()) == pytest.approx(possible, rel=0.1)
    found, means = [], []
    for seed in range(8):
        search = PathSearch(problem, 0, 500, generator=torch.Generator().manual_seed(seed))
        betas = [0.0]
        while search.beta < 1:
            betas.append(search.temper())
            assert betas[-1] > betas[-2] and bool(torch.isfinite(search.log_likelihood).all())
            search.settle()
        found.append(search.log_partition)
        means.append(search.samples.double().mean(0).numpy())
    error = np.std(found, ddof=1) / math.sqrt(8) + 0.02
    assert np.mean(found) == pytest.approx(float(weight.mean().log()), abs=4 * error)
    expected = (weight[:, None] * draws.states[:, -1].double()).sum(0) / weight.sum()
    assert np.mean(means, axis=0) == pytest.approx(
        expected.numpy(), abs=4 * np.std(means, axis=0).max() / math.sqrt(8) + 0.02
    )


def test_a_violation_that_is_no_number_takes_no_other_path_with_it(gaussian_problem):
    event = EventLikelihood(lambda x: (x[:, 0] + 1.5).sqrt() - 1.2)
    problem = dataclasses.replace(
        gaussian_problem, likelihood=event, measurements=torch.ones(1, 1), exact=(), solve=None
    )
    search = PathSearch(problem, 0, 500, generator=torch.Generator().manual_seed(0))
    assert int((search.samples[:, 0] < -1.5).sum()) > 5
    search.temper()
    assert 0 < search.beta <= 1 and math.isfinite(search.log_partition)
    assert len(search.samples.unique(dim=0)) > 100 and bool((search.samples[:, 0] > -1.5).all())


def test_a_population_of_one_is_refused(gaussian_problem):
    with pytest.raises(ValueError, match="at least 2 paths, got 1"):
        PathSearch(gaussian_problem, 0, 1)


def test_paths_without_a_finite_likelihood_are_refused(gaussian_problem):
    search = PathSearch(gaussian_problem, 0, 4)
    search.log_likelihood.fill_(-math.inf)
    with pytest.raises(ValueError, match=r"not one of 4 paths has a finite log p\(y \| x\)"):
        search.temper()


def test_prefixes_that_are_noised_anew_leave_the_chain_as_it_is_where_it_is_coarse():
    """Of a mixture in four steps noised samples are no paths of the chain: taken all, they would change its states."""
    problem, count = make_problem("gmm-linear", {"num_steps": 4}), 20_000
    search = PathSearch(problem, 0, count, generator=torch.Generator().manual_seed(0))
    before = search.states[:, 1:4].double().square().sum(2)
    taken = [float(search.renoise_prefix(last).double().mean()) for last in (4, 3, 4, 2, 4)]
    after = search.states[:, 1:4].double().square().sum(2)
    error = (before.var(0) / count + after.var(0) / count).sqrt()
    assert 0.05 < taken[0] < 0.95
    assert float(((after.mean(0) - before.mean(0)) / error).abs().max()) < 4.5
