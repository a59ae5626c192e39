import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
import torch

from actors import EXPLORATIONS, Actor, ActorConfig
from actors.on_policy import OnPolicy
from diffusion.kernel import normal_log_prob
from diffusion.posterior import ControlPosterior
from diffusion.trajectory import Origin

NAMES = {
    Origin.ON_POLICY: "on-policy",
    Origin.NOISE_INFLATED: "noise-inflated",
    Origin.PRIOR: "prior",
    Origin.PATH_SEARCH: "path-search",
    Origin.BACKTRACKING: "backtracking",
    Origin.LANGEVIN: "langevin",
    Origin.TEACHER: "teacher",
}


def _posterior(problem, head=0.3):
    torch.manual_seed(0)
    posterior = ControlPosterior(problem.prior, (2,), problem.gradient, hidden=8, depth=1)
    torch.nn.init.normal_(posterior.network.head.weight, std=head)
    return posterior


def _actor(problem, *, seed=0, index=0, restarts=0, batch_size=2, **options):
    config = ActorConfig(batch_size=batch_size, **options)
    return Actor(problem, _posterior(problem), config, seed=seed, index=index, restarts=restarts)


def _kind(trajectory):
    (origin,) = set(trajectory.origin.tolist())
    return NAMES[Origin(origin)]


def _only(kind):
    return {"mixture": {kind: 1.0}, "final_mixture": {kind: 1.0}}


@pytest.mark.parametrize(
    "mixture",
    [
        {"on-policy": 0.8, "noise-inflated": 0.1, "prior": 0.1},
        {"on-policy": 0.37, "noise-inflated": 0.21, "prior": 0.42},
        {"noise-inflated": 0.5, "prior": 0.5},
    ],
)
def test_every_kind_is_within_one_batch_of_its_share_at_all_times(gaussian_problem, mixture):
    actor = _actor(gaussian_problem, mixture=mixture, final_mixture=mixture)
    made = Counter()
    for batches in range(1, 201):
        made[_kind(actor.act())] += 1
        for kind in EXPLORATIONS:
            assert abs(made[kind] - batches * mixture.get(kind, 0.0)) <= 1 + 1e-9
    assert [made[kind] for kind in EXPLORATIONS] == pytest.approx([200 * mixture.get(k, 0) for k in EXPLORATIONS])


def test_one_batch_holds_one_kind_and_says_which_weights_made_it(gaussian_problem):
    actor = _actor(gaussian_problem, batch_size=5)
    actor.load_weights(torch.nn.utils.parameters_to_vector(actor.posterior.parameters()).numpy(), 17, 0.5)
    trajectory = actor.act()
    assert trajectory.policy_version.tolist() == [17] * 5 and len(set(trajectory.origin.tolist())) == 1
    assert trajectory.measurement_id.tolist() == [0] * 5


def test_shares_move_linearly_from_the_first_mixture_to_the_last():
    config = ActorConfig(mixture={"prior": 0.6, "on-policy": 0.4}, final_mixture={"on-policy": 0.8, "prior": 0.2})
    for progress, on_policy in ((0.0, 0.4), (0.25, 0.5), (1.0, 0.8)):
        expected = dict.fromkeys(EXPLORATIONS, 0.0) | {"on-policy": on_policy, "prior": 1 - on_policy}
        assert config.shares(progress) == pytest.approx(expected)


def test_over_a_run_a_kind_that_fades_from_all_to_nothing_makes_half_of_the_batches(gaussian_problem):
    actor = _actor(gaussian_problem, mixture={"prior": 1.0}, final_mixture={"on-policy": 1.0})
    weights = torch.nn.utils.parameters_to_vector(actor.posterior.parameters()).numpy()
    made = []
    for batch in range(200):
        actor.load_weights(weights, 0, batch / 199)
        made.append(_kind(actor.act()))
    assert Counter(made) == {"prior": 100, "on-policy": 100}
    assert Counter(made[:100])["prior"] == 75 and Counter(made[:20])["prior"] >= 19


def test_uids_are_unique_over_actors_restarts_and_batches(gaussian_problem):
    uids = [
        actor.act().uid
        for index in (0, 1, 2, 4095)
        for restarts in (0, 1, 20, 4095)
        for actor in [_actor(gaussian_problem, index=index, restarts=restarts, batch_size=7)]
        for _ in range(3)
    ]
    assert len(set(np.concatenate(uids).tolist())) == 4 * 4 * 3 * 7
    assert uids[0].dtype == np.uint64


def test_the_same_seed_index_and_restart_make_the_same_paths(gaussian_problem):
    ours, theirs = (_actor(gaussian_problem, seed=5, index=2, restarts=1) for _ in range(2))
    for _ in range(3):
        first, second = ours.act(), theirs.act()
        for name, value in first.arrays().items():
            np.testing.assert_array_equal(value, second.arrays()[name], err_msg=name)


def test_another_seed_index_or_restart_makes_other_paths(gaussian_problem):
    streams = [(5, 2, 1), (6, 2, 1), (5, 3, 1), (5, 2, 2), (5, 1, 2), (2, 5, 1)]
    firsts = [
        _actor(gaussian_problem, seed=seed, index=index, restarts=restarts, **_only("prior")).act().states[0, 0, 0]
        for seed, index, restarts in streams
    ]
    assert len(set(firsts)) == len(streams)


def test_successive_batches_are_not_the_same_paths(gaussian_problem):
    actor = _actor(gaussian_problem, **_only("on-policy"))
    assert (actor.act().states != actor.act().states).all()


@pytest.mark.parametrize(("kind", "inflation"), [("on-policy", 1.0), ("noise-inflated", 1.9), ("prior", 1.0)])
def test_the_importance_weight_is_target_over_behaviour_step_by_step(gaussian_problem, kind, inflation):
    """log p(tau) + log p(y | x) - log b(tau) from two normal densities a step, in float64."""
    problem, progress = gaussian_problem, 0.25
    actor = _actor(problem, batch_size=20, noise_inflation=2.2, **_only(kind))
    weights = torch.nn.utils.parameters_to_vector(actor.posterior.parameters()).numpy()
    actor.load_weights(weights, 0, progress)  # 2.2 has come down to 1 + 0.75 * 1.2 = 1.9
    made = actor.act()
    states, rows = torch.from_numpy(made.states), torch.zeros(20, dtype=torch.long)
    expected = problem.log_likelihood(states[:, -1].double(), rows)
    for index in range(problem.num_steps):
        step, state = torch.full((20,), index), states[:, index]
        denoised = problem.prior.denoised(state, step)
        mean, std = problem.prior.mean(state, step, denoised).double(), problem.prior.std[step].double()
        u = actor.posterior.control(state, step, denoised, problem.measurements[rows]).double()
        shift = 0.0 if kind == "prior" else std[:, None] * u
        following = states[:, index + 1].double()
        expected += normal_log_prob(following, mean, std) - normal_log_prob(following, mean + shift, inflation * std)
    assert made.log_importance == pytest.approx(expected.numpy(), abs=2e-3)
    assert made.log_importance.std() > 0.1


def test_the_importance_weight_of_a_prior_path_is_its_likelihood(gaussian_problem):
    made = _actor(gaussian_problem, batch_size=50, **_only("prior")).act()
    assert made.log_importance.tolist() == made.log_likelihood.astype(np.float64).tolist()


@pytest.mark.parametrize("kind", [kind for kind in EXPLORATIONS if kind != "joint"])  # of which each has an evidence
def test_importance_weights_of_every_kind_average_to_the_evidence(gaussian_problem, exact_starts, kind):
    """Kinds that go on from stored trajectories get exact ones; what they make of them: `test_stored_paths`."""
    actor = _actor(gaussian_problem, batch_size=4000, noise_inflation=1.1, **_only(kind))
    actor.posterior.network.head.weight.data.mul_(0.1)
    weight = np.exp(actor.act(exact_starts).log_importance - gaussian_problem.exact[0].log_partition)
    assert weight.mean() == pytest.approx(1.0, abs=4 * weight.std() / 4000**0.5 + 1e-6)
    assert weight.std() / 4000**0.5 < 0.1


def test_the_denoised_estimates_travel_only_when_asked_for(gaussian_problem):
    assert _actor(gaussian_problem).act().denoised.shape == (2, 10, 4)
    assert _actor(gaussian_problem, store_denoised=False).act().denoised is None


@pytest.mark.parametrize("kind", EXPLORATIONS)
def test_a_restored_actor_goes_on_with_the_same_kinds_uids_and_noise(gaussian_problem, exact_starts, kind):
    mixture = {"on-policy": 0.4, "noise-inflated": 0.2, "prior": 0.1, "path-search": 0.3}
    mixture = {name: 0.4 * share for name, share in mixture.items()}
    mixture[kind] = mixture.get(kind, 0) + 0.6
    actor = _actor(gaussian_problem, mixture=mixture, final_mixture=mixture)
    for _ in range(7):
        actor.act(exact_starts)
    arrays, scalars = actor.state_dict()
    scalars = json.loads(json.dumps(scalars))  # as a checkpoint keeps it
    arrays = {name: value.copy() for name, value in arrays.items()}
    expected = [actor.act(exact_starts) for _ in range(9)]
    other = _actor(gaussian_problem, mixture=mixture, final_mixture=mixture)
    other.load_state_dict(arrays, scalars)
    for trajectory in expected:
        again = other.act(exact_starts)
        for name, value in trajectory.arrays().items():
            np.testing.assert_array_equal(value, again.arrays()[name], err_msg=name)


def test_loading_weights_changes_what_is_made_and_a_vector_of_another_length_is_refused(gaussian_problem):
    ours, theirs = (_actor(gaussian_problem, **_only("on-policy")) for _ in range(2))
    weights = torch.nn.utils.parameters_to_vector(theirs.posterior.parameters()).numpy().copy()
    weights.setflags(write=False)  # as it comes out of shared memory
    ours.load_weights(weights * 0.5, 1, 0.0)
    theirs.load_weights(weights, 1, 0.0)
    assert (ours.act().states[:, 1:] != theirs.act().states[:, 1:]).any()
    with pytest.raises(ValueError, match=rf"the posterior has {len(weights)} parameters, got a vector of 3"):
        ours.load_weights(np.zeros(3, np.float32), 1, 0.0)


def test_an_actor_never_trains_its_posterior(gaussian_problem):
    actor = _actor(gaussian_problem)
    assert not any(parameter.requires_grad for parameter in actor.posterior.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "actor.batch_size must be at least 1, got 0"),
        ({"noise_inflation": 0.9}, "actor.noise_inflation must be at least 1, got 0.9"),
        ({"noise_inflation": float("nan")}, "actor.noise_inflation must be at least 1, got nan"),
        (
            {"mixture": {"on-polic": 1.0}},
            "actor.mixture may hold on-policy, noise-inflated, .*, got on-polic",
        ),
        (
            {"final_mixture": {"prior": 0.5}},
            r"the shares of actor.final_mixture must be non-negative and sum to 1, got \{'prior': 0.5\}",
        ),
        (
            {"mixture": {"prior": 1.5, "on-policy": -0.5}},
            "the shares of actor.mixture must be non-negative and sum to 1",
        ),
        (
            {"mixture": {"prior": float("nan")}},
            "the shares of actor.mixture must be non-negative and sum to 1, got .*nan",
        ),
        ({"mixture": {}}, r"the shares of actor.mixture must be non-negative and sum to 1, got \{\}"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        ActorConfig(**options)


class _Echo:
    """Hands the stored trajectories on, one nat more likely."""

    origin = Origin.EXACT

    def __init__(self, start_by):
        self.start_by = start_by

    def explore_from(self, problem, posterior, stored, progress, generator):
        made = OnPolicy().explore(problem, posterior, torch.from_numpy(stored.measurement_id), progress, generator)
        return dataclasses.replace(made, log_likelihood=torch.from_numpy(stored.log_likelihood) + 1)


def test_a_kind_that_goes_on_from_stored_trajectories_gets_as_many_as_a_batch_by_what_it_asks_for(
    gaussian_problem, monkeypatch
):
    monkeypatch.setitem(EXPLORATIONS, "echo", lambda config, problem: _Echo("residual"))
    stored = _actor(gaussian_problem, seed=1, batch_size=6, **_only("prior")).act()
    asked = []

    def starts(count, by):
        asked.append((count, by))
        return stored.take(np.arange(count))

    made = _actor(gaussian_problem, batch_size=5, **_only("echo")).act(starts)
    assert asked == [(5, "residual")]
    assert made.log_likelihood.tolist() == (stored.log_likelihood[:5] + 1).tolist()
    assert set(made.origin.tolist()) == {Origin.EXACT}


@pytest.mark.parametrize("starts", [None, lambda count, by: None])
def test_while_nothing_is_stored_such_a_kind_gives_its_turn_to_an_on_policy_rollout(
    gaussian_problem, monkeypatch, starts
):
    monkeypatch.setitem(EXPLORATIONS, "echo", lambda config, problem: _Echo("age"))
    actor = _actor(gaussian_problem, batch_size=5, **_only("echo"))
    assert set(actor.act(starts).origin.tolist()) == {Origin.ON_POLICY}
    assert actor.take_counters().keys() >= {"on-policy/trajectories"}


def test_only_the_kinds_of_the_mixtures_are_made_so_others_may_refuse_the_problem(gaussian_problem, monkeypatch):
    def refuse(config, problem):
        raise ValueError("not this problem")

    monkeypatch.setitem(EXPLORATIONS, "choosy", refuse)
    assert len(_actor(gaussian_problem).act()) == 2
    with pytest.raises(ValueError, match="not this problem"):
        _actor(gaussian_problem, mixture={"on-policy": 1.0}, final_mixture={"choosy": 1.0})
