"""What the benchmarks compute from finished runs."""

import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import (
    exact_evidence,
    exploration,
    harness,
    instruments,
    objectives,
    operators,
    problems,
    sbibm,
    stability,
    staleness,
)
from benchmarks.cox import cox_log_evidence
from benchmarks.digits_half import wait
from benchmarks.gaussian_linear import moments
from benchmarks.harness import Benchmark, Finished, peak_bytes, reset_peak_bytes
from benchmarks.path_search import mode_ratio, moment_ratios
from diffusion.denoiser import GaussianDenoiser
from diffusion.field_denoiser import hartley
from diffusion.prior import Prior
from envs import make_problem, problem_names
from envs.exact.chain import ChainPosterior
from envs.registry import problem_factory
from learner.objectives import OBJECTIVES
from system.assembly import build_actor, build_learner, build_problem
from system.config_file import load_config


@pytest.fixture
def draws(tmp_path):
    """Writes draws from a Gaussian like the exact posterior, but shifted or scaled; log-weights are normal."""

    def draws(seed, *, shift=0.0, scale=1.0, weight_std=0.0, count=4096):
        exact = make_problem("gaussian-linear", {"dim": 16}).exact[0]
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(count, 16, generator=generator, dtype=torch.float64)
        factor = torch.linalg.cholesky(exact.covariance)
        samples = exact.mean + (scale * noise + shift) @ factor.T
        log_weight = weight_std * torch.randn(count, generator=generator, dtype=torch.float64)
        path = tmp_path / f"{seed}.npz"
        np.savez(path, samples=samples.numpy(), log_weight=log_weight.numpy())
        return path

    return draws


@pytest.mark.parametrize("weight_std", [0.0, 1.0])
def test_the_moments_of_exact_draws_have_the_error_of_monte_carlo(draws, weight_std):
    """200 repetitions: standard errors of sqrt(2 / 16 / 200) = 2.5 % and sqrt(2 / 136 / 200) = 0.9 %.

    d^2 in the place of d (d + 1) would be 6 % off.
    """
    ratios = np.array([moments(draws(seed, weight_std=weight_std, count=2048)) for seed in range(200)])
    assert ratios[:, 0].mean() == pytest.approx(1, abs=0.1)
    assert ratios[:, 1].mean() == pytest.approx(1, abs=0.035)


def test_a_shift_or_a_scale_of_a_tenth_shows_in_the_moments(draws):
    """Expected: 1 + shift^2 N = 42 for the mean, and 1.21^2 + 0.21^2 N / (d + 1) = 12.1 for the covariance."""
    assert 30 < moments(draws(0, shift=0.1))[0] < 55
    scaled = moments(draws(0, scale=1.1))
    assert 9 < scaled[1] < 15


def test_without_weights_the_log_weights_play_no_part(draws):
    assert moments(draws(0, weight_std=1.0), weighted=False) == pytest.approx(moments(draws(0)), rel=1e-9)


def test_the_wait_leaves_out_the_first_twenty_seconds():
    """30 % of the first 25 s and 10 % of the 100 s in all is (10 - 7.5) / 75."""
    seconds = np.array([5.0, 25.0, 100.0])
    history = {"learner/wait": (np.arange(3), seconds, np.array([0.9, 0.3, 0.1]))}
    assert wait(history) == pytest.approx(2.5 / 75)


def test_exact_draws_have_the_errors_of_monte_carlo_in_the_path_search_benchmark(generator):
    """300 repetitions of 500 draws: standard errors of 4 % (mean), 2 % (covariance) and 5 % (modes)."""
    root = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    covariance, mean = root @ root.T + torch.eye(4), torch.arange(4.0, dtype=torch.float64)
    shares = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    ratios = []
    for _ in range(300):
        noise = torch.randn(500, 4, generator=generator, dtype=torch.float64)
        draws = mean + noise @ torch.linalg.cholesky(covariance).T
        rows = torch.multinomial(shares, 500, replacement=True, generator=generator)
        counted = torch.bincount(rows, minlength=3) / 500
        ratios.append((*moment_ratios(draws, mean, covariance, 500), mode_ratio(counted, shares, 500)))
    average = np.array(ratios).mean(0)
    assert average[0] == pytest.approx(1, abs=0.16)
    assert average[1] == pytest.approx(1, abs=0.08)
    assert average[2] == pytest.approx(1, abs=0.25)


def _benchmark(tmp_path, **changes):
    return Benchmark(**{"short": False, "json": None, "out": tmp_path, "jobs": 1, **changes})


def test_every_run_of_the_exploration_benchmark_is_of_a_kind_that_its_problem_admits(tmp_path):
    plan = exploration.planned(_benchmark(tmp_path))
    assert len(plan) == 3 * (12 + 7) and len({run.name for run in plan}) == len(plan)
    problems = {}
    for run in plan[: 12 + 7]:
        config = load_config(run.config, list(run.overrides))
        problem = problems.setdefault(config.problem.name, build_problem(config))
        actor = build_actor(config, problem)
        assert set(actor.config.kinds) == {"on-policy"} | set(config.actor.mixture)
        assert run.name.removesuffix("-seed0").endswith(tuple(config.actor.mixture))


def test_every_run_of_the_objectives_benchmark_has_an_objective_that_its_problem_admits(tmp_path):
    plan = objectives.planned(_benchmark(tmp_path))
    assert len(plan) == 5 * 3 * 10 and len({run.name for run in plan}) == len(plan)
    assert set(objectives.OBJECTIVES) == set(OBJECTIVES)
    problems = {}
    for run in plan[:30]:
        config = load_config(run.config, list(run.overrides))
        problem = problems.setdefault(config.problem.name, build_problem(config))
        assert build_learner(config, problem).config.objective == config.learner.objective
        assert run.name.removesuffix("-seed0").endswith(config.learner.objective)


def test_every_instrument_is_a_case_of_the_problems(tmp_path):
    plan = problems.planned(_benchmark(tmp_path), instruments.INSTRUMENTS)
    assert [run.name for run in plan] == [f"{name}-seed0" for name in instruments.INSTRUMENTS]
    assert [load_config(run.config).problem.name for run in plan] == list(instruments.INSTRUMENTS)
    documented = Path("docs/instruments.md").read_text()
    assert all(f"`{name}`" in documented for name in instruments.INSTRUMENTS)


def test_the_peak_of_the_memory_can_be_forgotten():
    reset_peak_bytes()  # an earlier test of this process may have had more
    before = peak_bytes()
    held = np.ones(40_000_000)  # 320 MB
    high = peak_bytes()
    assert high > before
    del held
    reset_peak_bytes()
    assert peak_bytes() < high - 200_000_000


def test_every_run_of_the_stability_benchmark_is_planned_and_loads(tmp_path):
    plan = stability.planned(_benchmark(tmp_path))
    assert len(plan) == 12 * 7 + 8 * 9 and len({run.name for run in plan}) == len(plan)
    short = stability.planned(_benchmark(tmp_path / "short", short=True))
    assert len(short) == 7 + 9 and load_config(short[0].config, []).max_seconds == 15
    configs = {path.stem: load_config(path, []) for path in {run.config for run in plan}}
    assert len(configs) == 7 + 9
    assert {config.max_seconds for config in configs.values()} == {90.0}
    assert configs["digits-half-hard"].problem.options["noise_std"] == 0.05
    assert configs["manywell"].learner.guard.factor == 10
    off = configs["manywell-without-exploration"]
    assert set(off.actor.mixture) == {"on-policy"} and off.replay == configs["manywell"].replay
    off = configs["manywell-without-replay"]
    assert (off.replay.newest_share, off.replay.samples_per_insert, off.learner.pretraining.until) == (1, 1, 0)
    assert off.actor == configs["manywell"].actor
    off = configs["manywell-without-guard"]
    assert off.learner.guard.factor is None and off.replay == configs["manywell"].replay


def test_a_diverged_run_counts_and_has_an_endless_gap():
    metrics = {"eval/elbo": -3.0, "eval/exact_log_partition": -1.0, "eval/effective_sample_size": 0.5}
    good = Finished(
        name="a", metrics=defaultdict(lambda: math.nan, metrics), training={}, cpu_seconds=1, diverged=False
    )
    bad = Finished(name="b", metrics=defaultdict(lambda: math.nan), training={}, cpu_seconds=1, diverged=True)
    figures = stability.row("both", [good, bad, good])
    assert (figures["diverged"], figures["runs"], figures["gap"], figures["gap_max"]) == (1, 3, 2, math.inf)


def test_the_actor_of_a_lagging_runner_has_weights_of_so_many_updates_ago():
    flags = ["--problem.dim", "2", "--updates", "40", "--learner.warmup-updates", "0", *staleness.ONCE]
    config = load_config(staleness.CONFIG, flags)
    versions = {}
    for lag in (0, 8):
        runner = staleness.LaggingRunner(config, build_problem(config), lag)
        seen = versions[lag] = []
        load = runner.actor.load_weights

        def watched(weights, version, progress, load=load, seen=seen, runner=runner):
            seen.append((runner.learner.updates, version))
            load(weights, version, progress)

        runner.actor.load_weights = watched
        while not runner.finished:
            runner.advance()
    assert all(now == version for now, version in versions[0])
    late = [now - version for now, version in versions[8] if now >= 20]
    assert min(late) >= 8 and max(late) <= 12


def test_what_is_known_is_not_made_again_and_comes_in_the_order_asked_for(tmp_path):
    (tmp_path / "results.json").write_text('{"b": NaN, "other": 1}')
    benchmark = _benchmark(tmp_path, jobs=2)
    made = harness.collect(benchmark, {"a": (math.sqrt, 4.0), "b": (math.sqrt, -1.0), "c": (math.sqrt, 9.0)})
    assert list(made) == ["a", "b", "c"] and made["a"] == 2 and math.isnan(made["b"]) and made["c"] == 3
    assert json.loads((tmp_path / "results.json").read_text())["other"] == 1
    made = harness.collect(benchmark, {name: (math.sqrt, -1.0) for name in "ca"})
    assert made == {"c": 3, "a": 2}


def test_a_run_that_the_guard_ended_is_a_row_and_one_that_ended_by_itself_has_its_metrics(tmp_path):
    base = ("--updates", "200", "--problem.dim", "2", "--problem.measurement-dim", "1")
    bad = (*base, "--learner.learning-rate", "1e9", "--learner.guard.max-rollbacks", "0")
    config = Path("configs/experiments/gaussian_linear.yaml")
    plan = harness.by_seed(config, [0], "good", base) + harness.by_seed(config, [0], "bad", bad)
    for _ in range(2):  # made, then read again
        good, ended = harness.run_all(_benchmark(tmp_path), plan)
        assert not good.diverged and good.metrics["eval/elbo"] < 0 and good.last("learner/updates") == 200
        assert good.cpu_seconds > 0 and math.isnan(good.last("learner/nothing"))
        assert ended.diverged and math.isnan(ended.metrics["eval/elbo"])


@pytest.mark.parametrize(("exact", "expected"), [(-3.0, 2.0), (math.nan, 1.5)])
def test_the_gap_is_to_the_best_log_z_known_and_infinite_for_a_run_that_diverged(exact, expected):
    metrics = {"eval/exact_log_partition": exact, "eval/iw_log_partition": -3.5, "eval/elbo": -5.0}
    for diverged in (False, True):
        run = Finished(name="", metrics=metrics, training={}, cpu_seconds=0.0, diverged=diverged)
        assert harness.elbo_gap(run) == (math.inf if diverged else expected)


def test_the_tempered_evidence_of_the_cox_process_is_that_of_quadrature():
    """Against the trapezoidal rule over four cells, each 7 posterior standard deviations to both sides."""
    problem = make_problem("lgcp", {"grid": 2, "num_steps": 5}).at(torch.tensor([[35.0, 12.0, 80.0, 20.0]]))
    prior, counts = problem.prior.denoiser, problem.measurements[0].double()
    steps = torch.linspace(-7, 7, 29, dtype=torch.float64)
    axes = [(4 * count).log() + steps / count.sqrt() for count in counts]
    value = torch.cartesian_prod(*axes)
    covariance = (prior.eigenvectors * prior.eigenvalues) @ prior.eigenvectors.T
    log_prior = torch.distributions.MultivariateNormal(prior.mean, covariance).log_prob(value)
    log_likelihood = torch.distributions.Poisson(value.exp() / 4).log_prob(counts).sum(1)
    cell = math.log(math.prod(float(axis[1] - axis[0]) for axis in axes))
    exact = float((log_prior + log_likelihood).logsumexp(0)) + cell
    found = [cox_log_evidence(problem, population=512, levels=10, seed=seed) for seed in range(10)]
    assert np.mean(found) == pytest.approx(exact, abs=4 * np.std(found) / math.sqrt(10)) and np.std(found) < 0.02
    with pytest.raises(TypeError, match="the problem must be lgcp"):
        cox_log_evidence(make_problem("gmm-25"))


def test_no_problem_is_only_registered():
    shipped = {name for name in problem_names() if problem_factory(name).__module__.startswith("envs.")}
    assert set(problems.CASES) == shipped  # other tests register problems of their own


def test_a_problem_is_fine_only_if_it_rose_and_keeps_what_can_be_checked():
    def run(name="image-inpainting", diverged=False, **metrics):
        values = {"elbo": -10.0, "iw_log_partition": -9.0, "exact_log_partition": -9.5, "reduced_chi2": 1.6}
        values |= {"corrected/reduced_chi2": 1.1} | metrics
        given = defaultdict(lambda: math.nan, {f"eval/{key}": value for key, value in values.items()})
        return Finished(name=f"{name}-seed0", metrics=given, training={}, cpu_seconds=1.0, diverged=diverged)

    assert problems.log_partition_error(run()) == pytest.approx(0.5 / 0.74)  # 64 dimensions
    assert problems.is_fine(run(), before=-20.0)
    assert not problems.is_fine(run(), before=-9.9)
    assert not problems.is_fine(run(diverged=True), before=-20.0)
    assert not problems.is_fine(run(exact_log_partition=-9.8), before=-20.0)
    assert not problems.is_fine(run(**{"corrected/reduced_chi2": 1.25}), before=-20.0)
    assert problems.is_fine(run(exact_reduced_chi2=1.3, **{"corrected/reduced_chi2": 1.25}), before=-20.0)
    assert not problems.is_fine(run(exact_reduced_chi2=1.31), before=-20.0)
    assert problems.is_fine(run(exact_log_partition=math.nan), before=-20.0)
    assert problems.is_fine(run("digits-half", **{"corrected/reduced_chi2": 3.0}), before=-20.0)  # of a real digit
    assert not problems.is_fine(run(elbo=math.nan), before=-20.0)
    assert not problems.is_fine(run(**{"corrected/reduced_chi2": math.nan}), before=-20.0)  # none could be corrected


def test_the_chains_own_evidence_of_a_field_is_that_of_its_dense_covariance():
    """Against the closed form of the whole chain, 36 dimensions at once."""
    problem = make_problem("gaussian-field", {"size": 6, "blur": 0.6, "num_steps": 7})
    prior, power = problem.prior, problem.prior.denoiser.power
    unit = torch.eye(36, dtype=torch.float64).reshape(36, 1, 6, 6)
    covariance = hartley(power * hartley(unit)).flatten(1)
    dense = Prior(GaussianDenoiser(torch.zeros(36), covariance), prior.schedule, (36,), prior.uncertainty.square())
    likelihood = problem.likelihood
    chain = ChainPosterior(
        dense, likelihood.operator.as_matrix(), likelihood.noise_std, problem.measurements[0].flatten()
    )
    assert exact_evidence.chain_log_partition(problem) == pytest.approx(chain.log_partition, abs=1e-8)
    assert abs(problem.exact[0].log_partition - chain.log_partition) > 0.1  # they are not the same
    assert math.isnan(exact_evidence.chain_log_partition(make_problem("gaussian-linear")))


def test_every_run_of_the_exact_evidence_benchmark_loads(tmp_path):
    plan = exact_evidence.planned(_benchmark(tmp_path))
    assert {run.name.rsplit("-seed", 1)[0] for run in plan} == set(exact_evidence.CASES)
    for run in plan[: len(exact_evidence.CASES)]:
        config = load_config(run.config, list(run.overrides))
        case = exact_evidence.CASES[run.name.removesuffix("-seed0")]
        assert (config.max_seconds, config.evaluation.final_trajectories) == (case.seconds, case.paths)
        assert config.problem.options.items() >= {k: v for k, v in case.options.items() if k != "name"}.items()
    short = exact_evidence.planned(_benchmark(tmp_path / "short", short=True))
    assert load_config(short[0].config).max_seconds == 15 and len(short) < len(plan) / 3


@pytest.mark.parametrize("size", [16])
def test_every_operator_is_the_one_that_other_libraries_compute(size):
    rows = operators.measure(size, 2, repeats=1)
    compared = {row.operator for row in rows}
    assert compared == set(operators.cases(size)) and len(rows) > 2 * len(compared)
    assert max(row.difference for row in rows) < 1e-9


def test_the_figures_of_the_sbibm_benchmark_are_means_over_observations():
    row = {"c2st_drawn": 0.7, "c2st_corrected": 0.5, "ess": 0.2, "seconds_drawn": 1.0, "seconds_corrected": 2.0}
    result = {"training": 10.0, "halves": 0.5, "1": row, "2": row | {"c2st_corrected": 0.6}}
    figures = sbibm.figures_of({"slcp": result})
    assert figures["slcp_c2st_corrected"] == pytest.approx(0.55) and figures["slcp_c2st_corrected_max"] == 0.6
    assert (figures["slcp_cpu_seconds"], figures["tasks_ok_corrected"], figures["tasks_ok_drawn"]) == (16, 1, 0)
