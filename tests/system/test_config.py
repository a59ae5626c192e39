"""What a configuration refuses, in which words; and that what it accepts survives being written and read."""

import dataclasses
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml

from diffusion.denoiser import NetworkDenoiser
from diffusion.prior import Prior
from system.assembly import build_posterior, build_problem, stream_seed
from system.config import EvaluationConfig, RayConfig, RunConfig
from system.config_file import import_plugins, load_config
from system.errors import ConfigError
from system.flags import help_text

EXPERIMENTS = Path(__file__).parents[2] / "configs" / "experiments"


@pytest.fixture
def load(tmp_path):
    """Loads a configuration given as text, with flags."""

    def call(text="", *flags):
        path = tmp_path / "run.yaml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return load_config(path, flags)

    return call


@pytest.fixture
def refusal(load):
    """The one line a configuration is refused with, without the file's path."""

    def call(text="", *flags):
        with pytest.raises(ConfigError) as caught:
            load(text, *flags)
        line = str(caught.value).split("run.yaml: ")[-1]
        assert "\n" not in line and len(line) < 250
        return line

    return call


# --- YAML ---


def test_an_empty_file_is_the_default_configuration(load):
    config = load("")
    assert (config.seed, config.updates, config.learner.batch_size) == (0, 2_000, 64)
    assert config.problem.name == "digits-half" and config.problem.options["digit"] == 20


def test_sections_keys_and_problem_options_are_taken_from_the_file(load):
    config = load(
        """
        name: mine
        updates: 7
        max_seconds: 5
        problem: {name: gaussian-linear, dim: 3, noise_std: 2}
        learner: {learning_rate: 1e-3, loss: square, objective: rtb}
        actor:
          mixture: {prior: 1}
        """
    )
    assert (config.name, config.updates, config.max_seconds) == ("mine", 7, 5.0)
    assert config.problem.options["dim"] == 3 and config.problem.options["noise_std"] == 2.0
    assert config.learner.learning_rate == 0.001 and config.learner.loss == "square"
    assert config.actor.mixture == {"prior": 1.0}
    assert type(config.max_seconds) is type(config.problem.options["noise_std"]) is float


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "1E-3", "0.001", "'1e-3'"])
def test_every_spelling_of_a_thousandth_is_a_thousandth(load, text):
    assert load(f"learner: {{learning_rate: {text}}}").learner.learning_rate == 0.001


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("updats: 3", "unknown key 'updats'; did you mean 'updates'?"),
        ("learner: {learning_rat: 3}", "unknown key 'learner.learning_rat'; did you mean 'learning_rate'?"),
        ("data: {name: digits}", "describes the training of a prior, which `rtb prior train` reads"),
        ("problem: {name: gaussian-linear, dimm: 3}", "unknown key 'problem.dimm'; did you mean 'dim'?"),
        (
            "checkpoint: {zzz: 3}",
            "unknown key 'checkpoint.zzz'; expected one of interval_seconds, keep",
        ),
        ("problem: {name: gausian-linear}", "problem.name: unknown problem 'gausian-linear'; did you mean"),
        ("problem: {name: 3}", "problem.name must be text, got 3"),
        ("problem: null", "problem must be a mapping with a name, got None"),
        ("problem: gaussian-linear", "problem must be a mapping with a name, got 'gaussian-linear'"),
        ("learner: 3", "learner must be a mapping, got 3"),
        ("learner: null", "learner must be a mapping, got None"),
        ("actor: {mixture: [1]}", "actor.mixture must be a mapping, got [1]"),
        ("updates: 1.5", "updates must be int, got 1.5"),
        ("updates: 1e3", "updates must be int, got '1e3'"),
        ("updates: true", "updates must be int, got True"),
        ("name: 3", "name must be str, got 3"),
        ("learner: {loss_scale: yes}", "learner.loss_scale must be float, got True"),
        ("learner: {learning_rate: fast}", "learner.learning_rate must be float, got 'fast'"),
        ("learner: {batch_size: null}", "learner.batch_size must be int, got None"),
        (
            "posterior: {likelihood_gradient: 1}",
            "posterior.likelihood_gradient must be one of none, estimate, state, pseudoinverse, covariance, repeated, "
            "repeated-covariance, variational, got 1",
        ),
        ("runner: mpi", "runner must be one of local, ray, got 'mpi'"),
        ("replay: {priority: best}", "replay.priority must be one of uniform, residual, likelihood, importance, rank"),
        ("plugins: mine", "plugins must be a list of module names, got 'mine'"),
        ("plugins: [3]", "plugins must be a list of module names, got [3]"),
        (
            "plugins: [no_such_module]",
            "plugins: cannot import 'no_such_module': module 'no_such_module' is neither in the current folder nor",
        ),
    ],
)
def test_a_key_or_type_that_does_not_fit_is_refused_by_name(refusal, text, message):
    assert refusal(text).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("updates: 0", "updates must be at least 1, got 0"),
        ("seed: -1", "seed must not be negative, got -1"),
        ("{runner: ray, clock: cpu}", "clock cpu is the processor time of one process: runner must be local, got ray"),
        ("max_seconds: 0", "max_seconds must be positive or null, got 0.0"),
        ("max_likelihood_calls: 0", "max_likelihood_calls must be null or at least 256, to make one rollout"),
        (
            "{max_likelihood_calls: 500, actor: {batch_size: 512}}",
            "max_likelihood_calls must be null or at least 512, to make one rollout (actor.batch_size = 512) and learn "
            "from it (replay.min_size = 256), got 500",
        ),
        ("learner: {learning_rate: -1}", "learner.learning_rate must be positive, got -1.0"),
        ("learner: {learning_rate: .nan}", "learner.learning_rate must be positive, got nan"),
        ("actor: {mixture: {prior: 0.5}}", "the shares of actor.mixture must be non-negative and sum to 1, got"),
        ("replay: {min_size: 0}", "replay: min_size must be at least 1, got 0"),
        (
            "{replay: {tolerance: 1}, actor: {batch_size: 16}, learner: {batch_size: 32}}",
            "tolerance must be at least 48.0 for inserts of 16, samples of 32",
        ),
        ("replay: {group_size: 3}", "learner.batch_size must be a multiple of replay.group_size = 3, got 64"),
        ("learner: {forward_kl: 1}", "replay.priority must be importance, got uniform"),
        ("learner: {objective: mle}", "objective mle needs paths that stand for the posterior: replay.priority import"),
        (
            "{learner: {objective: adjoint_matching}, actor: {mixture: {prior: 1}}}",
            "must be on-policy alone, got on-policy, prior",
        ),
        (
            "{learner: {objective: path_kl, forward_kl: 1}, replay: {priority: importance}}",
            "learner.forward_kl has no part in objective path_kl: set it to 0, got 1.0",
        ),
        (
            "learner: {objective: path_kl, steps_per_path: 5}",
            "learner.steps_per_path has no part in objective path_kl, which takes all transitions: set it to null, ",
        ),
        (
            "actor: {mixture: {joint: 1}}",
            "joint have no residual and are learned from by learner.forward_kl alone, which",
        ),
        (
            "{posterior: {likelihood_gradient: variational}, actor: {mixture: {annealed-measurement: 1}}}",
            "turn off what makes others (actor.mixture annealed-measurement), or take the guide repeated",
        ),
        (
            "{posterior: {likelihood_gradient: variational}, actor: {simulated_measurements: 32}, "
            "learner: {forward_kl: 1}, replay: {priority: importance}}",
            "turn off what makes others (actor.simulated_measurements), or",
        ),
        (
            "{posterior: {likelihood_gradient: variational}, evaluation: {calibration_pairs: 10}}",
            "turn off what makes others (evaluation.calibration_pairs), or",
        ),
        (
            "posterior: {likelihood_gradient: variational}\nreplay: {priority: uniform}\n"
            "actor: {mixture: {joint: 1}}\nlearner: {pretraining: {until: 0.5, fresh_measurements: true}}",
            "turn off what makes others (actor.mixture joint, learner.pretraining.fresh_measurements), or",
        ),
        ("actor: {final_mixture: {joint: 1}}", "which is 0; raise it, or leave joint out of the mixture"),
        (
            "{actor: {simulated_measurements: 8}, replay: {group_size: 4}, learner: {objective: rtb}}",
            "objective rtb needs log Z of simulated measurements: set learner.log_partition to network",
        ),
        (
            "{actor: {simulated_measurements: 8}}",
            "simulated ones have 8 each: replay.group_size must be within 2..8, got 1",
        ),
        (
            "{actor: {simulated_measurements: 8}, replay: {group_size: 4, priority: importance}}",
            "replay.priority importance compares many trajectories of one measurement, of which",
        ),
        (
            "{actor: {simulated_measurements: 8}, learner: {objective: ppo_kl}}",
            "objective ppo_kl needs the density that trajectories were drawn from",
        ),
        (
            "{actor: {simulated_measurements: 8}, replay: {evict_by: likelihood}}",
            "simulated measurements need replay.evict_by age",
        ),
        (
            "learner: {pretraining: {until: 0.5, fresh_measurements: true}}\nactor: {mixture: {on-policy: 1}}",
            "fresh_measurements are of x of the prior: give actor.mixture a share of joint or prior, got on-policy",
        ),
        (
            "learner: {pretraining: {until: 0.5, fresh_measurements: true}}\n"
            "actor: {mixture: {joint: 1}}\nreplay: {priority: residual}",
            "fresh_measurements needs x as the prior has them: replay.priority must be uniform or reshuffled, got",
        ),
        (
            "actor: {mixture: {joint: 1}, final_mixture: {joint: 1}}\n"
            "learner: {forward_kl: 1}\nreplay: {priority: residual}",
            "replay.priority must be importance or reshuffled or uniform, got residual",
        ),
        (
            "actor: {mixture: {joint: 1}, final_mixture: {joint: 1}}\n"
            "learner: {objective: mle}\nreplay: {priority: likelihood}",
            "or actor mixtures of joint alone and priority uniform; got likelihood, 0.5 and joint",
        ),
        ("actor: {batch_size: 1, mixture: {path-search: 1}}", "actor.batch_size must be at least 2 for path-search"),
        ("evaluation: {trajectories: 0}", "evaluation.trajectories must be at least 2, got 0"),
        ("checkpoint: {keep: 0}", "checkpoint.keep must be at least 1, got 0"),
        ("checkpoint: {interval_seconds: -1}", "checkpoint.interval_seconds must be at least 0, got -1.0"),
        ("ray: {num_actors: 0}", "ray.num_actors must be at least 1, got 0"),
        ("ray: {slice_seconds: 0}", "ray.slice_seconds must be above 0, got 0.0"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(refusal, text, message):
    assert message in refusal(text)


def test_a_nan_is_never_within_a_limit():
    with pytest.raises(ValueError, match=r"evaluation\.interval_seconds must be at least 0, got nan"):
        EvaluationConfig(interval_seconds=float("nan"))
    with pytest.raises(ValueError, match=r"ray\.timeout_seconds must be above 0, got nan"):
        RayConfig(timeout_seconds=float("nan"))


@pytest.mark.parametrize(("text", "kind"), [("- a\n- b\n", "list"), ("just text", "str"), ("3", "int")])
def test_a_file_that_is_not_a_mapping_is_refused(load, text, kind):
    with pytest.raises(ConfigError, match=rf"run\.yaml must hold a mapping of sections, got {kind}"):
        load(text)


def test_a_file_that_is_not_yaml_is_refused_on_one_line_that_says_where(load, tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*run.yaml as YAML: .*line 1, column 10") as caught:
        load("learner: [1\n")
    assert "\n" not in str(caught.value)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"cannot read .*binary\.yaml as YAML"):
        load_config(tmp_path / "binary.yaml")
    with pytest.raises(ConfigError, match=r"cannot read .* as YAML: .*directory"):
        load_config(tmp_path)


def test_yaml_that_would_build_objects_is_refused(load):
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        load("name: !!python/object/apply:os.getcwd []")


def test_a_missing_file_points_to_the_ones_that_ship():
    with pytest.raises(ConfigError, match=r"no configuration file no\.yaml; .* are in configs/experiments/"):
        load_config(Path("no.yaml"))


# --- flags ---


def test_flags_win_over_the_file_and_the_last_of_two_wins(load):
    text = "updates: 5\nlearner: {batch_size: 32, learning_rate: 0.5}"
    config = load(text, "--updates", "9", "--learner.batch-size", "16", "--updates", "11")
    assert (config.updates, config.learner.batch_size, config.learner.learning_rate) == (11, 16, 0.5)


@pytest.mark.parametrize("flags", [("--problem.dim", "5"), ("--problem.dim=5",), ("--problem.dim=5", "--seed", "1")])
def test_flags_may_be_one_word_or_two(load, flags):
    config = load("problem: {name: gaussian-linear, noise_std: 0.25}", *flags)
    assert config.problem.options["dim"] == 5 and config.problem.options["noise_std"] == 0.25


@pytest.mark.parametrize("flags", [("--problem.name", "gmm-linear"), ("--problem.name=gmm-linear",)])
def test_another_problem_by_flag_has_its_own_options(load, flags):
    config = load("problem: {name: gaussian-linear, dim: 3}", *flags, "--problem.modes", "5")
    assert config.problem.name == "gmm-linear"
    assert config.problem.options["modes"] == 5 and config.problem.options["dim"] == 16
    assert "measurement_dim" not in config.problem.options


def test_switches_nulls_and_shares_can_be_given_as_flags(load):
    config = load(
        "", "--actor.no-store-denoised", "--learner.guard.factor", "null", "--max-seconds", "None",
        "--actor.mixture.on-policy", "0.9", "--actor.mixture.prior", "0.0",
    )  # fmt: skip
    assert config.actor.store_denoised is False
    assert config.learner.guard.factor is None and config.max_seconds is None
    assert config.actor.mixture == {"on-policy": 0.9, "noise-inflated": 0.1, "prior": 0.0}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--learner.learning-rat", "3"),
            "command line: unknown option --learner.learning-rat; did you mean --learner.learning-rate?",
        ),
        (("--updats", "3"), "command line: unknown option --updats; did you mean --updates?"),
        (("--problem.dimm", "3"), "command line: unknown option --problem.dimm; did you mean --problem.dim?"),
        (("--qqqqqqqq", "3"), "command line: unknown option --qqqqqqqq; `rtb train CONFIG --help` lists them all"),
        (("--updates", "1.5"), "command line: invalid value '1.5' for --updates; expected INT"),
        (
            ("--learner.learning-rate", "fast"),
            "command line: invalid value 'fast' for --learner.learning-rate; expected FLOAT",
        ),
        (("--updates",), "command line: Missing value for argument '--updates'."),
        (("--updates", "0"), "command line: updates must be at least 1, got 0"),
        (("--runner", "mpi"), "command line: invalid choice 'mpi' for argument '--runner'"),
        (("--learner.learning-rate", "-1"), "command line: learner: learner.learning_rate must be positive, got -1.0"),
        (("--replay.min-size", "0"), "command line: replay: min_size must be at least 1, got 0"),
        (("--checkpoint.keep", "0"), "command line: checkpoint: checkpoint.keep must be at least 1, got 0"),
        (("--problem.name", "gausian"), "command line: problem.name: unknown problem 'gausian'; did you mean"),
        (("--plugins", "no_such_module"), "plugins: cannot import 'no_such_module'"),
    ],
)
def test_a_flag_that_does_not_fit_is_refused_on_one_short_line(refusal, flags, message):
    assert refusal("problem: {name: gaussian-linear}", *flags).startswith(message)


def test_every_key_is_a_flag_in_the_help_with_its_meaning_and_the_files_value_as_default(load, tmp_path):
    load("updates: 123\nproblem: {name: gmm-25-to-9}")
    text = help_text(tmp_path / "run.yaml")
    flags = " ".join(text.split())
    assert "--learner.learning-rate FLOAT Adam's step size after warm-up. (default: 0.001)" in flags
    assert "--updates INT Optimiser steps; schedules run over them. (default: 123)" in flags
    for section in dataclasses.fields(RunConfig):
        assert f"--{section.name.replace('_', '-')}" in flags


# --- writing, assembling ---


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_written_configuration_reads_back_as_the_same(path, tmp_path):
    config = load_config(path, ["--learner.guard.factor", "null", "--plugins", "json", "string"])
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config
    tree = yaml.safe_load(config.to_yaml())
    assert tree["plugins"] == ["json", "string"] and "options" not in tree["problem"]


def test_forward_kl_is_refused_with_end_points_and_with_a_mixture_of_priorities(refusal):
    text = "learner: {{forward_kl: 0.1}}\nreplay: {{priority: {}, store: {}}}"
    assert "paths noised anew from end points are not exactly" in refusal(text.format("importance", "endpoints"))
    assert "replay.priority must be importance" in refusal(text.format("{importance: 0.5, rank: 0.5}", "paths"))


def test_a_priority_is_one_name_or_several_with_their_shares_in_the_file_and_as_a_flag(load):
    assert load("replay: {priority: importance}").replay.priorities == {"importance": 1.0}
    text = "replay: {priority: {residual: 0.5, rank: 0.5}}"
    assert load(text).replay.priorities == {"residual": 0.5, "rank": 0.5}
    assert load(text, "--replay.priority", "rank").replay.priorities == {"rank": 1.0}
    flags = ["--replay.priority", "residual", "0.25", "rank", "0.75"]
    assert load("replay: {priority: uniform}", *flags).replay.priorities == {"residual": 0.25, "rank": 0.75}


def test_the_shard_gets_the_batch_sizes_of_actors_and_learner_unless_told_otherwise(load):
    config = load("actor: {batch_size: 48}\nlearner: {batch_size: 96}\nreplay: {insert_batch: 128}")
    assert config.shard_config().insert_batch == 128 and config.shard_config().sample_batch == 96
    assert load("actor: {batch_size: 48}").shard_config().insert_batch == 48


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("noise_std: 0", "problem 'gaussian-linear': noise_std must be a positive finite standard deviation, got 0.0"),
        (
            "noise_std: -1",
            "problem 'gaussian-linear': noise_std must be a positive finite standard deviation, got -1.0",
        ),
        ("noise_std: .inf", "noise_std must be a positive finite standard deviation, got inf"),
        ("noise_std: .nan", "noise_std must be a positive finite standard deviation, got nan"),
        ("measurement_dim: 17", r"measurement_dim must be within 1..dim = 16, got 17"),
        ("num_steps: 0", "num_steps|at least"),
        ("schedule: fast", "schedule 'fast'"),
    ],
)
def test_a_problem_that_cannot_be_is_refused_with_its_name(load, options, message):
    with pytest.raises(ConfigError, match=message):
        build_problem(load(f"problem: {{name: gaussian-linear, {options}}}"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("form: lora, rank: 0", "posterior: posterior.rank must be at least 1, got 0"),
        ("form: finetune", "posterior: the finetune form trains a copy of the prior's network, but GaussianDenoiser"),
        ("network: unet", r"posterior: a U-Net needs x of shape \[C, H, W\], got \(16,\)"),
        ("network: rnn", "posterior: unknown network 'rnn'"),
        ("hidden: 0", "posterior: an MLP needs depth and hidden of at least 1, got 3 and 0"),
    ],
)
def test_a_posterior_that_cannot_be_is_refused(load, options, message):
    config = load(f"problem: {{name: gaussian-linear}}\nposterior: {{{options}}}")
    with pytest.raises(ConfigError, match=message):
        build_posterior(config, build_problem(config))


class _Blind(torch.nn.Linear):
    """A network without `add_measurement`."""

    def __init__(self):
        super().__init__(3, 3)

    def forward(self, value, level):
        return super().forward(value)


def test_a_posterior_that_does_not_see_the_measurement_is_refused_for_two(load, network_prior):
    config = load("posterior: {form: finetune}")
    problem = build_problem(load("problem: {name: gaussian-linear, dim: 3, measurement_dim: 2}"))
    blind = NetworkDenoiser(_Blind()).requires_grad_(False)
    problem = dataclasses.replace(problem, prior=Prior(blind, network_prior.schedule, (3,)), exact=())
    assert not build_posterior(config, problem).sees_measurement
    two = dataclasses.replace(problem, measurements=problem.measurements.repeat(2, 1))
    with pytest.raises(ConfigError, match=r"does not see y, but the problem has 2 measurements; use form control"):
        build_posterior(config, two)


def test_a_plugin_that_fails_in_its_own_way_is_named_with_its_error(refusal, tmp_path, monkeypatch):
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('no telescope')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert "plugins: cannot import 'broken_plugin': RuntimeError: no telescope" in refusal("plugins: [broken_plugin]")


def test_streams_of_roles_indices_and_seeds_differ_and_are_the_same_every_time(load):
    config, other = load("seed: 1"), load("seed: 2")
    seeds = [
        stream_seed(each, role, index)
        for each in (config, other)
        for role in ("actor", "replay", "posterior")
        for index in range(3)
    ]
    assert len(set(seeds)) == 18 and all(0 <= seed < 2**63 for seed in seeds)
    assert stream_seed(load("seed: 1"), "actor", 2) == stream_seed(config, "actor", 2)


def test_a_key_that_is_given_twice_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("seed: 1\nupdates: 5\nseed: 2\n")
    with pytest.raises(ConfigError, match="key 'seed' is given twice"):
        load_config(path)


def test_a_plug_in_is_found_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "a_plug_in_here.py").write_text("IMPORTED = True\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    import_plugins(["a_plug_in_here"])
    assert sys.modules.pop("a_plug_in_here").IMPORTED
    with pytest.raises(ConfigError, match=r"module 'no_such_plug_in' is neither in the current folder nor"):
        import_plugins(["no_such_plug_in"])
