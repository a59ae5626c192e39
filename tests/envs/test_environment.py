import inspect
import re
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import FlattenObservation
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env

import envs
from envs.data import MissingDataError
from envs.environment import DenoisingEnv, DenoisingVectorEnv
from envs.registry import problem_factory, register

SMALL = {"dim": 2, "measurement_dim": 2, "num_steps": 10, "seed": 2}
DOCUMENT = Path(__file__).parents[2] / "docs" / "environments.md"


def finish(env):
    env.reset(seed=0)
    for _ in range(env.problem.num_steps):
        env.step(np.zeros(env.action_space.shape))


def few_steps(name):
    """Problems whose prior is costly to set up are quick with few steps."""
    return {"num_steps": 3} if "num_steps" in inspect.signature(problem_factory(name)).parameters else {}


def test_every_registered_problem_is_an_environment_in_one_piece_and_batched():
    for name in envs.problem_names():
        spec = gymnasium.spec(f"rtb/{name}")
        assert (spec.entry_point, spec.kwargs) == ("envs.environment:DenoisingEnv", {"problem": name})
    env = gymnasium.make_vec("rtb/gaussian-linear", num_envs=3, vectorization_mode="vector_entry_point", **SMALL)
    assert isinstance(env, DenoisingVectorEnv) and env.num_envs == 3 and env.problem.num_steps == 10
    assert isinstance(gymnasium.make("rtb/gaussian-linear", **SMALL).unwrapped, DenoisingEnv)


def test_a_problem_registered_from_outside_is_an_environment_at_once():
    @register("from-outside")
    def from_outside(*, noise_std: float = 0.7) -> envs.InverseProblem:
        return envs.make_problem("gaussian-linear", {"noise_std": noise_std, "num_steps": 5})

    try:
        env = gymnasium.make("rtb/from-outside", noise_std=0.9)
        assert env.unwrapped.problem.num_steps == 5 and env.unwrapped.problem.likelihood.noise_std == 0.9
    finally:  # other tests count the problems
        del envs.registry._FACTORIES["from-outside"], gymnasium.registry["rtb/from-outside"]
    with pytest.raises(ValueError, match="letters, digits"):
        register("a space")


@pytest.fixture
def buildable(name):
    """Skips a problem whose data are not on this machine."""
    try:
        envs.make_problem(name, few_steps(name))
    except MissingDataError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("buildable")
@pytest.mark.parametrize("name", envs.problem_names())
@pytest.mark.parametrize("reward", ["likelihood", "likelihood-kl"])
def test_gymnasiums_checker_has_nothing_to_say(name, reward):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Two recommendations that the mathematics cannot follow: states are unbounded, controls exceed 1.
        warnings.filterwarnings("ignore", message=".*A Box observation space (minimum|maximum) value is -?infinity")
        warnings.filterwarnings("ignore", message=".*recommend using a symmetric and normalized space")
        check_env(gymnasium.make(f"rtb/{name}", reward=reward, **few_steps(name)).unwrapped)


@pytest.mark.usefixtures("buildable")
@pytest.mark.parametrize("name", envs.problem_names())
def test_the_batched_environment_keeps_to_its_spaces_and_copies_what_it_hands_out(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make_vec(f"rtb/{name}", num_envs=4, **few_steps(name))
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    before = {key: value.copy() for key, value in observation.items()}
    steps = env.problem.num_steps
    for step in range(steps):
        assert observation in env.observation_space
        assert observation["step"] == pytest.approx(step / steps)
        following, reward, ended, truncated, info = env.step(env.action_space.sample())
        observation["state"][:] = np.nan  # must not reach the chains
        info["denoised"][:] = np.nan
        observation = following
        assert reward.shape == ended.shape == truncated.shape == (4,) and np.isfinite(reward).all()
    assert ended.all() and info["_log_likelihood"].all() and observation in env.observation_space
    env.reset(seed=0)
    repeated, *_ = env.reset(seed=0)
    assert all((repeated[key] == before[key]).all() for key in before)


def test_flattening_wrappers_of_gymnasium_apply():
    env = FlattenObservation(gymnasium.make("rtb/gaussian-linear", **SMALL))
    assert env.reset(seed=0)[0].shape == (2 + 1 + 2,)
    batch = gymnasium.wrappers.vector.FlattenObservation(gymnasium.make_vec("rtb/digits-half", num_envs=3, num_steps=3))
    assert batch.reset(seed=0)[0].shape == (3, 64 + 1 + 32)


def test_a_single_chain_is_a_batch_of_one():
    one, batch = DenoisingEnv("gaussian-linear", **SMALL), DenoisingVectorEnv("gaussian-linear", 1, **SMALL)
    (first, _), (second, _) = one.reset(seed=3), batch.reset(seed=3)
    for step in range(10):
        assert all((first[key] == second[key][0]).all() for key in first)
        control = np.array([0.1, -0.2 * step], dtype=np.float32)
        first, reward, ended, _, info = one.step(control)
        second, rewards, *_ = batch.step(control[None])
        assert reward == rewards[0] and ended == (step == 9)
    assert reward == pytest.approx(info["log_likelihood"] - 0.5 * (0.1**2 + 1.8**2), abs=1e-5)


def test_measurements_are_drawn_at_reset_or_fixed():
    single = envs.make_problem("gaussian-linear", SMALL)
    problem = envs.InverseProblem(
        name="three",
        prior=single.prior,
        likelihood=single.likelihood,
        measurements=torch.arange(6.0).reshape(3, 2),
    )
    env = DenoisingVectorEnv(problem, 300)
    observation, info = env.reset(seed=0)
    assert (np.bincount(info["measurement_id"]) > 70).all()
    assert (observation["measurement"] == problem.measurements[info["measurement_id"]].numpy()).all()
    assert not (env.reset()[1]["measurement_id"] == info["measurement_id"]).all()
    assert (env.reset(seed=0)[1]["measurement_id"] == info["measurement_id"]).all()
    fixed = DenoisingEnv(problem, measurement_id=2)
    assert fixed.reset()[0]["measurement"].tolist() == [4.0, 5.0]
    with pytest.raises(ValueError, match=r"within 0\.\.2, got 3"):
        DenoisingEnv(problem, measurement_id=3)


def test_the_step_after_the_end_starts_again_or_is_refused():
    env = gymnasium.make_vec("rtb/gaussian-linear", num_envs=2, **SMALL)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    finish(env)
    observation, reward, ended, _, _ = env.step(np.ones((2, 2)))
    assert (observation["step"] == 0).all() and (reward == 0).all() and not ended.any()
    manual = DenoisingVectorEnv("gaussian-linear", 2, autoreset_mode="Disabled", **SMALL)
    with pytest.raises(RuntimeError, match="call reset before"):
        manual.step(np.zeros((2, 2)))
    finish(manual)
    with pytest.raises(RuntimeError, match="ended after 10 steps"):
        manual.step(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="reset together"):
        manual.reset(options={"reset_mask": np.array([True, False])})
    manual.reset(options={"reset_mask": np.array([True, True])})


def test_wrong_actions_and_options_are_refused_by_name():
    env = DenoisingVectorEnv("gaussian-linear", 3, **SMALL)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=re.escape("shape (3, 2), got shape (2,)")):
        env.step(np.zeros(2))
    with pytest.raises(ValueError, match="got 2 NaN or infinite of 6 values"):
        env.step(np.array([[0, np.nan], [0, 0], [np.inf, 0]]))
    with pytest.raises(ValueError, match=re.escape("shape (3, 2), got 'up'")):
        env.step("up")
    single = DenoisingEnv("gaussian-linear", **SMALL)
    single.reset()
    with pytest.raises(ValueError, match=re.escape("shape (2,), got shape (3,)")):
        single.step(np.zeros(3))
    for options, message in [
        ({"nois_std": 1.0}, "did you mean 'noise_std'"),
        ({"reward": "likelihood_kl"}, "did you mean 'likelihood-kl'"),
        ({"control_bound": float("inf")}, "positive and finite, got inf"),
    ]:
        with pytest.raises(ValueError, match=message):
            gymnasium.make("rtb/gaussian-linear", **options)
    for options, message in [
        ({"num_envs": 0}, "at least 1, got 0"),
        ({"autoreset_mode": "SameStep"}, "got 'SameStep'"),
    ]:
        with pytest.raises(ValueError, match=message):
            DenoisingVectorEnv("gaussian-linear", **options)
    with pytest.raises(ValueError, match="options go with the name"):
        DenoisingEnv(env.problem, dim=3)


def test_an_import_prefix_makes_an_environment_in_a_fresh_process():
    script = "import gymnasium; print(gymnasium.make('envs:rtb/gmm-25-to-9').unwrapped.problem.num_steps)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "50"


def test_stable_baselines3_accepts_them_and_makes_them_by_name():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*recommend you to use a symmetric and normalized Box")
        sb3_check_env(gymnasium.make("rtb/gaussian-linear", **SMALL))
    with pytest.warns(UserWarning, match="render_mode='rgb_array'"):  # it asks every environment for pictures first
        made = make_vec_env("rtb/gaussian-linear", n_envs=2, env_kwargs=SMALL)
    assert made.reset()["state"].shape == (2, 2)


def test_the_snippets_of_the_document_run():
    snippets = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) == 5
    # One process of its own: they are read in order, and one of them registers a problem.
    done = subprocess.run([sys.executable, "-c", "\n".join(snippets)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "(7,)"
