"""Ranks in processes of their own, on parts of a batch, against one rank on the whole."""

import dataclasses
import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor

from actors import Actor, ActorConfig
from diffusion.posterior import ControlPosterior
from diffusion.trajectory import concatenate
from envs import make_problem
from learner import Learner, LearnerConfig
from learner.pretraining import PretrainingConfig
from learner.ranks import DistributedRanks
from learner.sharding import ShardedRanks

SIZE, UPDATES = 2, 3
KINDS = {"each has all weights": DistributedRanks, "each has a part of every weight": ShardedRanks}
FAST = {"learning_rate": 1e-2, "warmup_updates": 1}
SETTINGS = {
    "vargrad": {},
    "vargrad square, chunks": {"loss": "square", "graph_bytes": 1},
    "rtb": {"objective": "rtb"},
    "rtb, forward_kl": {"objective": "rtb", "forward_kl": 2.0},
    "rtb network, forward_kl, chunks": {
        "log_partition": "network",
        "objective": "rtb",
        "forward_kl": 2.0,
        "graph_bytes": 1,
    },
    "tb": {"objective": "tb"},
    "subtb": {"objective": "subtb"},
    "trust_pcl": {"objective": "trust_pcl"},
    "reinforce_kl": {"objective": "reinforce_kl"},
    "ppo_kl": {"objective": "ppo_kl"},
    "mle": {"objective": "mle"},
    "adjoint_matching": {"objective": "adjoint_matching"},
    "pretraining": {"pretraining": PretrainingConfig(until=1.0, steps_per_path=1000)},
}


def _problem():
    problem = make_problem("gaussian-linear", {"dim": 4, "measurement_dim": 2, "num_steps": 10})
    return dataclasses.replace(
        problem, measurements=torch.cat([problem.measurements, problem.measurements + 1]), exact=()
    )


def _posterior(problem):
    torch.manual_seed(0)
    posterior = ControlPosterior(problem.prior, (2,), problem.gradient, hidden=8, depth=1)
    torch.nn.init.normal_(posterior.network.head.weight, std=0.3)
    return posterior


def _batches(problem):
    """Of two measurements, exact and other paths, in an order that leaves no measurement to one rank."""
    batches = []
    for seed in range(UPDATES):
        made = []
        for kind in ("on-policy", "prior", "joint"):
            config = ActorConfig(batch_size=8, mixture={kind: 1.0}, final_mixture={kind: 1.0})
            part = Actor(problem, _posterior(problem), config, seed=seed, index=len(made)).act()
            measurement = problem.measurements.numpy()[part.measurement_id.clip(0)]
            made.append(part if part.measurement is not None else dataclasses.replace(part, measurement=measurement))
        batches.append(concatenate(made).take(np.random.default_rng(seed).permutation(24)))
    return batches


def _learn(name, ranks=None):
    """(flat weights and log Z after every update, gradients, losses, residuals) of one rank's part, or of the whole."""
    problem = _problem()
    torch.manual_seed(1)
    learner = Learner(
        problem, _posterior(problem), LearnerConfig(**FAST | SETTINGS[name]), *([] if ranks is None else [ranks])
    )
    weights, gradients, losses, residuals = [], [], [], []
    for number, batch in enumerate(_batches(problem)):
        if ranks is not None:
            batch = batch.take(np.arange(24).reshape(SIZE, -1)[ranks.rank])
        update = learner.update(batch, number / UPDATES)
        own = [value.detach().flatten().double() for value in learner.objective.parameters()]
        weights.append(np.concatenate([learner.weights(), *(value.numpy() for value in own)]))
        all_gradients = [value.grad for value in learner.posterior.parameters()]
        whole = [value.full_tensor() if isinstance(value, DTensor) else value for value in all_gradients]
        gradient = torch.cat([value.flatten() for value in whole]).numpy()
        gradients.append(gradient)
        losses.append(update.loss)
        residuals.append(None if update.residual is None else update.residual)
    return weights, gradients, losses, residuals


def _work(rank, path):
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=SIZE)
    found = {}
    for kind, make in KINDS.items():
        ranks = make()
        assert (ranks.rank, ranks.size) == (rank, SIZE)
        found |= {(kind, name): _learn(name, ranks) for name in SETTINGS}
    torch.save(found, f"{path}/rank-{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks")
    mp.spawn(_work, (str(path),), nprocs=SIZE)
    return [torch.load(path / f"rank-{rank}", weights_only=False) for rank in range(SIZE)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SETTINGS)
def test_two_ranks_on_half_a_batch_each_are_one_rank_on_the_whole(found, name, kind):
    weights, gradients, losses, residuals = _learn(name)
    for part in found:
        ours, our_gradients, our_losses, _ = part[kind, name]
        assert our_losses == pytest.approx(losses, rel=1e-5, abs=1e-6)
        assert np.linalg.norm(our_gradients[0] - gradients[0]) < 1e-6 * np.linalg.norm(gradients[0])
        # Adam divides by the size of a gradient, and so makes the rounding of a small one large.
        for update in range(UPDATES):
            assert np.linalg.norm(ours[update] - weights[update]) < 3e-6 * np.linalg.norm(weights[update])
    if residuals[0] is not None:
        for update in range(UPDATES):
            joined = np.concatenate([part[kind, name][3][update] for part in found])
            assert joined == pytest.approx(residuals[update], rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SETTINGS)
def test_all_ranks_have_the_same_weights_to_the_last_bit(found, name, kind):
    first, second = (part[kind, name] for part in found)
    for ours, theirs in zip(first[0], second[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert first[2] == second[2]


def test_the_ranks_have_moved_and_half_a_batch_alone_goes_elsewhere(found):
    weights, *_ = _learn("vargrad")
    assert np.linalg.norm(weights[-1] - weights[0]) > 0.03
    problem = _problem()
    learner = Learner(problem, _posterior(problem), LearnerConfig(**FAST))
    for number, batch in enumerate(_batches(problem)):
        learner.update(batch.take(np.arange(12)), number / UPDATES)
    assert np.linalg.norm(learner.weights() - weights[-1]) > 1e-3
