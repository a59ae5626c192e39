"""Objectives against numbers worked out by hand, the exact posterior, autograd, quadrature and scipy's minimiser."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import multivariate_normal, norm

from actors import Actor, ActorConfig
from actors.rollout import rollout
from diffusion.denoiser import GaussianDenoiser
from diffusion.path import density_over_chain, path_log_ratio
from diffusion.posterior import ControlPosterior, FinetunePosterior
from diffusion.prior import Prior
from envs import make_problem
from envs.exact.chain import ChainPosterior
from learner import LearnerConfig
from learner.batch import PathBatch
from learner.gradient import GradientPlan, RowLimits
from learner.log_partition import LogPartition
from learner.loss import Loss
from learner.objectives import OBJECTIVES
from learner.objectives.adjoint_matching import correlation_of_start, lean_adjoint
from learner.objectives.mle import MaximumLikelihood
from learner.objectives.ppo_kl import ProximalPolicyKL
from learner.objectives.reinforce_kl import ReinforceKL
from learner.objectives.rtb import RelativeTrajectoryBalance
from learner.objectives.subtb import SubTrajectoryBalance
from learner.objectives.trust_pcl import TrustPCL
from learner.objectives.vargrad import VarGrad

SQUARE = Loss("square")
KINDS = ["path-search", "backtracking", "langevin", "teacher", "dps", "dps-cla", "pigdm", "annealed-measurement"]
LOG_RATIO = torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=torch.float64)
LOG_LIKELIHOOD = torch.tensor([-3.0, -1.0, 2.0, -2.0], dtype=torch.float64)
GROUP = torch.tensor([0, 1, 0, 1])
OF_RATIOS = ["rtb", "vargrad", "tb", "subtb", "trust_pcl", "reinforce_kl", "ppo_kl", "mle"]
BALANCES = ["rtb", "vargrad", "trust_pcl"]  # with `tb`, but for what the chain is not the density's


def _batch(group=GROUP, log_likelihood=LOG_LIKELIHOOD, behaviour=None, steps=1):
    """A batch of which the objectives see nothing but these numbers."""
    count = len(group)
    return PathBatch(
        states=torch.zeros(count, steps + 1, 1),
        denoised=torch.zeros(count, steps, 1),
        measurement=torch.zeros(count, 1),
        measurement_id=group,
        exact=group < 0,
        log_likelihood=log_likelihood,
        log_behaviour_ratio=torch.zeros(count) if behaviour is None else behaviour,
    )


def _residual(objective, log_ratio=LOG_RATIO, batch=None, beta=1.0):
    return objective.residual(log_ratio, batch or _batch(), beta).detach()


def _rtb(log_partition, shape=SQUARE):
    return RelativeTrajectoryBalance(shape, _table(log_partition))


def _table(values):
    """log Z of each measurement."""
    table = LogPartition("table", len(values), (1,))
    table.level.data.copy_(torch.as_tensor(values))
    return table


def _made(name, problem, posterior=None, **settings):
    """The objective called `name` on `problem`, log Z at its exact value."""
    config = LearnerConfig(objective=name, **settings)
    objective = OBJECTIVES[name](config, problem, posterior or _posterior(problem))
    for parameter in objective.parameters():
        if parameter.dtype == torch.float64 and problem.exact:
            parameter.data.fill_(problem.exact[0].log_partition)
    return objective


def _posterior(problem, dtype=torch.float32, **options):
    torch.manual_seed(0)
    shape = tuple(problem.measurements.shape[1:])
    options = {"gradient": problem.gradient, "hidden": 8, "depth": 1} | options
    posterior = ControlPosterior(problem.prior, shape, **options)
    torch.nn.init.normal_(posterior.network.head.weight, std=0.3)
    return posterior.to(dtype)


def _of_actor(problem, kind, count):
    """[count, T+1, D] float64 states of a kind of exploration, which starts from paths of the present posterior."""
    made = {}
    for name in ("on-policy", kind):
        alone = {name: 1.0}
        config = ActorConfig(batch_size=count, mixture=alone, final_mixture=alone)
        actor = Actor(problem, _posterior(problem), config, seed=1)
        made[name] = actor.act(lambda size, by: made["on-policy"].take(slice(0, size)))
    assert (made[kind].origin != made["on-policy"].origin).all()
    return torch.from_numpy(made[kind].states).double()


def _paths(problem, origin, count):
    """[count, T+1, D] float64 states of a kind of actor."""
    if origin == "exact":
        return problem.exact[0].sample_path(count, torch.Generator().manual_seed(1))
    if origin in KINDS:
        return _of_actor(problem, origin, count)
    inflation = 1.5 if origin == "noise-inflated" else 1.0
    control = None if origin == "prior" else _posterior(problem).control
    generator = torch.Generator().manual_seed(1)
    rows = torch.zeros(count, dtype=torch.long)
    return rollout(problem, control, rows, inflation=inflation, generator=generator).states.double()


def _at_the_exact_posterior(problem, states, path_batch):
    """(log q - log p [B, T] under the exact posterior, batch), float64."""
    rows = torch.zeros(len(states), dtype=torch.long)
    likelihood = problem.log_likelihood(states[:, -1], rows)
    batch = path_batch(problem.prior, states, problem.measurements[rows], log_likelihood=likelihood)
    ratio = path_log_ratio(problem.exact[0], states, batch.denoised, batch.measurement)
    return ratio, batch


# --- residuals ---


def test_rtb_is_log_z_plus_log_ratio_minus_tempered_log_likelihood_by_hand():
    objective = _rtb([10.0, 20.0])
    assert _residual(objective).tolist() == [14.0, 19.0, 8.5, 26.0]
    assert _residual(objective, beta=0.5).tolist() == [12.5, 18.5, 9.5, 25.0]


def test_vargrad_subtracts_the_mean_of_its_own_measurement_by_hand():
    # delta = 4, -1, -1.5, 6; means 1.25 and 2.5.
    assert _residual(VarGrad(SQUARE)).tolist() == [2.75, -3.5, -2.75, 3.5]


@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_trust_pcl_is_rtb_in_units_of_reward(beta):
    objective = TrustPCL(SQUARE, _table([10.0 / beta, 20.0 / beta]))
    relative = _residual(_rtb([10.0, 20.0]), beta=beta)
    assert (beta * _residual(objective, beta=beta)).tolist() == pytest.approx(relative.tolist(), rel=1e-12)
    log_ratio = LOG_RATIO[:, None]
    ours, theirs = (each.loss(log_ratio, _batch(), beta)[0].item() for each in (objective, _rtb([10.0, 20.0])))
    assert beta**2 * ours == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("name", OF_RATIOS)
def test_a_residual_is_one_float64_number_a_trajectory_never_a_matrix(gaussian_problem, path_batch, name):
    states = _paths(gaussian_problem, "prior", 6).float()
    ratio, batch = _at_the_exact_posterior(gaussian_problem, states, path_batch)
    objective = _made(name, gaussian_problem)
    value, residual = objective.loss(ratio.double(), batch, 1.0)
    assert value.shape == () and residual.shape == (6,) and residual.dtype == torch.float64
    with pytest.raises(
        ValueError, match=r"log_ratio must be \[B, T\], log_likelihood and measurement_id \[B\], got .*\(6, 1\)"
    ):
        column = {"log_likelihood": batch.log_likelihood[:, None]}
        objective.loss(ratio.double(), path_batch(gaussian_problem.prior, states, batch.measurement, **column), 1.0)
    with pytest.raises(ValueError, match=r"log_ratio must be \[B, T\]"):
        objective.loss(ratio.sum(1), batch, 1.0)


@pytest.mark.parametrize("origin", ["on-policy", "noise-inflated", "prior", "exact", *KINDS])
@pytest.mark.parametrize("name", BALANCES)
@pytest.mark.parametrize("shape", ["square", "huber"])
def test_the_exact_posterior_has_no_residual_on_paths_of_any_origin(gaussian_problem, path_batch, origin, name, shape):
    states = _paths(gaussian_problem, origin, 200)
    ratio, batch = _at_the_exact_posterior(gaussian_problem, states, path_batch)
    total = ratio.sum(1)
    assert (total - total.mean()).abs().max() > 0.5  # the terms do not vanish one by one
    assert _residual(_made(name, gaussian_problem, loss=shape), total, batch).abs().max() < 1e-9


@pytest.mark.parametrize("origin", ["on-policy", "noise-inflated", "prior", "exact", *KINDS])
def test_no_part_of_a_path_has_a_residual_under_the_exact_posterior_and_its_flow(
    gaussian_problem, path_batch, monkeypatch, origin
):
    ratio, batch = _at_the_exact_posterior(gaussian_problem, _paths(gaussian_problem, origin, 50), path_batch)
    objective = _made("subtb", gaussian_problem, loss="square").double()
    loss, residual = objective.loss(ratio, batch, 1.0)
    assert float(loss.detach()) > 0.1 and residual.abs().max() < 1e-9  # the flow is that of the prior at the start
    flow = gaussian_problem.exact[0].log_partition + ratio.cumsum(1)[:, :-1]
    monkeypatch.setattr(objective, "log_flow", lambda batch, log_partition: flow)
    assert float(objective.loss(ratio, batch, 1.0)[0]) < 1e-18


@pytest.mark.parametrize("origin", ["prior", "exact"])
def test_in_float32_the_exact_posterior_has_a_residual_below_1e_4(gaussian_problem, path_batch, origin):
    states = _paths(gaussian_problem, origin, 200).float()
    ratio, batch = _at_the_exact_posterior(gaussian_problem, states, path_batch)
    assert ratio.dtype == torch.float32
    assert _residual(_made("rtb", gaussian_problem), ratio.sum(1), batch).abs().max() < 1e-4


# --- trajectory balance of a density ---


def _isotropic(problem):
    """`problem` with a prior of the same variance in every direction."""
    mean = problem.prior.denoiser.mean
    denoiser = GaussianDenoiser(mean, 1.3)
    prior = Prior(denoiser, problem.prior.schedule, (len(mean),), denoiser.denoising_variance)
    likelihood = problem.likelihood
    exact = ChainPosterior(prior, likelihood.operator.matrix, likelihood.noise_std, problem.measurements[0])
    return dataclasses.replace(problem, prior=prior, exact=(exact,))


@pytest.mark.parametrize("origin", ["prior", "exact", "on-policy"])
def test_tb_and_rtb_agree_where_the_chain_is_the_reverse_of_the_noising(gaussian_problem, path_batch, origin):
    """An isotropic Gaussian: for it the prior's chain is exact at any number of steps, so e(tau) = 0."""
    problem = _isotropic(gaussian_problem)
    states = _paths(problem, origin, 50)
    ratio, batch = _at_the_exact_posterior(problem, states, path_batch)
    assert float(density_over_chain(problem.prior, batch.states, batch.denoised).abs().max()) < 1e-9
    tb, rtb = (_residual(_made(name, problem), ratio.sum(1), batch) for name in ("tb", "rtb"))
    assert (tb - rtb).abs().max() < 1e-9 and rtb.abs().max() < 1e-9


def test_density_and_noising_over_the_chain_are_those_of_scipy_and_the_difference_of_tb_and_rtb(
    gaussian_problem, path_batch
):
    prior = gaussian_problem.prior
    states = _paths(gaussian_problem, "prior", 5)
    denoiser, schedule = prior.denoiser, prior.schedule
    covariance = denoiser.eigenvectors @ torch.diag(denoiser.eigenvalues) @ denoiser.eigenvectors.T
    step = torch.arange(prior.num_steps)
    denoised = torch.stack([prior.denoised(path[:-1], step) for path in states])
    found = density_over_chain(prior, states, denoised)
    for path, estimate, value in zip(states, denoised, found, strict=True):
        expected = multivariate_normal(denoiser.mean, covariance).logpdf(path[-1])
        expected -= norm(0, float(schedule.sigma[0])).logpdf(path[0]).sum()
        for k in range(prior.num_steps):
            mean = prior.mean(path[k][None], step[k : k + 1], estimate[k][None])[0]
            expected -= norm(mean, float(prior.std[k])).logpdf(path[k + 1]).sum()
            ratio = float(schedule.alpha[k] / schedule.alpha[k + 1])
            std = math.sqrt(float(schedule.sigma[k] ** 2 - ratio**2 * schedule.sigma[k + 1] ** 2))
            expected += norm(ratio * path[k + 1], std).logpdf(path[k]).sum()
        assert float(value) == pytest.approx(float(expected), abs=1e-9)
        assert abs(float(value)) > 1e-3  # ten steps with one variance in all directions are not the reverse
    ratio, batch = _at_the_exact_posterior(gaussian_problem, states, path_batch)
    tb, rtb = (_residual(_made(name, gaussian_problem), ratio.sum(1), batch) for name in ("tb", "rtb"))
    assert (tb - rtb + found).abs().max() < 1e-12


def test_tb_of_a_prior_without_a_density_is_refused(network_prior, gaussian_problem):
    problem = dataclasses.replace(gaussian_problem, prior=network_prior, exact=())
    with pytest.raises(ValueError, match=r"objective tb needs a prior with a density .* NetworkDenoiser does not know"):
        _made("tb", problem, FinetunePosterior(network_prior))


def test_tb_of_a_prior_whose_density_is_zero_somewhere_is_refused():
    problem = make_problem("sbibm-gaussian-linear-uniform", {"num_steps": 4})
    with pytest.raises(ValueError, match="objective tb needs a prior whose density is nowhere zero"):
        _made("tb", problem, ControlPosterior(problem.prior, (10,)))


# --- VarGrad ---


def test_the_gradient_of_vargrad_is_that_of_half_the_variance():
    # A published code adds the mean instead of subtracting it; the gradient then has another sign and size.
    free = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parameter = torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64, requires_grad=True)
    (half_variance,) = torch.autograd.grad(0.5 * (features @ parameter - free).var(correction=0), parameter)
    batch = _batch(torch.zeros(50, dtype=torch.long), free)
    loss, _ = VarGrad(SQUARE).loss((features @ parameter)[:, None], batch, 1.0)
    (gradient,) = torch.autograd.grad(loss, parameter)
    assert gradient.numpy() == pytest.approx(half_variance.numpy(), rel=1e-12)


def test_log_z_cancels_in_vargrad_measurement_by_measurement():
    shift = torch.tensor([5.0, -70.0], dtype=torch.float64)
    plain = _residual(VarGrad(SQUARE))
    shifted = _residual(VarGrad(SQUARE), batch=_batch(log_likelihood=LOG_LIKELIHOOD - shift[GROUP]))
    assert shifted.numpy() == pytest.approx(plain.numpy(), abs=1e-12)


@pytest.mark.parametrize("shape", [SQUARE, Loss("huber", 1.0), Loss("clipped", 1.0), Loss("shifted-cosh", 5.0)])
def test_a_measurement_that_is_not_in_the_batch_or_stands_alone_is_no_trouble(shape):
    residual = _residual(VarGrad(shape), batch=_batch(torch.tensor([2, 2, 0, 2])))
    assert residual[2] == 0.0 and torch.isfinite(residual).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [0.3, 2.0, 30.0])
def test_the_centre_of_each_measurement_minimises_its_huber_loss(seed, scale):
    random, loss = np.random.default_rng(seed), Loss("huber", scale)
    delta = torch.from_numpy(random.standard_t(2, size=60) * 3 + random.normal(0, 20))
    group = torch.from_numpy(random.integers(0, 2, 60))
    centred = _residual(VarGrad(loss), delta, _batch(group, torch.zeros(60)))

    for measurement in (0, 1):
        own = delta[group == measurement]
        best = minimize_scalar(lambda c, own=own: float(loss(own - c).sum()), tol=1e-12)
        centre = float((own - centred[group == measurement])[0])
        assert float(loss(own - centre).sum()) == pytest.approx(best.fun, rel=1e-6)
        assert centre == pytest.approx(best.x, abs=0.02 * float(own.std()))


def test_one_outlier_of_a_million_nats_moves_the_huber_centre_by_less_than_a_nat_but_the_mean_by_thousands():
    delta = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    delta[0] = 1e6
    batch = _batch(torch.zeros(64, dtype=torch.long), torch.zeros(64))
    robust = delta - _residual(VarGrad(Loss("huber", 30.0)), delta, batch)
    mean = delta - _residual(VarGrad(SQUARE), delta, batch)
    assert abs(float(robust[0]) - float(delta[1:].mean())) < 0.6  # huber 30 pulls by 30 / 63 = 0.48
    assert float(mean[0]) == pytest.approx(1e6 / 64, rel=0.01)


def test_huber_beyond_every_residual_is_the_mean():
    plain = _residual(VarGrad(SQUARE))
    assert _residual(VarGrad(Loss("huber", 1e3))).numpy() == pytest.approx(plain.numpy())


def test_vargrad_is_rtb_at_the_log_z_that_its_batch_prefers():
    residual = _residual(VarGrad(SQUARE), beta=0.5)
    best = [-float((LOG_RATIO - 0.5 * LOG_LIKELIHOOD)[group == GROUP].mean()) for group in (0, 1)]
    assert residual.numpy() == pytest.approx(_residual(_rtb(best), beta=0.5).numpy(), abs=1e-12)


def test_with_nearly_half_of_the_batch_far_off_the_huber_centre_still_minimises_the_loss():
    delta = torch.cat([torch.linspace(-3, 3, 33, dtype=torch.float64), torch.full((31,), 1e6, dtype=torch.float64)])
    loss = Loss("huber", 30.0)
    centre = delta - _residual(VarGrad(loss), delta, _batch(torch.zeros(64, dtype=torch.long), torch.zeros(64)))
    best = minimize_scalar(lambda c: float(loss(delta - c).sum()), bounds=(-10, 1000), method="bounded")
    assert float(centre[0]) == pytest.approx(best.x, abs=0.01)


# --- sub-trajectories ---


def test_subtb_is_the_weighted_mean_over_all_parts_by_two_loops(gaussian_problem, path_batch):
    states = _paths(gaussian_problem, "prior", 3)
    ratio, batch = _at_the_exact_posterior(gaussian_problem, states, path_batch)
    objective = SubTrajectoryBalance(Loss("huber", 2.0), _table([-3.0]), gaussian_problem.prior, (2,), decay=0.7)
    objective.double()
    torch.nn.init.normal_(objective.flow.head.weight)
    log_flow = objective.log_flow(batch, objective.log_partition(batch)[:, None])
    assert log_flow.shape == (3, 9) and float(log_flow.detach().std()) > 0.1
    value, residual = objective.loss(ratio, batch, 0.8)
    expected = 0.0
    for row in range(3):
        flow = [-3.0, *log_flow[row].tolist(), 0.8 * float(batch.log_likelihood[row])]
        total = weights = 0.0
        for i in range(10):
            for j in range(i + 1, 11):
                delta = flow[i] + float(ratio[row, i:j].sum()) - flow[j]
                total += 0.7 ** (j - i) * float(objective.shape(torch.tensor(delta, dtype=torch.float64)))
                weights += 0.7 ** (j - i)
        expected += total / weights / 3
        whole = -3.0 + float(ratio[row].sum()) - 0.8 * float(batch.log_likelihood[row])
        assert residual[row].item() == pytest.approx(whole, rel=1e-9)
    assert value.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("decay", [1e6, 1e40])
def test_subtb_with_a_large_decay_is_rtb(gaussian_problem, path_batch, decay):
    states = _paths(gaussian_problem, "prior", 8)
    ratio, batch = _at_the_exact_posterior(gaussian_problem, states, path_batch)
    subtb = SubTrajectoryBalance(SQUARE, _table([0.0]), gaussian_problem.prior, (2,), decay=decay).double()
    ours, theirs = (objective.loss(ratio, batch, 1.0)[0].item() for objective in (subtb, _rtb([0.0])))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_at_the_exact_posterior_flows_exist_that_balance_every_part(gaussian_problem, path_batch):
    """The flow that balances s_0 ... s_k is a function of s_k: the same whatever path led there."""
    problem = gaussian_problem
    states = _paths(problem, "prior", 40)
    for k in (1, 4, 9):
        spliced = torch.cat([problem.prior.noising.sample_path(states[:, k], last=k)[:, :-1], states[:, k:]], 1)
        flows = []
        for path in (states, spliced):
            ratio, _ = _at_the_exact_posterior(problem, path, path_batch)
            flows.append(problem.exact[0].log_partition + ratio[:, :k].sum(1))
        assert (flows[0] - flows[1]).abs().max() < 1e-9


# --- policy gradients ---


def test_reinforce_on_its_own_paths_has_the_gradient_of_the_kl_divergence_by_quadrature():
    """One transition N(u, 1) from the origin, prior N(0, 1), log p(y | x) = sin(2 x): an integral over x."""
    nodes, weights = torch.from_numpy(np.stack(np.polynomial.hermite_e.hermegauss(80)))
    weights = weights / weights.sum()
    shift = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def reward(x):
        return (2 * x).sin()

    x = nodes + shift
    exact = (weights * (0.5 * shift**2 - 0.8 * reward(x))).sum()  # KL(q || p) less the expected reward
    (expected,) = torch.autograd.grad(exact, shift)

    generator, estimates = torch.Generator().manual_seed(0), []
    for _ in range(300):
        x = shift.detach() + torch.randn(64, generator=generator, dtype=torch.float64)
        log_ratio = x * shift - 0.5 * shift**2
        batch = _batch(torch.zeros(64, dtype=torch.long), reward(x), log_ratio.detach())
        loss, _ = ReinforceKL(cap=10.0).loss(log_ratio[:, None], batch, 0.8)
        estimates.append(float(torch.autograd.grad(loss, shift)[0]))
    error = np.std(estimates) / math.sqrt(len(estimates))
    assert np.mean(estimates) == pytest.approx(float(expected), abs=4 * error) and abs(float(expected)) > 10 * error

    # Paths of another policy, N(0, 1.5^2), with the true weights: the same gradient; with none, another.
    shifted, unweighted = [], []
    for _ in range(2000):
        x = 1.5 * torch.randn(64, generator=generator, dtype=torch.float64)
        log_ratio = x * shift - 0.5 * shift**2
        behaviour = -0.5 * (x / 1.5) ** 2 - math.log(1.5) + 0.5 * x**2
        batch = _batch(torch.zeros(64, dtype=torch.long), reward(x), behaviour)
        for cap, found in ((1e9, shifted), (1e-9, unweighted)):
            loss, _ = ReinforceKL(cap=cap).loss(log_ratio[:, None], batch, 0.8)
            (gradient,) = torch.autograd.grad(loss, shift, retain_graph=True)
            found.append(float(gradient) / (1 if cap > 1 else cap))
    error = np.std(shifted) / math.sqrt(len(shifted))
    assert np.mean(shifted) == pytest.approx(float(expected), abs=4 * error)
    assert abs(np.mean(unweighted) - float(expected)) > 10 * error


def test_reinforce_on_its_own_paths_is_vargrad_up_to_the_baseline():
    log_ratio = LOG_RATIO.clone()[:, None].requires_grad_(True)
    batch = _batch(torch.zeros(4, dtype=torch.long), behaviour=LOG_RATIO)
    gradients = [
        torch.autograd.grad(objective.loss(log_ratio, batch, 1.0)[0], log_ratio)[0]
        for objective in (ReinforceKL(10.0), VarGrad(SQUARE))
    ]
    assert (gradients[0] * 3 / 4).flatten().tolist() == pytest.approx(gradients[1].flatten().tolist(), rel=1e-12)


def test_ppo_at_the_old_policy_is_the_policy_gradient_and_stops_where_the_ratio_is_out_of_range():
    batch = _batch(torch.zeros(4, dtype=torch.long), behaviour=LOG_RATIO)
    objective = ProximalPolicyKL(clip_range=0.2)
    log_ratio = LOG_RATIO.clone()[:, None].requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective.loss(log_ratio, batch, 1.0)[0], log_ratio)
    (expected,) = torch.autograd.grad(VarGrad(SQUARE).loss(log_ratio, batch, 1.0)[0], log_ratio)
    assert gradient.flatten().tolist() == pytest.approx(expected.flatten().tolist(), rel=1e-12)
    # delta = 4, -1, -1.5, 6 about 1.875: the first and last are too likely already, the others not enough.
    for step, stopped in ((0.3, [False, True, True, False]), (-0.3, [True, False, False, True])):
        moved = (LOG_RATIO + step)[:, None].requires_grad_(True)
        (gradient,) = torch.autograd.grad(objective.loss(moved, batch, 1.0)[0], moved)
        assert (gradient.flatten() == 0).tolist() == stopped
        inside = [row for row in range(4) if not stopped[row]]
        assert gradient.flatten()[inside].tolist() == pytest.approx(
            (math.exp(step) * expected.flatten()[inside]).tolist(), rel=1e-12
        )


def test_ppo_weighs_by_the_advantage_of_the_behaviour_not_of_the_policy_by_hand():
    behaviour, log_ratio = torch.tensor([0.5, -0.3, 0.1, 0.7]), torch.tensor([0.6, -0.2, 0.0, 0.65])
    batch = _batch(torch.zeros(4, dtype=torch.long), behaviour=behaviour)
    delta = behaviour.double() - 0.8 * batch.log_likelihood.double()
    advantage, ratio = delta.mean() - delta, (log_ratio - behaviour).double().exp()
    expected = -torch.minimum(advantage * ratio, advantage * ratio.clamp(0.8, 1.2)).mean()
    loss, _ = ProximalPolicyKL(clip_range=0.2).loss(log_ratio[:, None], batch, 0.8)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_ppo_leaves_paths_out_that_came_from_where_nothing_is_possible():
    behaviour = torch.tensor([0.5, math.inf, 0.1, 0.7])
    known, rows = _batch(torch.zeros(4, dtype=torch.long), behaviour=behaviour), torch.tensor([0, 2, 3])
    log_ratio = torch.tensor([0.6, 3.0, 0.0, 0.65])[:, None]
    objective = ProximalPolicyKL(clip_range=0.2)
    loss, residual = objective.loss(log_ratio, known, 1.0)
    expected, _ = objective.loss(log_ratio[rows], known.take(rows), 1.0)
    assert float(loss) == pytest.approx(0.75 * float(expected), rel=1e-9)
    assert bool(torch.isfinite(residual).all())


def test_maximum_likelihood_is_minus_the_mean_log_ratio_of_all_paths_those_of_simulated_measurements_too():
    batch = _batch(torch.tensor([0, -1, 0, -1]))
    log_ratio = LOG_RATIO.clone()[:, None].requires_grad_(True)
    value, residual = MaximumLikelihood().loss(log_ratio, batch, 1.0)
    (gradient,) = torch.autograd.grad(value, log_ratio)
    assert value.item() == pytest.approx(-LOG_RATIO.mean().item()) and gradient.flatten().tolist() == [-0.25] * 4
    assert residual.tolist() == [2.75, -3.5, -2.75, 3.5]  # about the mean of each sort: 1.25, and 2.5


# --- simulated measurements ---


@pytest.mark.parametrize("name", [name for name in OF_RATIOS if name not in ("mle", "tb", "subtb")])
@pytest.mark.parametrize("shape", ["square", "huber"])
def test_trajectories_alone_with_a_simulated_measurement_leave_loss_and_gradient_of_the_others_alone(name, shape):
    problem = make_problem("gaussian-linear", {"dim": 2, "measurement_dim": 1, "num_steps": 5})
    problem = dataclasses.replace(problem, measurements=torch.zeros(2, 1), exact=())
    group, values = torch.tensor([0, -1, 1, 0, -2]), torch.tensor([1.0, -2.0, 0.5, 4.0, 7.0], dtype=torch.float64)
    likelihood, results = torch.tensor([-3.0, -1.0, 2.0, -2.0, 1.0]), []
    for rows in (torch.arange(5), torch.tensor([0, 2, 3])):
        log_ratio = values[rows][:, None].clone().requires_grad_(True)
        batch = _batch(group[rows], likelihood[rows], values[rows])
        value, residual = _made(name, problem, loss=shape, loss_scale=2.0).loss(log_ratio, batch, 0.5)
        value.backward()
        results.append((value.item(), residual.detach(), log_ratio.grad))
    (value, residual, gradient), (alone, expected, reference) = results
    assert value == alone
    assert torch.equal(residual[[0, 2, 3]], expected) and torch.equal(gradient[[0, 2, 3]], reference)
    assert gradient[[1, 4]].flatten().tolist() == [0.0, 0.0] and reference.abs().max() > 0
    # Minus the log-weights, -2 + 1 = -1 and 7 - 1 = 6, about their mean, at any reward temperature.
    assert residual[[1, 4]].tolist() == [-3.5, 3.5]


def test_a_batch_of_nothing_else_has_no_loss_and_no_gradient():
    log_ratio = LOG_RATIO.clone()[:, None].requires_grad_(True)
    value, residual = VarGrad(SQUARE).loss(log_ratio, _batch(torch.arange(-4, 0)), 1.0)
    value.backward()
    assert value.item() == 0.0 and not log_ratio.grad.any()
    expected = LOG_RATIO - LOG_LIKELIHOOD
    assert residual.tolist() == pytest.approx((expected - expected.mean()).tolist())


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_several_trajectories_of_one_simulated_measurement_are_centred_like_those_of_the_problem_s(scale):
    objective, ratio = VarGrad(Loss("huber", scale)), LOG_RATIO[:, None]
    value, residual = objective.loss(ratio, _batch(torch.tensor([-9, -5, -9, -5])), 0.7)
    expected, reference = objective.loss(ratio, _batch(torch.tensor([1, 0, 1, 0])), 0.7)
    assert value == expected and torch.equal(residual, reference)


def test_log_z_as_a_network_of_y_follows_it_for_simulated_measurements_too():
    """log Z(y) = -|y|^2 / 2 by least squares on rtb's residual: log q - log p = 0, log p(y | x) = -|y|^2 / 2."""
    torch.manual_seed(0)
    log_partition = LogPartition("network", 1, (2,))
    objective = RelativeTrajectoryBalance(SQUARE, log_partition)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        measurement = torch.randn(64, 2, generator=generator)
        batch = _batch(-1 - torch.arange(64), -0.5 * measurement.square().sum(1))
        batch = dataclasses.replace(batch, measurement=measurement)
        value, residual = objective.loss(torch.zeros(64, 1, dtype=torch.float64), batch, 1.0)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert bool(objective.known(batch).all())
    assert float(residual.detach().abs().mean()) < 0.1 < float(batch.log_likelihood.std())


@pytest.mark.parametrize("name", ["rtb", "tb", "subtb", "trust_pcl"])
def test_every_objective_with_log_z_takes_the_network_zero_at_the_start(gaussian_problem, path_batch, name):
    states = _paths(gaussian_problem, "prior", 3)
    ratio, batch = _at_the_exact_posterior(gaussian_problem, states, path_batch)
    table, network = (
        OBJECTIVES[name](LearnerConfig(objective=name, log_partition=form), gaussian_problem, None).double()
        for form in ("table", "network")
    )
    network.load_state_dict({**network.state_dict(), **{k: v for k, v in table.state_dict().items() if "flow" in k}})
    value, residual = network.loss(ratio, batch, 1.0)
    expected, reference = table.loss(ratio, batch, 1.0)
    assert value.item() == expected.item() and torch.equal(residual, reference)
    simulated = dataclasses.replace(batch, measurement_id=-1 - torch.arange(3))
    assert network.known(simulated).tolist() == [True] * 3 and table.known(simulated).tolist() == [False] * 3
    assert torch.equal(network.loss(ratio, simulated, 1.0)[1], residual)


# --- gradients through the chain ---


@pytest.fixture
def pathwise(gaussian_problem):
    """(problem, posterior in float64 without likelihood gradients, path_kl)."""
    posterior = _posterior(gaussian_problem, torch.float64, gradient=None)
    return gaussian_problem, posterior, _made("path_kl", gaussian_problem, posterior)


def test_the_pathwise_gradient_is_that_of_finite_differences(pathwise, path_batch):
    problem, posterior, objective = pathwise
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(16, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(16, 10, 4, generator=generator, dtype=torch.float64)
    measurement = problem.measurements[:1].double().expand(16, -1)

    def cost():
        return objective.cost(posterior, start, noise, measurement, 0.8).mean()

    gradients = torch.autograd.grad(cost(), list(posterior.network.parameters()))
    for parameter, gradient in zip(posterior.network.parameters(), gradients, strict=True):
        flat, step = parameter.data.view(-1), 1e-6
        place = int(gradient.abs().argmax())
        values = []
        for sign in (1, -1):
            flat[place] += sign * step
            values.append(cost().item())
            flat[place] -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        assert float(gradient.view(-1)[place]) == pytest.approx(slope, rel=1e-5)


def test_the_pathwise_cost_has_the_mean_of_minus_the_log_weight(pathwise):
    problem, posterior, objective = pathwise
    count, generator = 20_000, torch.Generator().manual_seed(0)
    made = rollout(problem, posterior.float().control, torch.zeros(count, dtype=torch.long), generator=generator)
    start, noise = torch.randn(count, 4, generator=generator), torch.randn(count, 10, 4, generator=generator)
    start = start * float(problem.prior.sigma[0])
    with torch.no_grad():
        cost = objective.cost(posterior, start, noise, problem.measurements[:1].expand(count, -1), 1.0)
    error = math.hypot(float(cost.std()), float(made.log_weight.std())) / math.sqrt(count)
    assert float(cost.mean()) == pytest.approx(-float(made.log_weight.mean()), abs=4 * error)


def test_path_kl_refuses_what_it_cannot_differentiate(gaussian_problem):
    with pytest.raises(ValueError, match=r"set posterior\.likelihood_gradient to none"):
        _made("path_kl", gaussian_problem)
    assert _made("path_kl", gaussian_problem, _posterior(gaussian_problem, gradient=None))


def test_the_lean_adjoint_is_minus_the_gradient_through_the_prior_with_all_shifts_held_fixed(gaussian_problem):
    problem, prior = gaussian_problem, gaussian_problem.prior
    states, measurement = _paths(problem, "on-policy", 5), problem.measurements[:1].double().expand(5, -1)
    adjoint = lean_adjoint(problem, states, measurement)
    assert adjoint.shape == (5, 10, 4)
    for k in range(1, 11):
        leaf = states[:, k].clone().requires_grad_(True)
        state = leaf
        for index in range(k, 10):
            step = torch.full((5,), index)
            reached = prior.mean(state, step, prior.denoiser(state, prior.alpha[step], prior.sigma[step]))
            state = reached + (states[:, index + 1] - reached).detach()
        (gradient,) = torch.autograd.grad(problem.log_likelihood(state, torch.zeros(5).long()).sum(), leaf)
        assert (adjoint[:, k - 1] + gradient).abs().max() <= 1e-9 * gradient.abs().max()


@pytest.mark.parametrize("max_rows", [7, 1000])
def test_adjoint_matching_is_least_squares_on_the_adjoint_by_a_loop(gaussian_problem, path_batch, max_rows):
    problem = gaussian_problem
    posterior, states = _posterior(problem, torch.float64), _paths(problem, "on-policy", 6)
    likelihood = problem.log_likelihood(states[:, -1], torch.zeros(6).long())
    batch = path_batch(problem.prior, states, problem.measurements[:1].expand(6, -1), log_likelihood=likelihood)
    adjoint = 0.7 * lean_adjoint(problem, states, batch.measurement)
    expected = 0.0
    for k in range(10):
        control = posterior.control(states[:, k], torch.full((6,), k), batch.denoised[:, k], batch.measurement)
        expected = expected + 0.5 * (control + problem.prior.std[k] * adjoint[:, k]).square().sum() / 6
    gradients = torch.autograd.grad(expected, list(posterior.parameters()))
    posterior.zero_grad()
    plan = GradientPlan(limits=RowLimits(1000, max_rows))
    output = _made("adjoint_matching", problem).accumulate(posterior, batch, 0.7, plan)
    assert float(output.loss) == pytest.approx(expected.item(), rel=1e-10)
    for parameter, gradient in zip(posterior.parameters(), gradients, strict=True):
        assert (parameter.grad - gradient).norm() <= 1e-9 * gradient.norm()
    ratio = path_log_ratio(posterior, states, batch.denoised, batch.measurement).detach().sum(1)
    centred = _residual(VarGrad(SQUARE), ratio, batch, 0.7)
    assert output.residual.tolist() == pytest.approx(centred.tolist(), rel=1e-9, abs=1e-9)
    likelihood[2] = -math.inf
    impossible = dataclasses.replace(batch, log_likelihood=likelihood)
    assert bool(
        torch.isfinite(_made("adjoint_matching", problem).accumulate(posterior, impossible, 0.7, plan).residual).all()
    )


def test_adjoint_matching_refuses_a_start_that_tells_of_x(gaussian_problem):
    assert correlation_of_start(gaussian_problem.prior) < 1e-6
    problem = make_problem("gaussian-linear", {"dim": 2, "measurement_dim": 1, "schedule": "vp-linear"})
    correlation = correlation_of_start(problem.prior)
    if correlation <= 0.05:
        problem.prior.alpha[0] = 0.5
    with pytest.raises(ValueError, match=r"needs a prior whose s_0 tells nothing of x \(memoryless\), but their corr"):
        _made("adjoint_matching", problem)
