"""Networks on a device of their own: everything is where it has to be, and gives what it gives on the processor.

Most of it on a virtual device, which refuses tensors of the processor as a GPU would; some where there is a GPU.
"""

import copy
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist

from actors import Actor, ActorConfig
from diffusion.denoiser import MixtureDenoiser, NetworkDenoiser
from diffusion.flow_density import FlowDensity
from diffusion.network import MLP, Plane
from diffusion.posterior import ControlPosterior
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs import InverseProblem
from envs.likelihoods import LearnedNoiseLikelihood, PoissonLikelihood
from envs.operators import Convolution, Lognormal
from learner import Learner, LearnerConfig
from learner.objectives import OBJECTIVES
from learner.prior_config import PriorTrainingConfig
from learner.prior_training import PriorTrainer, denoising_loss
from learner.ranks import ONE_RANK, DistributedRanks
from system.assembly import build_problem, find_device
from system.config import ProblemConfig, RunConfig
from system.config_file import config_from_tree
from system.errors import ConfigError
from system.exact import ExactConfig, sample_exactly
from system.judge import judge, judge_each
from system.local import LocalRunner
from tests.opaque import Opaque
from tests.virtual_device import VirtualTensor, virtual_device


def test_the_virtual_device_refuses_tensors_of_the_processor():
    with virtual_device() as device:
        value = torch.arange(3.0).to(device)
        assert isinstance(value + 1, VirtualTensor) and float((value * value).sum()) == 5
        assert value[torch.tensor([0, 2])].cpu().tolist() == [0, 2]
        with pytest.raises(RuntimeError, match="expected all tensors to be on virtual"):
            value + torch.ones(3)
        with pytest.raises(RuntimeError, match="numpy"):
            value.numpy()
        with pytest.raises(RuntimeError, match="'virtual' device type for generator but found 'cpu'"), device:
            torch.randn(2, generator=torch.Generator())
        with device:
            assert isinstance(torch.randn(2, generator=torch.Generator(device)), VirtualTensor)
            assert torch.randn(2, generator=torch.Generator(), device="cpu").shape == (2,)


KINDS = ["noise-inflated", "prior", "path-search", "backtracking", "langevin", "teacher", "dps", "dps-cla", "pigdm"]
KINDS += ["annealed-measurement", "joint", "stored path-search"]


def _tree(**changes):
    tree = {
        "updates": 2,
        "problem": {"name": "gaussian-linear", "dim": 4, "measurement_dim": 2, "num_steps": 3},
        "posterior": {"hidden": 8, "elementwise": 4},
        "actor": {"batch_size": 8, "path_search": {"sweeps": 2}},
        "learner": {"batch_size": 8, "warmup_updates": 0},
        "replay": {"min_size": 8, "samples_per_insert": 1},
        "evaluation": {"trajectories": 16, "final_trajectories": 16},
    }
    return tree | {key: {**tree[key], **value} if key != "problem" else value for key, value in changes.items()}


def _alone(kind):
    return {"mixture": {kind: 1.0}, "final_mixture": {kind: 1.0}}


def _trained(tree, device):
    """Arrays and numbers of a run on `device`, which is saved and restored on the way."""
    config = config_from_tree(tree | {"device": str(device)}, "test")
    problem = build_problem(config)
    assert problem.device == device and problem.prior.std.device == device
    runner = LocalRunner(config, problem)
    runner.learner.limit_rows(10)  # what a transition takes cannot be measured on the virtual device
    while not runner.finished:
        runner.advance()
    for part in (runner.actor, runner.learner):
        part.load_state_dict(*part.state_dict())
    trajectory = runner.actor.act(runner._starts)
    judgement = judge(config, problem, runner.weights(), quick=False)
    each, calibration = judge_each(config, problem, runner.weights())
    drawn, corrected = judgement.draws, judgement.draws.corrected
    assert corrected is not None
    arrays = [runner.weights(), trajectory.states, trajectory.log_behaviour_ratio]
    arrays += [drawn.samples.numpy(), drawn.log_weight.numpy(), corrected.numpy()]
    arrays += [] if each is None else [each.elbo]
    arrays += [] if calibration is None else [calibration.coverage.numpy()]
    return arrays, judgement.as_metrics()


def _is_the_same(tree):
    arrays, metrics = _trained(tree, torch.device("cpu"))
    with virtual_device() as device:
        found, found_metrics = _trained(tree, device)
    for expected, value in zip(arrays, found, strict=True):
        assert np.isfinite(expected).all()
        assert value == pytest.approx(expected, rel=0, abs=1e-5 * float(abs(expected).max()))
    assert found_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-4)
    return arrays


def _tree_of(kind):
    name = kind.removeprefix("stored ")
    actor = _alone(name) if name != "joint" else {"mixture": {"on-policy": 0.5, "joint": 0.5}}
    if name != kind:
        actor["path_search"] = {"start_by": "age", "sweeps": 2}
    learner = {"forward_kl": 1.0} if kind == "joint" else {}
    return _tree(actor=actor, learner=learner, replay={"priority": "importance"})


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_exploration_is_the_same(kind):
    _is_the_same(_tree_of(kind))


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_every_objective_is_the_same(objective):
    posterior = {"likelihood_gradient": "none"} if objective == "path_kl" else {}
    actor = _alone("joint" if objective == "mle" else "on-policy")
    _is_the_same(_tree(actor=actor, learner={"objective": objective}, posterior=posterior))


def test_a_subset_of_steps_and_end_points_are_the_same():
    learner = {"steps_per_path": 2, "steps_by": "share"}
    _is_the_same(_tree(learner=learner, replay={"store": "endpoints"}))


@pytest.mark.parametrize("known", [lambda denoiser: denoiser, Opaque], ids=["mixture", "draws"])
def test_a_guide_by_an_approximate_posterior_is_the_same(known):
    """Also where y bends and the approximation is made by draws, or the prior by its own."""
    posterior = {"likelihood_gradient": "variational", "initial_gain": 1.0, "elementwise": 0}
    _is_the_same(_tree(posterior=posterior))
    prior = MixtureDenoiser(torch.tensor([[0.0], [3.0]]), 4.0)
    problem = InverseProblem(
        name="test",
        prior=Prior(known(prior), make_schedule("vp-cosine-zero-snr", 4), (1,), prior.denoising_variance),
        likelihood=PoissonLikelihood(Lognormal((1,), 0.5)),
        measurements=torch.zeros(1, 1),
        guidance="variational",
    )
    state, step = torch.randn(4, 1, generator=torch.Generator().manual_seed(0)), torch.arange(4)

    def found(problem):
        here = (state.to(problem.device), step.to(problem.device))
        with problem.placement():
            return problem.guide(*here, problem.measurements.expand(4, 1))[1].cpu().numpy()

    expected = found(problem)
    with virtual_device() as device:
        assert found(problem.to(device)) == pytest.approx(expected, abs=1e-5)


def test_an_amortised_posterior_of_the_digits_and_its_calibration_are_the_same():
    arrays = _is_the_same(
        _tree(
            problem={"name": "digits-half", "count": 2, "num_steps": 2},
            actor={**_alone("joint"), "store_denoised": False},
            learner={"pretraining": {"until": 1.0, "batch_size": 8, "fresh_measurements": True}},
            evaluation={"per_measurement": 4, "calibration_pairs": 8, "calibration_trajectories": 4},
        )
    )
    assert len(arrays) == 8


def test_the_likelihood_of_learned_noise_is_the_same():
    torch.manual_seed(0)
    density = FlowDensity(NetworkDenoiser(Plane(1, 4, 1), 1.0), (1, 4, 4), 1.0, num_steps=2, spacing=2)
    likelihood = LearnedNoiseLikelihood(Convolution((1, 4, 4), torch.ones(3, 3) / 9, "zero"), density, 0.5)
    value, measurement = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)

    def found(likelihood, device):
        here = (value.to(device), measurement.to(device))
        likelihood = copy.deepcopy(likelihood).to(device)
        drawn = likelihood.sample(here[0], torch.Generator(device).manual_seed(0))
        results = [likelihood.log_prob(*here), likelihood.gradient(*here), likelihood.standardised(*here), drawn]
        return [result.detach().cpu().numpy() for result in (*results, likelihood.curvature(*here)(here[1]))]

    expected = found(likelihood, torch.device("cpu"))
    with virtual_device() as device, device:
        there = found(likelihood, device)
    for one, other in zip(expected, there, strict=True):
        assert other == pytest.approx(one, rel=1e-6, abs=1e-6)


def test_the_exact_sampler_is_the_same():
    problem = build_problem(RunConfig(problem=ProblemConfig(name="gmm-linear", options={"dim": 2, "num_steps": 3})))
    config = ExactConfig(num_samples=16, populations=2, chains=16, r_hat=10.0, effective_samples=1)
    expected = sample_exactly(problem, 0, config)
    with virtual_device() as device:
        found = sample_exactly(problem.to(device), 0, config)
    assert found.arrays()["samples"] == pytest.approx(expected.arrays()["samples"], abs=1e-5)
    assert found.log_partition == pytest.approx(expected.log_partition, abs=1e-5)
    assert (found.sweeps, found.r_hat) == (expected.sweeps, pytest.approx(expected.r_hat))


on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@on_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_exploration_runs_on_a_gpu(kind):
    arrays, _ = _trained(_tree_of(kind), torch.device("cuda", 0))
    for array in arrays:
        assert np.isfinite(array).all()


@on_gpu
def test_a_run_on_a_gpu_finds_the_evidence():
    tree = _tree(learner={"learning_rate": 1e-2}, evaluation={"final_trajectories": 4_096}) | {"updates": 200}
    tree["actor"] |= {"batch_size": 32}
    config = config_from_tree(tree | {"device": "cuda"}, "test")
    problem = build_problem(config)
    runner = LocalRunner(config, problem)
    while not runner.finished:
        runner.advance()
    judgement = judge(config, problem, runner.weights(), quick=False)
    metrics = {key.removeprefix("eval/"): value for key, value in judgement.as_metrics().items()}
    error = metrics["iw_log_partition"] - metrics["exact_log_partition"]
    assert abs(error) < 4 * metrics["iw_standard_error"] + 1e-3 and metrics["effective_sample_size"] > 0.3
    # The mean by weight, which the evidence says nothing of.
    weight = judgement.draws.log_weight.softmax(0)
    assert (weight[:, None] * judgement.draws.samples).sum(0).numpy() == pytest.approx(
        problem.exact[0].mean.cpu().numpy(), abs=0.1
    )


def _learner_on(problem, ranks=ONE_RANK, **options):
    torch.manual_seed(1)
    posterior = ControlPosterior(problem.prior, (2,), problem.gradient, hidden=64, elementwise=8)
    for parameter in posterior.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return Learner(problem, posterior, LearnerConfig(warmup_updates=0, gradient_clip=1e9, **options), ranks)


@on_gpu
@pytest.mark.parametrize(
    ("options", "error"), [({}, 1e-4), ({"compile": True}, 1e-4), ({"precision": "bfloat16"}, 0.05), ("nccl", 1e-4)]
)
def test_updates_on_a_gpu_are_those_of_the_processor(gaussian_problem, options, error):
    alone = {"on-policy": 1.0}
    actor_config = ActorConfig(batch_size=64, mixture=alone, final_mixture=alone)
    batch = Actor(gaussian_problem, _learner_on(gaussian_problem).posterior, actor_config, seed=0).act()
    there = copy.deepcopy(gaussian_problem).to(torch.device("cuda", 0))
    plain = _learner_on(gaussian_problem)
    if options == "nccl":
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        dist.init_process_group("nccl", init_method=f"tcp://localhost:{port}", rank=0, world_size=1)
        learner = _learner_on(there, DistributedRanks())
    else:
        learner = _learner_on(there, **options)
    try:
        for _ in range(2):
            losses = [each.update(batch, 0.0).loss for each in (plain, learner)]
            expected, found = (
                torch.cat([value.grad.flatten().cpu() for value in each.posterior.parameters()])
                for each in (plain, learner)
            )
            assert losses[1] == pytest.approx(losses[0], rel=error)
            assert float((found - expected).norm()) < error * float(expected.norm())
            learner.limit_rows(100)  # chunks of a hundred transitions, and a smaller one
    finally:
        if options == "nccl":
            dist.destroy_process_group()


@on_gpu
def test_the_loss_of_a_prior_is_the_same_on_a_gpu_and_its_training_goes_on_bit_for_bit():
    clean = torch.randn(256, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.2, 0.2, 1.7])
    levels = torch.linspace(-3, 3, 256)
    losses, trainers = [], []
    for device in ("cpu", "cuda", "cuda"):
        torch.manual_seed(0)
        denoiser = NetworkDenoiser(MLP(3, 3, hidden=32, depth=2)).to(device)
        loss = denoising_loss(denoiser, clean.to(device), levels.double(), clean.flip(0).to(device), 1.0)
        losses.append(loss.detach().cpu().numpy())
        trainers.append(PriorTrainer(denoiser, clean, 1.0, PriorTrainingConfig(batch_size=64, learning_rate=1e-2)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    _, first, second = trainers
    learned = [first.update() for _ in range(400)]
    assert sum(learned[-50:]) < 0.9 * sum(learned[:50])
    second.load_state_dict(*first.state_dict())
    assert second.update() == first.update()


@pytest.mark.parametrize("name", ["no-such-device", "cuda:7"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(ConfigError, match=f"device must be auto, or one that this process has.*got '{name}'"):
        find_device(RunConfig(device=name))
