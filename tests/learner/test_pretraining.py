"""Pretraining: its gradient against a loop by hand, what it leaves alone, and that it learns a posterior from draws."""

import dataclasses

import numpy as np
import pytest
import torch

from actors import Actor, ActorConfig, rollout
from diffusion.posterior import ControlPosterior
from diffusion.prior import Prior
from envs import make_problem
from evaluation.bounds import elbo
from learner import Learner, LearnerConfig
from learner.guard import SNAPSHOT_INTERVAL, Guard, GuardConfig, Verdict
from learner.pretraining import PretrainingConfig, accumulate_denoising_gradient, accumulate_simulated_gradient
from tests.opaque import Opaque

COUNT, STEPS = 6, 10
THREE, FOUR, FIVE = (PretrainingConfig(steps_per_path=count) for count in (3, 4, 5))


@pytest.fixture
def case(gaussian_problem, path_batch):
    """A posterior in float64 and a batch of the prior's paths."""
    torch.manual_seed(0)
    posterior = ControlPosterior(gaussian_problem.prior, (2,), gaussian_problem.gradient, hidden=8, depth=1)
    torch.nn.init.normal_(posterior.network.head.weight, std=0.3)
    posterior.double()
    rows = torch.zeros(COUNT, dtype=torch.long)
    states = rollout(gaussian_problem, None, rows, generator=torch.Generator().manual_seed(0)).states.double()
    return posterior, path_batch(gaussian_problem.prior, states, gaussian_problem.measurements[rows])


def gradient(posterior, batch, steps_per_path, seed):
    """(flat gradient, loss) of an update's draw of steps."""
    posterior.zero_grad()
    loss = accumulate_denoising_gradient(posterior, batch, PretrainingConfig(steps_per_path=steps_per_path), seed)
    return torch.cat([p.grad.flatten() for p in posterior.parameters() if p.grad is not None]), float(loss)


def by_hand(posterior, batch):
    """Gradient of the whole denoising loss, sum_k |u - z~|^2 / 2 a path, by a loop over the steps."""
    prior, distance, constant = posterior.prior, 0.0, 0.0
    for k in range(STEPS):
        index = torch.full((COUNT,), k)
        control = posterior.control(batch.states[:, k], index, batch.denoised[:, k], batch.measurement)
        target = prior.denoised_coefficient[k] / prior.std[k] * (batch.states[:, -1] - batch.denoised[:, k])
        distance = distance + 0.5 * (control - target).square().sum() / COUNT
        constant = constant + 0.5 * target.square().sum() / COUNT
    posterior.zero_grad()
    distance.backward()
    flat = torch.cat([p.grad.flatten() for p in posterior.parameters() if p.grad is not None])
    return flat, float((distance - constant).detach())


@pytest.mark.parametrize("steps_per_path", [STEPS, STEPS + 1, 1000])
def test_with_all_steps_it_is_the_denoising_loss_by_hand_to_1e_12(case, steps_per_path):
    expected, value = by_hand(*case)
    found, loss = gradient(*case, steps_per_path, seed=3)
    assert (found - expected).norm() <= 1e-12 * expected.norm()
    assert loss == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("steps_per_path", [1, 3, 4, 9])
def test_a_few_steps_of_each_path_have_the_same_gradient_on_average(case, steps_per_path):
    expected, value = by_hand(*case)
    draws = [gradient(*case, steps_per_path, seed) for seed in range(1500)]
    gradients = torch.stack([flat for flat, _ in draws])
    error = (gradients.mean(0) - expected) / (gradients.std(0) / 1500**0.5).clamp_min(1e-12)
    assert float(error.square().mean().sqrt()) < 1.5 and float(error.abs().max()) < 5
    losses = np.array([loss for _, loss in draws])
    assert losses.mean() == pytest.approx(value, abs=4 * losses.std() / 1500**0.5)


def test_steps_by_uncertainty_weigh_the_same_losses_by_how_often_they_are_drawn(case):
    posterior, batch = case
    prior = posterior.prior
    config = PretrainingConfig(steps_per_path=4, steps_by="uncertainty")
    variance = prior.uncertainty.square()
    share = 0.9 * variance / variance.sum() + 0.1 / STEPS
    expected = 0.0
    for k in range(STEPS):
        index = torch.full((COUNT,), k)
        control = posterior.control(batch.states[:, k], index, batch.denoised[:, k], batch.measurement)
        target = prior.denoised_coefficient[k] / prior.std[k] * (batch.states[:, -1] - batch.denoised[:, k])
        distance = 0.5 * ((control - target).square() - target.square()).sum() / COUNT
        expected += float(STEPS * share[k] * distance.detach())
    losses = np.array([float(accumulate_denoising_gradient(posterior, batch, config, seed)) for seed in range(1500)])
    assert losses.mean() == pytest.approx(expected, abs=4 * losses.std() / 1500**0.5)
    uniform = np.array([float(accumulate_denoising_gradient(posterior, batch, FOUR, seed)) for seed in range(300)])
    assert abs(uniform.mean() - expected) > 20 * losses.std() / 1500**0.5  # the two are told apart
    generator = torch.Generator().manual_seed(0)
    steps = config.draw_steps(posterior, 50_000, generator)
    found = torch.bincount(steps.flatten(), minlength=STEPS) / 50_000
    assert found.double() == pytest.approx(4 * share, abs=0.01)


@pytest.mark.parametrize("max_rows", [1, 7, 24])
def test_a_few_transitions_at_a_time_make_the_same_gradient(case, max_rows):
    posterior, batch = case
    expected, value = gradient(*case, 4, 3)
    posterior.zero_grad()
    loss = accumulate_denoising_gradient(posterior, batch, FOUR, 3, max_rows=max_rows)
    found = torch.cat([p.grad.flatten() for p in posterior.parameters() if p.grad is not None])
    assert (found - expected).norm() <= 1e-12 * expected.norm() and float(loss) == pytest.approx(value, rel=1e-12)


def test_no_path_has_a_step_twice_and_the_seed_alone_chooses(case, monkeypatch):
    posterior, batch = case
    seen = []
    control = posterior.control

    def spy(state, step, *rest):
        seen.append(step)
        return control(state, step, *rest)

    monkeypatch.setattr(posterior, "control", spy)
    for seed in (1, 1, 2):
        accumulate_denoising_gradient(posterior, batch, FOUR, seed)
    steps = [step.reshape(COUNT, 4) for step in seen]
    assert all(len(set(path.tolist())) == 4 for step in steps for path in step)
    assert torch.equal(steps[0], steps[1]) and not torch.equal(steps[0], steps[2])


def test_the_learner_pretrains_until_its_share_of_the_run_is_over(gaussian_problem):
    posteriors = [ControlPosterior(gaussian_problem.prior, (2,), gaussian_problem.gradient, hidden=8) for _ in "12"]
    settings = LearnerConfig(batch_size=4, pretraining=PretrainingConfig(until=0.5, batch_size=8))
    learner = Learner(gaussian_problem, posteriors[0], settings)
    batch = Actor(gaussian_problem, posteriors[1], ActorConfig(batch_size=8), seed=0).act()
    assert [learner.config.draw_size(progress) for progress in (0.0, 0.49, 0.5, 1.0)] == [8, 8, 4, 4]
    first, last = learner.update(batch, 0.49), learner.update(batch, 0.5)
    assert first.residual is None and last.residual.shape == (8,)
    assert first.verdict is last.verdict is Verdict.TAKE


def test_the_guard_takes_snapshots_while_pretraining_but_learns_no_scale():
    guard = Guard(GuardConfig(patience=2))
    for _ in range(SNAPSHOT_INTERVAL):
        assert not guard.wants_snapshot
        assert guard.examine(-3.0, 1.0, None) is Verdict.TAKE
    assert guard.wants_snapshot and guard.normal_scale == np.inf
    assert guard.examine(np.nan, 1.0, None) is Verdict.SET_ASIDE
    assert guard.examine(0.0, np.inf, None) is Verdict.ROLL_BACK
    assert guard.examine(1.0, 1.0, np.full(4, 1e6)) is Verdict.TAKE  # the first residuals set the scale


def test_maximum_likelihood_on_exact_paths_learns_the_posterior():
    """Exact samples, noised: the ELBO is within a twentieth of a nat of log Z after 150 updates of 4 steps a path."""
    problem = make_problem("gaussian-linear", {"dim": 2, "measurement_dim": 1, "num_steps": 20})
    torch.manual_seed(0)
    posterior = ControlPosterior(problem.prior, (1,), problem.gradient, hidden=32, depth=2)
    settings = LearnerConfig(
        learning_rate=3e-3, warmup_updates=20, pretraining=PretrainingConfig(until=1.0, batch_size=256)
    )
    learner = Learner(problem, posterior, settings)
    generator = torch.Generator().manual_seed(1)
    made = Actor(problem, posterior, ActorConfig(batch_size=256), seed=0).act()
    posterior.requires_grad_(True)
    for update in range(150):
        states = problem.prior.noising.sample_path(problem.exact[0].sample(256, generator).float(), generator)
        fresh = dataclasses.replace(made, states=states.numpy(), denoised=None, guidance=None)
        learner.update(fresh, update / 150)
    averaged = torch.from_numpy(learner.weights(averaged=True))
    torch.nn.utils.vector_to_parameters(averaged, posterior.parameters())
    rows = torch.zeros(4000, dtype=torch.long)
    gaps = [
        problem.exact[0].log_partition - elbo(rollout(problem, control, rows, generator=generator).log_weight)
        for control in (None, posterior.control)
    ]
    assert gaps[0] > 0.4 and 0 < gaps[1] < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": 1.1}, r"learner.pretraining.until must be within \[0, 1\], got 1.1"),
        ({"until": float("nan")}, r"until must be within \[0, 1\], got nan"),
        ({"batch_size": 0}, "batch_size and steps_per_path must be at least 1, got 0 and 4"),
        ({"steps_per_path": 0}, "batch_size and steps_per_path must be at least 1, got 512 and 0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PretrainingConfig(**options)


# --- fresh measurements ---


class _Recorded:
    """What the control was asked at."""

    def __init__(self, posterior):
        self.posterior, self.asked = posterior, []
        self._control = posterior.control
        posterior.control = self

    def __call__(self, *arguments):
        self.asked.append([value.detach().clone() for value in arguments])
        return self._control(*arguments)


def test_fresh_measurements_are_of_the_stored_x_and_so_are_the_states_at_every_step(gaussian_problem):
    count, problem = 4_000, gaussian_problem
    prior, likelihood = problem.prior, problem.likelihood
    torch.manual_seed(0)
    posterior = ControlPosterior(prior, (2,), problem.gradient, hidden=8, depth=1)
    recorded = _Recorded(posterior)
    samples = prior.denoiser.sample(count, torch.Generator().manual_seed(0)).float()
    accumulate_simulated_gradient(problem, posterior, samples, FIVE, torch.Generator().manual_seed(4))
    assert len(recorded.asked) == 2  # chunks of rows
    state, step, denoised, measurement, guidance = map(torch.cat, zip(*recorded.asked, strict=True))
    row = torch.arange(count).repeat_interleave(5)
    noise = (measurement - likelihood.operator(samples[row])) / likelihood.noise_std
    assert torch.equal(noise[::5], noise[4::5])  # one measurement a path
    assert noise[::5].std().item() == pytest.approx(1.0, abs=0.05) and abs(float(noise.mean())) < 0.05
    for index in range(STEPS):
        at = step == index
        assert int(at.sum()) == pytest.approx(count / 2, rel=0.1)
        eps = (state[at] - prior.alpha[index].float() * samples[row][at]) / prior.sigma[index].float()
        assert eps.std().item() == pytest.approx(1.0, abs=0.05) and abs(float(eps.mean())) < 0.05
    # A random stream begun again would bring the same numbers twice: as it is, few of these agree to 1e-6.
    eps = (state - prior.alpha[step].float()[:, None] * samples[row]) / prior.sigma[step].float()[:, None]
    measured, spread = noise[:2500:5].flatten(), eps[:500].flatten()
    assert int(((measured[:, None] - spread).abs() < 1e-6).any(1).sum()) < 30
    expected, pulled = prior.pull_back(state, step, lambda value: problem.gradient(value, measurement))
    assert torch.equal(denoised, expected) and torch.equal(guidance, pulled)


def test_their_gradient_is_that_of_the_denoising_loss_at_what_was_drawn(gaussian_problem):
    problem, prior = gaussian_problem, gaussian_problem.prior
    torch.manual_seed(0)
    posterior = ControlPosterior(prior, (2,), problem.gradient, hidden=8, depth=1)
    torch.nn.init.normal_(posterior.network.head.weight, std=0.3)
    posterior.double()
    recorded = _Recorded(posterior)
    samples = prior.denoiser.sample(COUNT, torch.Generator().manual_seed(0))
    posterior.zero_grad()
    value = accumulate_simulated_gradient(problem, posterior, samples, THREE, torch.Generator().manual_seed(4))
    found = torch.cat([p.grad.flatten() for p in posterior.parameters()])
    state, step, denoised, *rest = recorded.asked[0]
    scale = (prior.denoised_coefficient / prior.std)[step][:, None]
    target = scale * (samples.repeat_interleave(3, 0) - denoised)
    control = recorded._control(state, step, denoised, *rest)
    loss = (STEPS / 3) * 0.5 * ((control - target).square() - target.square()).sum() / COUNT
    posterior.zero_grad()
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in posterior.parameters()])
    assert (found - expected).norm() <= 1e-10 * expected.norm() and float(value) == pytest.approx(
        float(loss.detach()), rel=1e-10
    )
    posterior.zero_grad()
    accumulate_simulated_gradient(problem, posterior, samples, THREE, torch.Generator().manual_seed(4), max_rows=7)
    in_parts = torch.cat([p.grad.flatten() for p in posterior.parameters()])
    assert (in_parts - expected).norm() <= 1e-10 * expected.norm()


def _opaque(problem):
    prior = Prior(Opaque(problem.prior.denoiser), problem.prior.schedule, (4,), problem.prior.uncertainty.square())
    return dataclasses.replace(problem, prior=prior, exact=())


@pytest.mark.parametrize("sampled", [True, False])
def test_x_of_the_prior_teach_the_posterior_of_a_measurement_that_none_of_them_made(gaussian_problem, sampled):
    torch.manual_seed(0)
    problem = gaussian_problem if sampled else _opaque(gaussian_problem)
    posteriors = [ControlPosterior(problem.prior, (2,), problem.gradient, hidden=32) for _ in "12"]
    config = PretrainingConfig(until=1.0, steps_per_path=5, fresh_measurements=True)
    learner = Learner(problem, posteriors[0], LearnerConfig(pretraining=config, learning_rate=3e-3))
    actor = Actor(problem, posteriors[1], ActorConfig(batch_size=1024, mixture={"joint": 1.0}), seed=0)
    stored, random = actor.act(), np.random.default_rng(0)
    for update in range(600):
        batch = stored.take(random.integers(1024, size=128))
        assert learner.update(batch, update / 600).residual is None
    before = float(problem.log_likelihood(torch.from_numpy(stored.samples), torch.zeros(1024).long()).mean())
    rows = torch.zeros(4_000, dtype=torch.long)
    made = rollout(problem, learner.posterior.control, rows, generator=torch.Generator().manual_seed(1))
    exact = gaussian_problem.exact[0].log_partition
    assert exact - elbo(made.log_weight) < 0.05 * (exact - before)


def test_without_a_sampler_only_x_of_the_prior_are_learned_from(gaussian_problem):
    torch.manual_seed(0)
    problem = _opaque(gaussian_problem)
    posterior = ControlPosterior(problem.prior, (2,), problem.gradient, hidden=8, depth=1)
    actor = Actor(problem, posterior, ActorConfig(mixture={"on-policy": 1.0}), seed=0)
    config = PretrainingConfig(until=1.0, fresh_measurements=True)
    learner = Learner(problem, posterior.requires_grad_(True), LearnerConfig(pretraining=config))
    before = learner.weights()
    assert learner.update(actor.act(), 0.5).loss == 0.0
    np.testing.assert_array_equal(learner.weights(), before)
