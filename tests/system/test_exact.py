"""Exact sampling: the verdict, what is written, and what is refused."""

import json

import numpy as np
import pytest
import torch

from diffusion.posterior import ControlPosterior
from envs import make_problem
from system.__main__ import main
from system.errors import RunnerError
from system.exact import ExactConfig, _evidence, _mixing, sample_exactly

CONFIG = """
name: small
updates: 5
problem: {name: gmm-linear, dim: 2, modes: 3, num_steps: 10}
posterior: {hidden: 8, depth: 1}
actor: {batch_size: 8}
learner: {batch_size: 8}
replay: {min_size: 16}
evaluation: {trajectories: 16, final_trajectories: 16}
"""


@pytest.fixture
def config(tmp_path):
    """A configuration file of a small mixture."""
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def result():
    """A thousand samples of a mixture in the plane."""
    problem = make_problem("gmm-linear", {"dim": 2, "modes": 3, "num_steps": 40})
    return problem, sample_exactly(problem, 0, ExactConfig(max_seconds=120.0))


def test_the_samples_have_the_exact_modes_and_moments(result):
    problem, found = result
    exact = problem.exact[0]
    assert found.mixed and found.r_hat <= 1.01 and found.effective_samples >= 400
    assert found.samples.shape == (1000, 2) and found.log_likelihood.shape == (1000,)
    shares = problem.classes.probabilities(found.samples).mean(0)
    assert shares.numpy() == pytest.approx(
        problem.class_probabilities(0).numpy(), abs=0.07
    )  # 4 errors of 400 draws at 0.15
    error = (found.samples.double().mean(0) - exact.mean) / exact.variance.sqrt()
    assert float(error.abs().max()) < 4 / 400**0.5
    assert np.bincount(found.population.numpy()).tolist() == [250] * 4


def test_the_evidence_is_that_of_the_chain_within_its_error(result):
    problem, found = result
    assert found.log_partition_standard_error < 0.05
    # 40 steps leave the chain within a few hundredths of a nat of p(y).
    assert found.log_partition == pytest.approx(problem.exact[0].log_partition, abs=0.05 + 0.2)


class _Population:
    """Of `count` paths, with log-weights like those of Gaussian bridges whose log Z is 0, of three kernels."""

    def __init__(self, seed, count=128):
        self.generator = torch.Generator().manual_seed(seed)
        self.states, self.log_partition = torch.zeros(count), float(self._normal(1)) * 0.5

    def _normal(self, count):
        return torch.randn(count, generator=self.generator, dtype=torch.float64)

    def kernels(self, control):
        return {"a": "a", "b": "b", "c": "c"}

    def log_weights(self, kernel):
        """Of two Gaussians of variance one that are 2 apart: log pi / q is N(-2, 4) under q and N(2, 4) under pi."""
        return 2 * self._normal(len(self.states)) - 2, 2 * self._normal(len(self.states)) + 2


def test_from_a_posterior_that_is_off_the_samples_and_the_evidence_are_the_same(result):
    problem, expected = result
    torch.manual_seed(0)
    crude = ControlPosterior(problem.prior, (1,), None, hidden=8, depth=1).requires_grad_(False)
    torch.nn.init.normal_(crude.network.head.weight, std=0.3)
    settings = ExactConfig(start="posterior", max_seconds=120.0)
    with pytest.raises(ValueError, match="to start from the posterior takes a trained run, got a problem alone"):
        sample_exactly(problem, 0, settings)
    found = sample_exactly(problem, 0, settings, control=crude.control)
    assert found.mixed and found.start == "posterior" and expected.start == "prior"
    error = np.hypot(found.log_partition_standard_error, expected.log_partition_standard_error)
    assert found.log_partition == pytest.approx(expected.log_partition, abs=max(5 * error, 0.02))
    shares = [problem.classes.probabilities(each.samples).mean(0).numpy() for each in (found, expected)]
    assert shares[0] == pytest.approx(shares[1], abs=0.07 * 2**0.5)
    apart = (found.samples.mean(0) - expected.samples.mean(0)) / expected.samples.std(0)
    assert float(apart.abs().max()) < 4 * (2 / 400) ** 0.5


def test_the_error_of_the_evidence_covers_it_as_often_as_students_t_says():
    """|t| with three degrees of freedom is below 2 in 86 % of cases; that of the closest of three estimates in 72 %."""
    within, errors, spreads = [], [], []
    for trial in range(300):
        populations = [_Population(1000 * trial + index) for index in range(4)]
        value, error = _evidence(populations, [40] * 4, None)
        within.append(abs(value) < 2 * error)
        errors.append(value)
        spreads.append(error**2)
    assert np.mean(within) == pytest.approx(0.86, abs=0.07)  # 3.5 standard errors
    assert np.mean(spreads) == pytest.approx(np.var(errors), rel=0.3)


def test_tempering_gives_the_evidence_where_no_kernel_overlaps_with_the_posterior(monkeypatch):
    monkeypatch.setattr(
        _Population, "log_weights", lambda self, kernel: (self._normal(128) - 50, self._normal(128) + 50)
    )
    populations = [_Population(seed) for seed in range(4)]
    value, error = _evidence(populations, [1] * 4, None)
    expected = torch.tensor([population.log_partition for population in populations])
    assert value == pytest.approx(float(expected.mean())) and error == pytest.approx(float(expected.std()) / 2)


def test_the_same_seed_gives_the_same_samples():
    problem = make_problem("gaussian-linear", {"dim": 2, "measurement_dim": 1, "num_steps": 8})
    settings = ExactConfig(num_samples=20, chains=16, effective_samples=10, r_hat=2.0)
    one, other = (sample_exactly(problem, 0, settings) for _ in range(2))
    np.testing.assert_array_equal(one.samples.numpy(), other.samples.numpy())


def test_without_time_to_reach_the_posterior_the_run_says_at_which_beta_it_was():
    problem = make_problem("gaussian-linear", {"dim": 8, "measurement_dim": 8, "noise_std": 0.01, "num_steps": 8})
    with pytest.raises(RunnerError, match=r"the time was up at beta .* raise --max-seconds, or lower --chains, or"):
        sample_exactly(problem, 0, ExactConfig(max_seconds=1e-3))


def test_populations_in_different_modes_have_not_mixed_and_the_mode_is_named():
    problem = make_problem("gmm-linear", {"dim": 2, "modes": 3, "num_steps": 5})
    means = problem.prior.denoiser.means.float()
    kept = [[(means[[index]].repeat(50, 1) + 0.01 * torch.randn(50, 2), torch.zeros(50))] for index in (0, 1)]
    r_hat, worst, effective = _mixing(problem, kept)
    assert r_hat > 10 and worst in {"mode 0", "mode 1", "x[0]", "x[1]", "x^2[0]", "x^2[1]"} and effective < 5


def test_a_limit_on_r_hat_that_is_not_met_is_not_mixed_however_many_draws_there_are():
    problem = make_problem("gmm-linear", {"dim": 2, "modes": 3, "num_steps": 10})
    settings = ExactConfig(num_samples=10, chains=8, effective_samples=1, r_hat=1 + 1e-7, max_seconds=3.0)
    found = sample_exactly(problem, 0, settings)
    assert not found.mixed and found.r_hat > settings.r_hat and found.effective_samples >= 1
    assert "NOT MIXED" in found.lines()[0]


def test_from_the_command_line_with_flags_of_the_problem(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--exact", "--num", "50", "--chains", "64", "--quiet", "--problem.num-steps", "12"]
    assert main(["sample", str(config), *flags]) in (0, 1)
    out = capsys.readouterr().out
    assert ("mixed" in out or "NOT MIXED" in out) and "50 samples: small-exact.npz" in out
    with np.load("small-exact.npz", allow_pickle=False) as stored:
        assert {name: stored[name].shape for name in stored} == {
            "samples": (50, 2),
            "log_likelihood": (50,),
            "population": (50,),
        }
    figures = json.loads((tmp_path / "small-exact.json").read_text())
    assert {"mixed", "r_hat", "log_partition", "log_partition_standard_error", "acceptance", "thinning"} <= set(figures)


def test_chains_that_do_not_mix_end_with_exit_code_1_and_say_so(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--exact", "--num", "10", "--chains", "8", "--r-hat", "1.0000001", "--max-seconds", "4", "--quiet"]
    assert main(["sample", str(config), *flags]) == 1
    assert "NOT MIXED" in capsys.readouterr().out


def test_from_a_run_its_posterior_proposes_too(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(config), "--run", "mine", "--quiet"]) == 0
    assert main(["sample", "mine", "--exact", "--num", "20", "--chains", "32", "--quiet"]) in (0, 1)
    assert (tmp_path / "mine" / "exact.npz").is_file() and (tmp_path / "mine" / "exact.json").is_file()
    assert "started from" not in capsys.readouterr().out
    again = ["--exact", "--start", "posterior", "--num", "20", "--chains", "32", "--quiet"]
    assert main(["sample", "mine", *again]) in (0, 1)
    assert "started from the trained posterior: a mode that it has no paths of is missing" in capsys.readouterr().out
    assert json.loads((tmp_path / "mine" / "exact.json").read_text())["start"] == "posterior"
    assert main(["sample", str(config), *again]) == 2
    assert "--start posterior takes that of a trained run, got the configuration" in capsys.readouterr().err
    assert main(["sample", "mine", "--exact", "--problem.dim", "3"]) == 2
    assert "would change the problem of a finished run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (["--num", "0"], "num_samples must be at least 1, got 0"),
        (["--populations", "1"], "populations must be at least 2, got 1"),
        (["--chains", "1"], "chains must be at least 2, got 1"),
        (["--r-hat", "1.0"], "r_hat must be above 1, got 1.0"),
        (["--max-seconds", "0"], "max_seconds must be positive, got 0.0"),
        (["--start", "here"], "start must be prior or posterior, got 'here'"),
        (["--output", "nowhere/x.npz"], "--output must be an .npz file in a directory that exists, got nowhere/x.npz"),
    ],
)
def test_settings_that_cannot_be_are_refused(config, capsys, flag, message):
    assert main(["sample", str(config), "--exact", *flag]) == 2
    assert capsys.readouterr().err == f"rtb: error: {message}\n"


def test_proposals_without_a_number_for_a_likelihood_are_counted_and_the_rest_is_sampled(monkeypatch):
    problem = make_problem("gaussian-linear", {"dim": 2, "measurement_dim": 1, "num_steps": 8})
    settings = ExactConfig(num_samples=20, chains=64, effective_samples=10, r_hat=2.0)
    sound = type(problem.likelihood).log_prob
    assert sample_exactly(problem, 0, settings).invalid == 0

    def fragile(self, value, measurement):
        broken = torch.where(value[:, 1] > 0, torch.nan, torch.inf)
        return torch.where(value[:, 0] > 0.5, broken, sound(self, value, measurement))

    monkeypatch.setattr(type(problem.likelihood), "log_prob", fragile)
    found = sample_exactly(problem, 0, settings)
    assert found.invalid > 0 and found.samples[:, 0].max() <= 0.5
    expected = f"{found.invalid} proposals were refused, as their log-likelihood was NaN or +inf"
    assert expected in found.lines() and found.figures()["invalid"] == found.invalid
