import inspect

import pytest

from envs import InverseProblem, make_problem, problem_names, registry
from envs.problem import InverseProblem as Problem


@pytest.fixture
def empty_registry(monkeypatch):
    """A registry of its own, so that names made up here do not outlive the test."""
    monkeypatch.setattr(registry, "_FACTORIES", {})
    if hasattr(registry, "_LISTENERS"):
        monkeypatch.setattr(registry, "_LISTENERS", [])


def test_the_shipped_problems_are_registered_in_order():
    assert {"digits-half", "gaussian-linear", "gmm-25-to-9", "gmm-linear"} <= set(problem_names())
    assert list(problem_names()) == sorted(problem_names())


def test_options_reach_the_factory():
    problem = make_problem("gaussian-linear", {"dim": 3, "measurement_dim": 1, "num_steps": 4})
    assert isinstance(problem, InverseProblem)
    assert (problem.event_shape, problem.num_steps, tuple(problem.measurements.shape)) == ((3,), 4, (1, 1))


@pytest.mark.parametrize("name", ["digits-half", "gaussian-linear", "gmm-25-to-9", "gmm-linear"])
def test_every_argument_of_a_problem_has_a_type_and_a_default(name):
    for parameter in inspect.signature(registry.problem_factory(name)).parameters.values():
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.annotation in ("int", "float", "str")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gaussian-liner", None, "unknown problem 'gaussian-liner'; did you mean 'gaussian-linear'?"),
        ("zzz", None, "unknown problem 'zzz'; expected one of chaos-henon-heiles, chaos-lorenz63, chaos-lorenz96"),
        ("gmm-linear", {"noise": 1.0}, "unknown option 'noise' of problem 'gmm-linear'; did you mean 'noise_std'?"),
        ("gmm-25-to-9", {"qqq": 1}, "unknown option 'qqq' of problem 'gmm-25-to-9'; expected one of num_steps, sched"),
        ("gaussian-linear", {"dim": 4, "measurement_dim": 5}, "measurement_dim must be within 1..dim = 4, got 5"),
        ("gmm-linear", {"dim": 1}, "needs dim >= 2 and modes >= 1, got 1 and 8"),
        ("gmm-linear", {"modes": 0}, "needs dim >= 2 and modes >= 1, got 16 and 0"),
        ("digits-half", {"digit": 297}, r"one of the 297 held-out digits, 0..296, got 297"),
        ("gaussian-linear", {"schedule": "vp"}, "unknown schedule 'vp'; expected one of vp-linear"),
        ("gaussian-linear", {"noise_std": 0.0}, "noise_std must be a positive finite standard deviation, got 0.0"),
    ],
)
def test_unknown_names_and_refused_options_say_what_was_expected(name, options, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        make_problem(name, options)


def test_a_name_is_given_once(empty_registry):
    def mine(*, size: int = 1) -> Problem: ...

    def other(*, size: int = 1) -> Problem: ...

    registry.register("mine")(mine)
    registry.register("mine")(mine)  # again, as on a second import of its module
    with pytest.raises(ValueError, match=f"a problem named 'mine' is registered already, by {__name__}"):
        registry.register("mine")(other)
    assert registry.problem_factory("mine") is mine


def test_a_function_of_the_same_name_in_another_module_does_not_replace_a_problem(empty_registry):
    def mine(*, size: int = 1) -> Problem: ...

    def stranger(*, size: int = 1) -> Problem: ...

    registry.register("mine")(mine)
    stranger.__qualname__, stranger.__module__ = mine.__qualname__, "elsewhere"
    with pytest.raises(ValueError, match="a problem named 'mine' is registered already"):
        registry.register("mine")(stranger)


def test_an_argument_without_a_type_or_a_default_is_refused(empty_registry):
    def untyped(*, size=1) -> Problem: ...

    def bare(*, width: int) -> Problem: ...

    with pytest.raises(ValueError, match="argument 'size' of problem 'untyped' needs a type and a default"):
        registry.register("untyped")(untyped)
    with pytest.raises(ValueError, match="argument 'width' of problem 'bare' needs a type and a default"):
        registry.register("bare")(bare)
    assert registry.problem_names() == ()


@pytest.mark.parametrize("name", ["my problem", "", "a/b"])
def test_a_name_that_no_environment_can_have_is_refused(empty_registry, name):
    with pytest.raises(ValueError, match=f"must be of letters, digits, '_', '-' and '.', got '{name}'"):
        registry.register(name)
