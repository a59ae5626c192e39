"""The adaptive teacher: its reward, its gradient, and where it goes when the student has lost a mode."""

import json
import math

import numpy as np
import pytest
import torch

from actors import rollout, teacher
from actors.teacher import Teacher, TeacherConfig, log_reward, student_residual
from diffusion.denoiser import MixtureDenoiser
from diffusion.path import path_log_ratio
from diffusion.posterior import ControlPosterior
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs import InverseProblem
from envs.likelihoods import GaussianLikelihood
from envs.operators import Matrix

ROWS = torch.zeros(64, dtype=torch.long)


@pytest.fixture(scope="module")
def two_modes():
    """Equal modes at x_0 = -2 and 2, which the measurement of x_1 does not tell apart: half of the posterior each."""
    denoiser = MixtureDenoiser(torch.tensor([[-2.0, 0.0], [2.0, 0.0]], dtype=torch.float64), 0.3)
    prior = Prior(denoiser, make_schedule("vp-cosine-zero-snr", 10), (2,), denoiser.denoising_variance)
    likelihood = GaussianLikelihood(Matrix(torch.tensor([[0.0, 1.0]], dtype=torch.float64)), 0.5)
    return InverseProblem(name="two-modes", prior=prior, likelihood=likelihood, measurements=torch.tensor([[0.3]]))


def _posterior(problem, push=0.0):
    """The prior, pushed along x_0."""
    torch.manual_seed(0)
    posterior = ControlPosterior(problem.prior, (1,), problem.gradient, hidden=16, depth=1)
    with torch.no_grad():
        posterior.network.head.bias[0] = push
    return posterior.requires_grad_(False)


def _teacher(problem, **options):
    made = Teacher(TeacherConfig(**options), problem)
    made.prepare(_posterior(problem))
    return made


def _left(problem, control):
    """Share of the left mode."""
    rows, generator = torch.zeros(2000, dtype=torch.long), torch.Generator().manual_seed(9)
    return float((rollout(problem, control, rows, generator=generator).states[:, -1, 0] < 0).double().mean())


def test_where_the_student_has_lost_a_mode_the_teacher_goes(two_modes, generator):
    """The student has 2 % of the left mode's half; after 60 turns four fifths of the teacher's paths end there."""
    student, kind = _posterior(two_modes, push=4.0), _teacher(two_modes)
    assert _left(two_modes, student.control) < 0.02
    assert _left(two_modes, kind.sampler.control) == pytest.approx(0.5, abs=0.04)
    for _ in range(60):
        made = kind.explore(two_modes, student, ROWS, 0.0, generator)
    assert _left(two_modes, kind.sampler.control) > 0.8
    assert (made.states[:, -1, 0] < 0).double().mean() > 0.7
    # And with the modes exchanged to the right: it is the student that it answers to.
    student, kind = _posterior(two_modes, push=-4.0), _teacher(two_modes)
    for _ in range(60):
        kind.explore(two_modes, student, ROWS, 0.0, generator)
    assert _left(two_modes, kind.sampler.control) < 0.2


def test_a_reward_is_worth_more_where_the_student_samples_too_little():
    residual = torch.tensor([-3.0, 3.0, 0.0], dtype=torch.float64)
    log_likelihood = torch.tensor([-2.0, -2.0, 1.0])
    expected = [math.log(1 + 20 * 9) - 1.0, math.log(1 + 9) - 1.0, 0.5]
    assert log_reward(residual, log_likelihood, 20.0, 0.5).tolist() == pytest.approx(expected, abs=1e-12)


def test_the_residual_of_the_exact_posterior_is_zero_and_negative_where_a_student_has_too_little(
    gaussian_problem, stored_paths
):
    stored = stored_paths["exact"].take(slice(0, 500))
    states, denoised = torch.from_numpy(stored.states.copy()), torch.from_numpy(stored.denoised.copy())
    measurement = gaussian_problem.measurements.expand(500, -1)
    log_ratio = path_log_ratio(gaussian_problem.exact[0], states, denoised, measurement).double().sum(1)
    behaviour, likelihood = (
        torch.from_numpy(value.copy()) for value in (stored.log_behaviour_ratio, stored.log_likelihood)
    )
    residual = student_residual(log_ratio, behaviour, likelihood)
    assert residual.abs().max() < 1e-3
    assert student_residual(log_ratio - 2.0, behaviour, likelihood).numpy() == pytest.approx(
        -2 * np.ones(500), abs=1e-3
    )


def test_paths_of_zero_likelihood_count_in_the_evidence_and_are_else_the_worst_of_the_others():
    likelihood = torch.tensor([-1.0, -math.inf, -3.0, -math.inf])
    residual = student_residual(torch.zeros(4), torch.zeros(4), likelihood)
    log_partition = math.log((math.exp(-1) + math.exp(-3)) / 4)
    assert residual.numpy() == pytest.approx(log_partition + np.array([1.0, 3.0, 3.0, 3.0]))


@pytest.mark.parametrize("rows", [10_000, 17])
def test_the_gradient_is_that_of_autograd_in_any_number_of_chunks(two_modes, generator, monkeypatch, rows):
    monkeypatch.setattr(teacher, "MAX_ROWS", rows)
    monkeypatch.setattr(teacher, "MAX_NORM", math.inf)
    student, kind = _posterior(two_modes, push=1.5), _teacher(two_modes, updates=1)
    for _ in range(3):
        kind.explore(two_modes, student, ROWS, 0.0, generator)
    batch, taken = kind._recent[-1], []
    monkeypatch.setattr(kind._optimizer, "step", lambda: taken.extend(p.grad.clone() for p in kind._parameters))
    kind._update(student, batch)

    def summed(sampler):
        terms = []
        for index in range(10):
            step = torch.full((64,), index)
            y = two_modes.measurements[ROWS]
            states = batch.states[:, index + 1], batch.states[:, index]
            terms.append(sampler.log_ratio(*states, step, batch.denoised[:, index], y, batch.guidance[:, index]))
        return torch.stack(terms).double().sum(0)

    residual = student_residual(summed(student), batch.log_behaviour_ratio, batch.log_likelihood)
    error = summed(kind.sampler) - log_reward(residual, batch.log_likelihood, 20.0, 0.5)
    loss = torch.nn.functional.huber_loss(error, error.detach().median().expand(64), delta=10.0)
    for ours, theirs in zip(taken, torch.autograd.grad(loss, kind._parameters), strict=True):
        assert ours.numpy() == pytest.approx(theirs.numpy(), rel=1e-4, abs=1e-6)
    assert max(float(value.abs().max()) for value in taken) > 1e-3


def test_its_importance_weights_average_to_the_evidence_after_training_too(two_modes, generator):
    kind, student = _teacher(two_modes, learning_rate=1e-2), _posterior(two_modes, push=2.0)
    for _ in range(30):
        kind.explore(two_modes, student, ROWS, 0.0, generator)
    made = kind.explore(two_modes, student, torch.zeros(8000, dtype=torch.long), 0.0, generator)
    weight = (made.log_likelihood - made.log_behaviour_ratio).exp()
    rows = torch.zeros(200_000, dtype=torch.long)
    evidence = rollout(two_modes, None, rows, generator=generator).log_likelihood.double().exp().mean()
    assert float(weight.mean()) == pytest.approx(float(evidence), abs=5 * float(weight.std()) / 8000**0.5)
    assert made.log_behaviour_ratio.std() > 0.3


def test_a_restored_teacher_goes_on_bit_for_bit(two_modes):
    student, options = _posterior(two_modes, push=2.0), {"updates": 3, "memory": 4}
    kind, stream = _teacher(two_modes, **options), torch.Generator().manual_seed(1)
    for _ in range(6):
        kind.explore(two_modes, student, ROWS, 0.0, stream)
    arrays, scalars = kind.state_dict()
    other, again = _teacher(two_modes, **options), torch.Generator()
    again.set_state(stream.get_state())
    other.load_state_dict(two_modes, arrays, json.loads(json.dumps(scalars)), again)
    for _ in range(5):
        ours, theirs = (
            kind.explore(two_modes, student, ROWS, 0.0, stream),
            other.explore(two_modes, student, ROWS, 0.0, again),
        )
        assert (ours.states == theirs.states).all()
    ours, theirs = kind.state_dict(), other.state_dict()
    assert ours[1] == theirs[1] == {"recent": 4}
    for name, value in ours[0].items():
        np.testing.assert_array_equal(value, theirs[0][name], err_msg=name)


def test_it_trains_a_sampler_of_its_own_and_leaves_the_student_and_the_prior_alone(two_modes, generator):
    student, kind = _posterior(two_modes, push=1.0), _teacher(two_modes)
    before = torch.nn.utils.parameters_to_vector(student.parameters()).clone()
    kind.explore(two_modes, student, ROWS, 0.0, generator)
    assert (torch.nn.utils.parameters_to_vector(student.parameters()) == before).all()
    assert kind.sampler.prior is two_modes.prior and not any(p.requires_grad for p in student.parameters())
    assert all(value.grad is None for value in student.parameters())


@pytest.mark.parametrize(("impossible", "moves"), [(1, True), (63, True), (64, False)])
def test_paths_of_zero_likelihood_do_not_spoil_its_weights(two_modes, generator, impossible, moves):
    student, kind = _posterior(two_modes, push=1.0), _teacher(two_modes, updates=1)
    kind.explore(two_modes, student, ROWS, 0.0, generator)
    batch = kind._recent[-1]
    batch.log_likelihood[:impossible] = torch.tensor([-math.inf, math.nan, math.inf]).repeat(22)[:impossible]
    before = torch.nn.utils.parameters_to_vector(kind.sampler.parameters()).detach().clone()
    kind._update(student, batch)
    after = torch.nn.utils.parameters_to_vector(kind.sampler.parameters()).detach()
    assert bool(torch.isfinite(after).all()) and bool((after != before).any()) == moves


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"under_sampling": 0.5}, "actor.teacher.under_sampling must be at least 1, got 0.5"),
        ({"exponent": -0.1}, "actor.teacher.exponent must be at least 0, got -0.1"),
        ({"updates": 0}, "actor.teacher.updates must be at least 1, got 0"),
        ({"memory": 0}, "actor.teacher.memory must be at least 1, got 0"),
        ({"learning_rate": float("nan")}, "actor.teacher.learning_rate must be positive, got nan"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        TeacherConfig(**options)
