"""The learner: formulas of its schedules and optimiser, what it refuses, and that it learns what is known."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from actors import Actor, ActorConfig, rollout
from diffusion.path import denoise_path, path_log_prior, path_log_ratio
from diffusion.posterior import ControlPosterior, Posterior
from diffusion.trajectory import Origin, Trajectory, concatenate
from envs import make_problem
from envs.exact.chain import ChainPosterior
from evaluation.bounds import elbo, iw_log_partition
from learner import Learner, LearnerConfig
from learner.average import WeightAverage
from learner.gradient import GradientPlan, RowLimits, accumulate_gradient
from learner.guard import Verdict
from learner.loss import Loss


def _posterior(problem, *, hidden=8, depth=1, seed=0, guided=True):
    torch.manual_seed(seed)
    shape, gradient = tuple(problem.measurements.shape[1:]), problem.gradient if guided else None
    return ControlPosterior(problem.prior, shape, gradient, hidden=hidden, depth=depth)


def _learner(problem, seed=0, max_rows=None, **options):
    learner = Learner(problem, _posterior(problem, seed=seed), LearnerConfig(**options))
    if max_rows is not None:
        learner.limit_rows(max_rows)
    return learner


def _batch(problem, seed=0, count=16, **options):
    options = {"mixture": {"prior": 1.0}, "final_mixture": {"prior": 1.0}} | options
    return Actor(problem, _posterior(problem), ActorConfig(batch_size=count, **options), seed=seed).act()


def _state(learner):
    arrays, scalars = learner.state_dict()
    return {name: value.copy() for name, value in arrays.items()}, scalars


def _assert_same_state(ours, theirs):
    assert ours[1] == theirs[1] and ours[0].keys() == theirs[0].keys()
    for name, value in ours[0].items():
        np.testing.assert_array_equal(value, theirs[0][name], err_msg=name)


# --- formulas ---


def test_the_step_size_rises_over_the_warm_up_and_falls_as_a_cosine(gaussian_problem):
    learner = _learner(gaussian_problem, warmup_updates=10, final_learning_rate=0.1)
    learner.updates = 5
    assert learner.learning_rate_factor(0.0) == pytest.approx(0.5)
    learner.updates = 10
    assert learner.learning_rate_factor(0.0) == 1.0
    assert learner.learning_rate_factor(0.5) == pytest.approx(0.55)
    assert learner.learning_rate_factor(2 / 3) == pytest.approx(0.1 + 0.9 * 0.25)
    assert learner.learning_rate_factor(1.0) == pytest.approx(0.1)
    assert learner.learning_rate_factor(1.7) == pytest.approx(0.1)


def test_without_warm_up_the_first_step_is_full(gaussian_problem):
    learner = _learner(gaussian_problem, warmup_updates=0, objective="rtb")
    learner.update(_batch(gaussian_problem), 0.0)
    assert [group["lr"] for group in learner.optimizer.param_groups] == [1e-3, 1e-2, 1e-1]


def test_the_first_update_of_a_warm_up_of_ten_has_a_tenth_of_every_step_size(gaussian_problem):
    learner = _learner(gaussian_problem, warmup_updates=10, learning_rate=0.2, gain_learning_rate=0.3, objective="rtb")
    learner.update(_batch(gaussian_problem), 0.0)
    assert [group["lr"] for group in learner.optimizer.param_groups] == pytest.approx([0.02, 0.03, 0.01])


def test_beta_rises_linearly_to_one_and_stays(gaussian_problem):
    learner = _learner(gaussian_problem, beta_start=0.2, beta_until=0.4)
    assert [learner.annealing.beta(at) for at in (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)] == pytest.approx(
        [0.2, 0.4, 0.6, 1, 1, 1]
    )


def test_beta_is_one_from_the_start_by_default(gaussian_problem):
    assert _learner(gaussian_problem).annealing.beta(0.0) == 1.0


def test_the_forward_kl_draws_the_control_towards_the_clean_end_of_each_path(gaussian_problem):
    batch, losses, distances = _batch(gaussian_problem), [], []
    prior, states = gaussian_problem.prior, torch.from_numpy(batch.states)
    denoised = denoise_path(prior, states)
    target = (prior.denoised_coefficient / prior.std)[:, None] * (states[:, -1:] - denoised)  # [B, T, D]
    step = torch.arange(prior.num_steps).repeat(len(states))
    measurement = gaussian_problem.measurements[:1].expand(len(step), -1)
    for weight in (0.0, 1e4):
        learner = _learner(gaussian_problem, forward_kl=weight, warmup_updates=0)
        losses += [learner.update(batch, 0.0).loss for _ in range(50)]
        control = learner.posterior.control(states[:, :-1].flatten(0, 1), step, denoised.flatten(0, 1), measurement)
        distances.append((control.detach().reshape(target.shape) - target).square().sum(2).mean().item())
    assert distances[1] < 0.9 * distances[0]
    assert losses[0] == losses[50]  # what is reported is the loss on the residual


def test_beta_scales_the_log_likelihood_in_the_residual(gaussian_problem):
    batch = _batch(gaussian_problem)
    learner = _learner(gaussian_problem, objective="rtb", beta_start=0.25, beta_until=0.5)
    residual = learner.update(batch, 0.0).residual  # the posterior is still the prior: no log-ratio, log Z = 0
    assert residual == pytest.approx(-0.25 * batch.log_likelihood, rel=1e-6)


def test_the_average_starts_at_the_weights_and_forgets_them_slowly():
    module = torch.nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(2.0)
    average = WeightAverage(module, decay=0.5)
    assert average.vector.tolist() == [2.0]
    module.weight.data.fill_(3.0)
    expected = 2.0
    for update in range(1, 12):
        average.update(module)
        decay = min(0.5, (1 + update) / (10 + update))  # 2/11, 3/12, ... until 1/2
        expected = decay * expected + (1 - decay) * 3.0
        assert float(average.vector) == pytest.approx(expected, rel=1e-6)


def test_three_updates_are_adam_on_the_clipped_gradient_by_hand(gaussian_problem):
    options = {"warmup_updates": 2, "gradient_clip": 0.5, "objective": "rtb", "ema_decay": 0.9, "loss_scale": 1.0}
    learner, reference = _learner(gaussian_problem, **options), _posterior(gaussian_problem)
    log_partition = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    parameters = {"log Z": log_partition, **dict(reference.named_parameters())}
    sizes = {"log Z": 0.1, "gain": 1e-2}
    first = {name: torch.zeros_like(value) for name, value in parameters.items()}
    second = {name: torch.zeros_like(value) for name, value in parameters.items()}
    average = torch.nn.utils.parameters_to_vector(reference.parameters()).detach().clone()
    for update in range(1, 4):
        batch, progress = _batch(gaussian_problem, seed=update), update / 4
        found = learner.update(batch, progress)

        log_likelihood, group = torch.from_numpy(batch.log_likelihood), torch.from_numpy(batch.measurement_id)

        def loss(log_ratio, log_likelihood=log_likelihood, group=group):
            residual = log_partition[group] + log_ratio.sum(1) - log_likelihood
            return Loss("huber", 1.0)(residual).mean(), residual

        reference.zero_grad()
        log_partition.grad = None
        plan = GradientPlan(limits=RowLimits(10_000, 10_000))
        output = accumulate_gradient(reference, learner._batch(batch), loss, plan)
        norm = math.sqrt(sum(float(value.grad.square().sum()) for value in reference.parameters()))
        assert found.loss == pytest.approx(float(output.loss), rel=1e-5)
        assert found.gradient_norm == pytest.approx(norm, rel=1e-4) and norm > 0.5
        factor = min(1.0, update / 2) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for name, value in parameters.items():
            gradient = value.grad if name == "log Z" else value.grad * 0.5 / norm
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.99 * second[name] + 0.01 * gradient.square()
            ahead = (first[name] / (1 - 0.9**update)) / ((second[name] / (1 - 0.99**update)).sqrt() + 1e-8)
            value.data -= factor * sizes.get(name, 1e-3) * ahead
        decay = min(0.9, (1 + update) / (10 + update))
        vector = torch.nn.utils.parameters_to_vector(reference.parameters()).detach()
        average = decay * average + (1 - decay) * vector
    assert learner.weights() == pytest.approx(vector.numpy(), abs=1e-5)
    assert learner.weights(averaged=True) == pytest.approx(average.numpy(), abs=1e-5)
    assert learner.objective.log_partition.level.item() == pytest.approx(log_partition.item(), rel=1e-5)
    assert abs(log_partition.item()) > 0.05


def test_an_update_does_not_depend_on_how_many_transitions_fit_in_memory(gaussian_problem):
    learners = [_learner(gaussian_problem, max_rows=rows, objective="rtb", warmup_updates=0) for rows in (7, 16_384)]
    for seed in range(5):
        small, large = (learner.update(_batch(gaussian_problem, seed=seed), 0.0) for learner in learners)
        assert small.gradient_norm == pytest.approx(large.gradient_norm, rel=1e-4)
        assert small.residual == pytest.approx(large.residual, abs=1e-3)
    assert learners[0].weights() == pytest.approx(learners[1].weights(), abs=2e-3)


def test_what_actors_send_along_and_what_is_recomputed_give_the_same_update(gaussian_problem):
    shares = {"on-policy": 1.0}
    batch = _batch(gaussian_problem, mixture=shares, final_mixture=shares)
    assert batch.denoised is not None and batch.guidance is not None
    bare = dataclasses.replace(batch, denoised=None, guidance=None)
    learners = [_learner(gaussian_problem, warmup_updates=0) for _ in range(2)]
    for _ in range(3):
        sent, computed = (learner.update(given, 0.0) for learner, given in zip(learners, (batch, bare), strict=True))
        assert sent.residual == pytest.approx(computed.residual, abs=1e-3)
        assert sent.gradient_norm == pytest.approx(computed.gradient_norm, rel=1e-3)
    assert learners[0].weights() == pytest.approx(learners[1].weights(), abs=1e-3)


def test_the_residual_of_an_update_is_one_float32_number_a_trajectory(gaussian_problem):
    update = _learner(gaussian_problem).update(_batch(gaussian_problem, count=9), 0.0)
    assert update.residual.shape == (9,) and update.residual.dtype == np.float32
    assert update.loss == pytest.approx(float(Loss()(torch.tensor(update.residual)).mean()))


def test_weights_are_a_copy_that_later_updates_leave_alone(gaussian_problem):
    learner = _learner(gaussian_problem, warmup_updates=0)
    before, averaged = learner.weights(), learner.weights(averaged=True)
    kept = before.copy()
    learner.update(_batch(gaussian_problem), 0.0)
    assert (before == kept).all() and (averaged == kept).all() and (learner.weights() != kept).any()
    assert before.dtype == np.float32 and before.ndim == 1


def test_trajectories_of_the_present_weights_are_not_scored_twice(gaussian_problem, monkeypatch):
    """On-policy ones of the newest version, until the weights change under that version."""
    on_policy = {"mixture": {"on-policy": 1.0}, "final_mixture": {"on-policy": 1.0}}
    posterior = _posterior(gaussian_problem)
    torch.nn.init.normal_(posterior.network.head.weight, std=0.3)
    actor = Actor(gaussian_problem, posterior, ActorConfig(batch_size=8, **on_policy), seed=0)
    learner = Learner(gaussian_problem, posterior, LearnerConfig(steps_per_path=3, reinitialise_at=(0.5,)))
    posterior.requires_grad_(True)
    actor.posterior = _posterior(gaussian_problem).requires_grad_(False)
    rows, original = [], learner.posterior.control
    monkeypatch.setattr(
        learner.posterior, "control", lambda state, *rest: rows.append(len(state)) or original(state, *rest)
    )
    learner.limit_rows(1000)

    def scored(trajectory, progress=0.0, known=True):
        rows.clear()
        residual = learner.update(trajectory, progress, versions_hold=known).residual
        return list(rows), residual

    def make(version):
        actor.load_weights(learner.weights(), version, 0.0)
        return actor.act()

    fresh = make(0)
    found, residual = scored(fresh)
    assert found == [24]  # three of ten transitions of eight trajectories
    delta = fresh.log_behaviour_ratio - fresh.log_likelihood
    assert np.ptp(residual - delta) < 1e-4 and np.ptp(delta) > 0.5
    assert scored(fresh)[0] == [80, 24]  # a version behind
    inflated = dataclasses.replace(make(2), origin=np.full(8, Origin.NOISE_INFLATED, np.uint8))
    assert scored(inflated)[0] == [80, 24]
    newest = make(3)
    mixed = concatenate([newest.take(slice(0, 5)), dataclasses.replace(fresh, uid=fresh.uid + np.uint64(99))])
    assert scored(mixed)[0] == [80, 39]
    assert scored(make(4), known=False)[0] == [80, 24]
    assert scored(make(5), progress=0.6)[0] == [80, 24]  # the network was re-initialised just now


# --- simulated measurements ---


def _joint_and_others(problem):
    """Joint paths and prior paths, in one batch and apart."""
    joint = _batch(problem, count=6, mixture={"joint": 1.0}, final_mixture={"joint": 1.0})
    rest = _batch(problem, seed=1, count=10)
    measurement = problem.measurements.numpy()[rest.measurement_id]
    rest = dataclasses.replace(rest, measurement=measurement, uid=rest.uid + np.uint64(100))
    return concatenate([joint, rest]).take(np.random.default_rng(0).permutation(16)), joint, rest


@pytest.mark.parametrize("max_rows", [7, 16_384])
def test_joint_paths_add_their_denoising_term_and_leave_the_residual_s_gradient_of_the_others_as_it_is(
    gaussian_problem, max_rows
):
    both, joint, rest = _joint_and_others(gaussian_problem)

    def gradient(batch, forward_kl):
        torch.manual_seed(0)
        learner = _learner(gaussian_problem, forward_kl=forward_kl, gradient_clip=1e9, max_rows=max_rows)
        torch.nn.init.normal_(learner.posterior.network.head.weight, std=0.3)
        update = learner.update(batch, 0.5)
        return torch.cat([value.grad.flatten() for value in learner.posterior.parameters()]), update

    plain, update = gradient(both, 0.0)
    expected, alone = gradient(rest, 0.0)
    assert (plain - expected).norm() < 1e-5 * expected.norm() and expected.norm() > 0.1
    assert update.loss == pytest.approx(alone.loss, rel=1e-5)
    # The denoising term is a mean over all trajectories, so it is the mean of its parts.
    joint_part = gradient(joint, 2.0)[0]
    rest_part = gradient(rest, 2.0)[0] - expected
    added = gradient(both, 2.0)[0] - plain
    assert (added - (6 * joint_part + 10 * rest_part) / 16).norm() < 1e-4 * added.norm()
    assert joint_part.norm() > 0.1


def test_a_joint_path_is_scored_at_its_own_measurement_and_its_mean_log_weight_bounds_the_evidence(gaussian_problem):
    both, joint, rest = _joint_and_others(gaussian_problem)
    learner = _learner(gaussian_problem, forward_kl=1.0)
    torch.nn.init.normal_(learner.posterior.network.head.weight, std=0.3)
    states = torch.from_numpy(joint.states)
    denoised, measurement = denoise_path(gaussian_problem.prior, states), torch.from_numpy(joint.measurement)
    log_weight = joint.log_likelihood - path_log_ratio(learner.posterior, states, denoised, measurement).sum(1).numpy()
    update = learner.update(both, 0.0)
    assert update.joint_log_weight == pytest.approx(float(log_weight.mean()), abs=1e-3)
    assert learner.update(rest, 0.0).joint_log_weight is None
    many = _batch(gaussian_problem, count=2_000, mixture={"joint": 1.0}, final_mixture={"joint": 1.0})
    exact = gaussian_problem.exact[0]  # log p(y') of the chain
    likelihood = gaussian_problem.likelihood
    evidence = [
        ChainPosterior(exact.prior, likelihood.operator.matrix, likelihood.noise_std, torch.from_numpy(y)).log_partition
        for y in many.measurement[:500]
    ]
    assert learner.update(many.take(slice(0, 500)), 0.0).joint_log_weight > np.mean(evidence) + 0.1


# --- bad batches ---


@pytest.mark.parametrize(
    ("field", "value"),
    [("log_likelihood", np.nan), ("log_likelihood", np.inf), ("states", np.nan), ("states", np.inf)],
)
@pytest.mark.parametrize("objective", ["vargrad", "rtb"])
@pytest.mark.parametrize("max_rows", [30, 16_384])
def test_a_batch_with_one_number_that_is_not_finite_is_counted_and_changes_no_weight(
    gaussian_problem, field, value, objective, max_rows
):
    learner = _learner(gaussian_problem, objective=objective, max_rows=max_rows)
    learner.update(_batch(gaussian_problem), 0.0)
    before = _state(learner)
    good = _batch(gaussian_problem, seed=1)
    array = getattr(good, field).copy()
    array[3] = value
    update = learner.update(dataclasses.replace(good, **{field: array}), 0.0)
    assert update.verdict is Verdict.SET_ASIDE and (learner.updates, learner.guard.set_aside) == (2, 1)
    after = _state(learner)
    after[1].update(updates=1, guard=before[1]["guard"])
    _assert_same_state(after, before)
    assert learner.update(good, 0.0).verdict is Verdict.TAKE and np.isfinite(learner.weights()).all()


@pytest.mark.parametrize("objective", ["vargrad", "rtb", "subtb", "reinforce_kl"])
def test_a_likelihood_of_zero_counts_as_thirty_nats_below_the_worst_of_the_others(gaussian_problem, objective):
    good = _batch(gaussian_problem, seed=1)
    array, gradients = good.log_likelihood.copy(), []
    for value in (-np.inf, np.delete(array, [3, 5]).min() - 30.0):
        array[[3, 5]] = value
        learner = _learner(gaussian_problem, objective=objective)
        update = learner.update(dataclasses.replace(good, log_likelihood=array), 0.0)
        assert update.verdict is Verdict.TAKE and np.isfinite(update.residual).all()
        gradients.append(torch.cat([value.grad.flatten() for value in learner.posterior.parameters()]))
    assert torch.equal(*gradients) and float(gradients[0].norm()) > 0
    array[:] = -np.inf
    assert math.isfinite(learner.update(dataclasses.replace(good, log_likelihood=array), 0.0).loss)


class _Half:
    """Another likelihood where the first element of x is positive, zero elsewhere."""

    def __init__(self, likelihood):
        self.likelihood, self.measurement_shape = likelihood, likelihood.measurement_shape

    def log_prob(self, value, measurement):
        return torch.where(value[:, 0] > 0, self.likelihood.log_prob(value, measurement), -math.inf)


def test_a_posterior_learns_to_keep_away_from_where_the_likelihood_is_zero():
    whole = make_problem("gaussian-linear", {"dim": 2, "measurement_dim": 1, "num_steps": 10})
    problem = dataclasses.replace(whole, likelihood=_Half(whole.likelihood), exact=())
    alone = {"on-policy": 1.0}
    posterior = ControlPosterior(problem.prior, (1,), None, hidden=32)
    learner = Learner(problem, posterior, LearnerConfig(learning_rate=3e-3, warmup_updates=10))
    actor = Actor(
        problem,
        ControlPosterior(problem.prior, (1,), None, hidden=32),
        ActorConfig(batch_size=128, mixture=alone, final_mixture=alone),
        seed=0,
    )
    shares = []
    for update in range(400):
        actor.load_weights(learner.weights(), update, 0.0)
        batch = actor.act()
        shares.append(float((batch.log_likelihood == -np.inf).mean()))
        assert learner.update(batch, update / 400).verdict is Verdict.TAKE
    assert np.mean(shares[:5]) > 0.2 and np.mean(shares[-20:]) < 0.05


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_under_a_finite_loss_changes_no_weight_either(gaussian_problem, value):
    learner = _learner(gaussian_problem)
    before = learner.weights()
    handle = learner.posterior.network.head.bias.register_hook(lambda gradient: gradient * value)
    update = learner.update(_batch(gaussian_problem), 0.0)
    assert (
        update.verdict is Verdict.SET_ASIDE and math.isfinite(update.loss) and not math.isfinite(update.gradient_norm)
    )
    assert (learner.weights() == before).all() and (learner.weights(averaged=True) == before).all()
    handle.remove()
    assert learner.update(_batch(gaussian_problem), 0.0).verdict is Verdict.TAKE


# --- state ---


@pytest.mark.parametrize("objective", ["vargrad", "rtb"])
def test_a_restored_learner_is_the_same_bit_for_bit_and_stays_so(gaussian_problem, objective):
    learner = _learner(gaussian_problem, objective=objective)
    for seed in range(3):
        learner.update(_batch(gaussian_problem, seed=seed), 0.1 * seed)
    other = _learner(gaussian_problem, seed=7, objective=objective)
    assert (other.weights() != learner.weights()).any()
    other.load_state_dict(*_state(learner))
    _assert_same_state(_state(other), _state(learner))
    for averaged in (False, True):
        np.testing.assert_array_equal(other.weights(averaged=averaged), learner.weights(averaged=averaged))
    assert (learner.weights(averaged=True) != learner.weights()).any()
    for seed in range(3, 6):
        updates = [each.update(_batch(gaussian_problem, seed=seed), 0.1 * seed) for each in (learner, other)]
        assert updates[0].loss == updates[1].loss and updates[0].gradient_norm == updates[1].gradient_norm
        np.testing.assert_array_equal(updates[0].residual, updates[1].residual)
    _assert_same_state(_state(other), _state(learner))


def test_a_learner_that_has_made_no_update_can_be_saved_and_restored(gaussian_problem):
    learner = _learner(gaussian_problem)
    other = _learner(gaussian_problem, seed=7)
    other.update(_batch(gaussian_problem), 0.0)
    other.load_state_dict(*_state(learner))
    _assert_same_state(_state(other), _state(learner))


def test_the_state_holds_weights_average_log_z_and_both_moments_of_adam(gaussian_problem):
    learner = _learner(gaussian_problem, objective="rtb")
    learner.update(_batch(gaussian_problem), 0.0)
    arrays, scalars = learner.state_dict()
    names = {name.split(".")[0] for name in arrays}
    assert names == {"posterior", "average", "objective", "optimizer", "snapshot"}
    parameters = sum(1 for _ in learner.posterior.parameters()) + 1
    assert sum(name.startswith("optimizer") and name.endswith("exp_avg_sq") for name in arrays) == parameters
    assert (scalars["updates"], scalars["average_updates"], scalars["snapshots"]) == (1, 1, [0])


def test_loading_the_state_of_another_network_names_the_first_array_that_does_not_fit(gaussian_problem):
    arrays, scalars = _learner(gaussian_problem).state_dict()
    other = Learner(gaussian_problem, _posterior(gaussian_problem, hidden=6), LearnerConfig())
    message = r"has shape \(8, \d+\) where posterior\.network\.body\.0\.weight of shape \(6, \d+\) is expected"
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(arrays, scalars)
    del arrays["posterior.gain"]
    with pytest.raises(ValueError, match=r"has nothing where posterior\.gain of shape \(.*10.*\) is expected"):
        _learner(gaussian_problem).load_state_dict(arrays, scalars)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "dpo"}, "learner.objective must be one of rtb, vargrad, .* mle, got 'dpo'"),
        ({"beta_ess": 1.0}, r"learner.beta_ess must be within \[0, 1\), got 1.0"),
        (
            {"beta_ess": 0.2, "objective": "trust_pcl"},
            "learner.beta_ess weighs paths by exp.* take objective rtb, got 0.2",
        ),
        ({"reinitialise_at": (0.5, 1.0)}, r"reinitialise_at must lie within \(0, 1\), got \[0.5, 1.0\]"),
        ({"batch_size": 1}, "learner.batch_size must be at least 2, got 1"),
        ({"learning_rate": 0.0}, "learner.learning_rate must be positive, got 0.0"),
        ({"learning_rate": math.nan}, "learner.learning_rate must be positive, got nan"),
        ({"gradient_clip": -1.0}, "learner.gradient_clip must be positive, got -1.0"),
        ({"loss_scale": 0.0}, "learner.loss_scale must be positive, got 0.0"),
        ({"subtb_decay": -1.0}, "learner.subtb_decay must be positive, got -1.0"),
        ({"importance_cap": 0.0}, "learner.importance_cap must be positive, got 0.0"),
        ({"clip_range": 0.0}, "learner.clip_range must be positive, got 0.0"),
        ({"ema_decay": 1.0}, r"learner.ema_decay must be within \[0, 1\), got 1.0"),
        ({"forward_kl": -1.0}, r"learner.forward_kl must be >= 0, got -1.0"),
        ({"beta_start": 0.0}, r"learner.beta_start must be within \(0, 1\] and beta_until within \[0, 1\], got 0.0"),
        ({"beta_until": 1.5}, r"beta_until within \[0, 1\], got 1.0 and 1.5"),
        ({"warmup_updates": -1}, "learner.warmup_updates must be >= 0 and graph_bytes >= 1, got -1 and 536870912"),
        ({"graph_bytes": 0}, "graph_bytes >= 1, got 100 and 0"),
        ({"steps_per_path": 0}, "learner.steps_per_path must be at least 1 or null, got 0"),
        ({"final_learning_rate": -0.1}, r"learner.final_learning_rate must be within \[0, 1\], got -0.1"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        LearnerConfig(**options)


# --- the fixed point ---


class _TiltedExact(Posterior):
    """The exact posterior of a linear Gaussian chain, shifted along every direction by one learnable number."""

    def __init__(self, problem, shift):
        super().__init__(problem.prior)
        self.exact = (problem.exact[0],)
        self.shift = torch.nn.Parameter(torch.full((4,), shift))

    networks = ()

    def control(self, state, step, denoised, measurement, guidance=None):
        raise NotImplementedError

    def log_ratio(self, next_state, state, step, denoised, measurement, guidance=None):
        exact = self.exact[0].log_ratio(next_state, state, step, denoised, measurement)
        return exact + (next_state - self.prior.mean(state, step, denoised)) @ self.shift


def _exact_paths(problem, count):
    """Trajectories of the exact posterior as a message."""
    states = problem.exact[0].sample_path(count, torch.Generator().manual_seed(0)).float()
    denoised, rows = denoise_path(problem.prior, states), torch.zeros(count, dtype=torch.long)
    return Trajectory(
        uid=np.arange(count, dtype=np.uint64),
        states=states.numpy(),
        log_prior=path_log_prior(problem.prior, states, denoised).numpy(),
        log_behaviour_ratio=np.zeros(count, np.float32),
        log_likelihood=problem.log_likelihood(states[:, -1], rows).numpy(),
        measurement_id=rows.numpy(),
        policy_version=np.zeros(count, np.int64),
        origin=np.full(count, Origin.EXACT, np.uint8),
    )


@pytest.mark.parametrize("objective", ["vargrad", "rtb"])
@pytest.mark.parametrize("behaviour", ["on-policy", "noise-inflated", "prior", "exact"])
def test_at_the_exact_posterior_paths_of_any_behaviour_have_no_gradient(gaussian_problem, objective, behaviour):
    """Without importance weights: whatever replay holds, the solution stays where it is."""
    if behaviour == "exact":
        batch = _exact_paths(gaussian_problem, 64)
    else:
        shares = {behaviour: 1.0}
        batch = _batch(gaussian_problem, count=64, mixture=shares, final_mixture=shares)
    norms = []
    for shift in (0.0, 0.05):
        learner = Learner(gaussian_problem, _TiltedExact(gaussian_problem, shift), LearnerConfig(objective=objective))
        for value in learner.objective.parameters():  # log Z, for rtb
            value.data.fill_(gaussian_problem.exact[0].log_partition)
        update = learner.update(batch, 0.0)
        log_z = sum(float(value.grad.abs()) for value in learner.objective.parameters())
        norms.append((update.gradient_norm, np.abs(update.residual).max(), log_z))
    (norm, residual, log_z), (norm_off, residual_off, _) = norms
    assert norm < 2e-3 * norm_off and residual < 2e-3 * residual_off and log_z < 1e-4
    assert residual < 2e-4 and norm_off > 1e-3


# --- it learns ---


def _learned(problem, updates, kinds, objective="vargrad", **options):
    """(error of the importance-weighted log Z, log Z - ELBO before, and after `updates` on fresh rollouts, learner)."""
    settings = LearnerConfig(objective=objective, warmup_updates=20, learning_rate=3e-3, **options)
    network = {"hidden": 32, "depth": 2, "guided": objective != "path_kl"}
    learner = Learner(problem, _posterior(problem, **network), settings)
    behaviour = ActorConfig(mixture=kinds, final_mixture=kinds)
    actor = Actor(problem, _posterior(problem, **network), behaviour, seed=0)

    def log_weight(control):
        rows, generator = torch.zeros(4000, dtype=torch.long), torch.Generator().manual_seed(1)
        return rollout(problem, control, rows, generator=generator).log_weight

    exact = problem.exact[0].log_partition
    before = exact - elbo(log_weight(None))
    for update in range(updates):
        actor.load_weights(learner.weights(), update, update / updates)
        learner.update(actor.act(), update / updates)
    actor.load_weights(learner.weights(averaged=True), updates, 1.0)
    drawn = log_weight(actor.posterior.control)
    return iw_log_partition(drawn) - exact, before, exact - elbo(drawn), learner


@pytest.mark.parametrize("objective", ["vargrad", "rtb", "tb", "ppo_kl", "adjoint_matching", "path_kl", "mle"])
def test_a_gaussian_posterior_is_learned_to_a_twentieth_of_a_nat(objective):
    problem = make_problem("gaussian-linear", {"dim": 2, "measurement_dim": 1, "num_steps": 20})
    kinds = {"joint": 1.0} if objective == "mle" else {"on-policy": 1.0}
    error, before, gap, learner = _learned(problem, 100, kinds, objective)
    assert abs(error) < 0.02
    assert before > 0.4 and 0 < gap < 0.05  # 0.02 would remain: q has the prior's variance in every step
    if objective == "rtb":
        assert learner.objective.log_partition.level.item() == pytest.approx(problem.exact[0].log_partition, abs=0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gaussian_posterior_is_learned_from_paths_of_the_prior_alone(precision):
    problem = make_problem("gaussian-linear", {"dim": 2, "measurement_dim": 1, "num_steps": 20})
    error, before, gap, _ = _learned(problem, 100, {"prior": 1.0}, precision=precision)
    assert abs(error) < 0.02 and before > 0.4 and 0 < gap < 0.07


def test_a_posterior_of_several_modes_is_learned_to_a_fifth_of_a_nat():
    problem = make_problem("gmm-linear", {"dim": 2, "modes": 4, "num_steps": 20})
    error, before, gap, _ = _learned(problem, 120, {"on-policy": 0.7, "noise-inflated": 0.2, "prior": 0.1})
    assert abs(error) < 0.05 and before > 0.5 and 0 < gap < 0.2


def test_one_posterior_learns_two_measurements_and_tells_them_apart():
    """Trained on both at once, each measurement's samples have the mean of its own exact posterior."""
    options = {"dim": 2, "measurement_dim": 1, "num_steps": 20}
    single = make_problem("gaussian-linear", options)
    measurements = torch.tensor([[-1.5], [1.5]])
    operator, noise_std = single.likelihood.operator, single.likelihood.noise_std
    exact = tuple(ChainPosterior(single.prior, operator.matrix, noise_std, value) for value in measurements)
    problem = dataclasses.replace(single, measurements=measurements, exact=exact, truth=None)
    error, before, gap, learner = _learned(problem, 150, {"on-policy": 1.0})
    assert abs(error) < 0.02 and before > 0.4 and 0 < gap < 0.07
    control = learner.posterior.requires_grad_(False).control
    for row in (0, 1):
        rows, generator = torch.full((4000,), row), torch.Generator().manual_seed(2)
        drawn = rollout(problem, control, rows, generator=generator)
        assert abs(iw_log_partition(drawn.log_weight) - exact[row].log_partition) < 0.02
        assert exact[row].log_partition - elbo(drawn.log_weight) < 0.07
        offset = (drawn.states[:, -1].double().mean(0) - exact[row].mean) / exact[row].variance.sqrt()
        assert float(offset.abs().max()) < 0.15
    apart = (exact[0].mean - exact[1].mean) / exact[0].variance.sqrt()
    assert float(apart.abs().max()) > 1


def test_a_reinitialised_learner_has_its_first_weights_and_optimiser_but_keeps_log_z(gaussian_problem):
    options = {"warmup_updates": 4, "reinitialise_at": (0.5,), "objective": "rtb"}
    learner, fresh = (_learner(gaussian_problem, **options) for _ in range(2))
    batches = [_batch(gaussian_problem, seed=seed) for seed in range(8)]
    for update, batch in enumerate(batches[:6]):
        learner.update(batch, update / 13)
    log_partition = learner.objective.log_partition.level
    assert learner.reinitialised == 0 and log_partition.abs().max() > 0
    fresh.objective.log_partition.level.data.copy_(log_partition.detach())
    fresh.updates = fresh._warm_from = learner.updates
    fresh.reinitialised = 1
    for progress, batch in ((0.5, batches[6]), (0.55, batches[7])):
        ours, theirs = learner.update(batch, progress), fresh.update(batch, progress)
        assert ours.loss == theirs.loss
        np.testing.assert_array_equal(learner.weights(), fresh.weights())
        np.testing.assert_array_equal(learner.weights(averaged=True), fresh.weights(averaged=True))
    assert learner.reinitialised == 1


def test_it_reinitialises_once_at_each_fraction_and_a_restored_one_not_again(gaussian_problem):
    options = {"reinitialise_at": (0.2, 0.6)}
    learner = _learner(gaussian_problem, **options)
    counts = []
    for progress in (0.1, 0.2, 0.3, 0.59, 0.6, 0.9):
        learner.update(_batch(gaussian_problem), progress)
        counts.append(learner.reinitialised)
        restored = _learner(gaussian_problem, **options)
        restored.load_state_dict(*_state(learner))
        learner = restored
    assert counts == [0, 1, 1, 1, 2, 2]


# --- precision ---


def test_bfloat16_changes_the_gradient_by_rounding_of_the_network_alone(gaussian_problem):
    batch, gradients, updates = _batch(gaussian_problem, count=200), [], []
    for precision in ("float32", "bfloat16"):
        learner = _learner(gaussian_problem, precision=precision, gradient_clip=1e9)
        torch.manual_seed(0)
        torch.nn.init.normal_(learner.posterior.network.head.weight, std=0.3)
        updates.append(learner.update(batch, 0.0))
        gradients.append(torch.cat([value.grad.flatten() for value in learner.posterior.parameters()]))
        assert {value.dtype for value in learner.posterior.parameters()} == {torch.float32}
        assert learner.weights().dtype == np.float32
    exact, rounded = gradients
    assert 0 < (rounded - exact).norm() < 0.02 * exact.norm()
    assert updates[1].residual == pytest.approx(updates[0].residual, abs=0.05 * float(np.std(updates[0].residual)))
    assert (updates[1].residual != updates[0].residual).any()


@pytest.mark.parametrize("units", [(), ("avx512_bf16",), ("amx_bf16",), ("bf16",)])
def test_bfloat16_without_units_for_it_is_warned_of(gaussian_problem, monkeypatch, caplog, units):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, **dict.fromkeys(units, True)})
    _learner(gaussian_problem, precision="float32")
    assert not caplog.records
    _learner(gaussian_problem, precision="bfloat16")
    assert ["no units for bfloat16" in record.getMessage() for record in caplog.records] == ([] if units else [True])


def test_likelihood_gradients_and_the_prior_keep_their_digits_in_bfloat16(gaussian_problem):
    seen = []

    def gradient(value, measurement):
        seen.append((value.dtype, torch.is_autocast_enabled("cpu")))
        return gaussian_problem.gradient(value, measurement)

    posterior = ControlPosterior(gaussian_problem.prior, (2,), gradient, hidden=8)
    posterior.compute_dtype = torch.bfloat16
    state, step = torch.randn(5, 4), torch.arange(5)
    control = posterior.control(state, step, gaussian_problem.prior.denoised(state, step), torch.zeros(5, 2))
    assert control.dtype == torch.float32 and set(seen) == {(torch.float32, False)}
