"""Ranks that share a network out, block by block, against one rank that has it whole."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from actors import Actor, ActorConfig
from diffusion.denoiser import NetworkDenoiser
from diffusion.network import UNet
from diffusion.posterior import FinetunePosterior
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs import InverseProblem
from envs.likelihoods import GaussianLikelihood
from envs.operators import Matrix
from learner import Learner, LearnerConfig
from learner.guard import GuardConfig, Verdict
from learner.pretraining import PretrainingConfig
from learner.ranks import ONE_RANK, held
from learner.sharding import ShardedRanks

SIZE = 3  # which divides few of the numbers of rows
FAST = {"learning_rate": 1e-2, "warmup_updates": 1, "ema_decay": 0.5, "gradient_clip": 0.5}
SETTINGS = {
    "plain": {},
    "activations again": {"checkpoint_activations": True},
    "chunks": {"graph_bytes": 1},
    "a part of the steps": {"steps_per_path": 2},
    "bfloat16": {"precision": "bfloat16"},
    "fresh measurements": {"pretraining": PretrainingConfig(until=1.0, fresh_measurements=True)},
}


def _problem():
    torch.manual_seed(0)
    network = UNet(1, 1, (8, 12), groups=4)
    torch.nn.init.normal_(network.head.weight, std=0.05)
    prior = Prior(NetworkDenoiser(network).requires_grad_(False), make_schedule("vp-cosine-zero-snr", 4), (1, 8, 8))
    likelihood = GaussianLikelihood(Matrix(torch.eye(2, 64, dtype=torch.float64)), 0.5)
    return InverseProblem(name="images", prior=prior, likelihood=likelihood, measurements=torch.ones(1, 2))


def _learner(problem, ranks=ONE_RANK, **options):
    torch.manual_seed(1)
    posterior = FinetunePosterior(problem.prior, (2,))
    return Learner(problem, posterior, LearnerConfig(**{"batch_size": 6, **FAST, **options}), ranks)


def _batches(problem):
    kind = {"prior": 1.0}
    actor = Actor(
        problem,
        FinetunePosterior(problem.prior, (2,)),
        ActorConfig(batch_size=6, mixture=kind, final_mixture=kind),
        seed=0,
    )
    return [actor.act() for _ in range(3)]


def _part(batch, ranks):
    return batch.take(np.arange(6).reshape(ranks.size, -1)[ranks.rank])


def _trained(name, ranks=ONE_RANK):
    problem = _problem()
    learner = _learner(problem, ranks, **SETTINGS[name])
    updates = [learner.update(_part(batch, ranks), 0.0) for batch in _batches(problem)]
    return learner, [(update.loss, update.gradient_norm) for update in updates]


def _begun_anew(ranks=ONE_RANK):
    """Weights two steps after the network was re-initialised."""
    problem = _problem()
    learner, batches = _learner(problem, ranks, reinitialise_at=(0.5,)), _batches(problem)
    for progress in (0.1, 0.2, 0.6, 0.6):
        learner.update(_part(batches[0], ranks), progress)
    assert learner.reinitialised == 1
    return learner.weights()


def _work(rank, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=SIZE)
    ranks, found = ShardedRanks(), {}
    for name in SETTINGS:
        learner, found[name, "updates"] = _trained(name, ranks)
        found[name, "weights"] = [learner.weights(averaged=averaged) for averaged in (False, True)]
    problem, batches = _problem(), _batches(_problem())
    learner, _ = _trained("plain", ranks)
    parameters = list(learner.posterior.parameters())
    found["held"] = sum(held(value).numel() for value in parameters)
    found["moments"] = sum(
        held(value).numel() for state in learner.optimizer.state.values() for value in state.values()
    ) - len(parameters)
    found["state"] = learner.state_dict()

    restored = _learner(problem, ranks)
    restored.load_state_dict(*found["state"])
    found["restored"] = restored.state_dict()
    restored.update(_part(batches[0], ranks), 0.0)
    found["restored, one step on"] = restored.weights()

    # To the state at the start of one rank, of none that was shared out.
    restored.load_state_dict(*_learner(problem).state_dict())
    found["start"] = restored.weights()

    bad = _part(dataclasses.replace(batches[0], log_likelihood=np.full(6, np.nan, np.float32)), ranks)
    learner = _learner(problem, ranks, guard=GuardConfig(patience=1))
    for _ in range(2):
        learner.update(_part(batches[0], ranks), 0.0)
    found["moved"] = learner.weights()
    assert learner.update(bad, 0.0).verdict is Verdict.ROLL_BACK
    found["rolled back"] = learner.weights()

    found["begun anew"] = _begun_anew(ranks)
    torch.save(found, f"{path}/rank-{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks")
    mp.spawn(_work, (str(path),), nprocs=SIZE)
    return [torch.load(path / f"rank-{rank}", weights_only=False) for rank in range(SIZE)]


@pytest.mark.parametrize("name", sorted(set(SETTINGS) - {"fresh measurements", "a part of the steps"}))
def test_ranks_that_share_the_network_out_learn_what_one_rank_does(found, name):
    learner, updates = _trained(name)
    exact = {"rel": 2e-2} if name == "bfloat16" else {"rel": 2e-4}
    for part in found:
        for (loss, norm), (one_loss, one_norm) in zip(part[name, "updates"], updates, strict=True):
            assert loss == pytest.approx(one_loss, **exact) and norm == pytest.approx(one_norm, **exact)
        for averaged in (False, True):
            ours, one = part[name, "weights"][averaged], learner.weights(averaged=averaged)
            assert np.linalg.norm(ours - one) < (0.05 if name == "bfloat16" else 1e-3) * np.linalg.norm(one - _start())


@pytest.mark.parametrize("name", SETTINGS)
def test_all_ranks_know_the_same_whole(found, name):
    for part in found[1:]:
        assert part[name, "updates"] == found[0][name, "updates"]
        for averaged in (False, True):
            np.testing.assert_array_equal(part[name, "weights"][averaged], found[0][name, "weights"][averaged])
    assert np.linalg.norm(found[0][name, "weights"][0] - _start()) > 1e-2


def _start():
    return _learner(_problem()).weights()


def test_every_rank_holds_its_part_of_weights_and_moments_and_no_more(found):
    count = len(_start())
    parts = [part["held"] for part in found]
    assert sum(parts) == count and max(parts) < 0.45 * count
    assert [part["moments"] for part in found] == [2 * part for part in parts]


def _assert_same(state, other):
    assert state[0].keys() == other[0].keys() and state[1] == other[1]
    for name, value in state[0].items():
        np.testing.assert_array_equal(value, other[0][name], err_msg=name)


def test_a_checkpoint_is_that_of_one_rank_and_restores_any_number(found):
    one, _ = _trained("plain")
    state = found[0]["state"]
    assert {name: value.shape for name, value in one.state_dict()[0].items()} == {
        name: value.shape for name, value in state[0].items()
    }
    for part in found:
        _assert_same(part["restored"], state)
        np.testing.assert_array_equal(part["start"], _start())
    loaded = _learner(_problem())
    loaded.load_state_dict(*state)
    _assert_same(loaded.state_dict(), state)
    loaded.update(_batches(_problem())[0], 0.0)
    ours, moved = found[0]["restored, one step on"], np.linalg.norm(loaded.weights() - state[0]["average"])
    assert np.linalg.norm(ours - loaded.weights()) < 1e-3 * moved


def test_ranks_roll_back_and_begin_anew_with_their_parts(found):
    for part in found:
        assert (part["moved"] != _start()).any()
        np.testing.assert_array_equal(part["rolled back"], _start())
        one = _begun_anew()
        assert np.linalg.norm(part["begun anew"] - one) < 1e-3 * np.linalg.norm(one - _start())
