"""Inverse problems: forward operators, likelihoods, problems, exact truths, and the gymnasium environments."""

from envs import problems
from envs.environment import DenoisingEnv, DenoisingVectorEnv, register_environment
from envs.problem import Classes, ExactPosterior, InverseProblem
from envs.registry import make_problem, on_register, problem_names, register

__all__ = [
    "Classes",
    "DenoisingEnv",
    "DenoisingVectorEnv",
    "ExactPosterior",
    "InverseProblem",
    "make_problem",
    "problem_names",
    "problems",
    "register",
]

on_register(register_environment)
