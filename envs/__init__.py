"""Inverse problems: forward operators, likelihoods, problems, exact truths, and the gymnasium environments."""

from envs import problems
from envs.problem import Classes, ExactPosterior, InverseProblem
from envs.registry import make_problem, problem_names, register

__all__ = ["Classes", "ExactPosterior", "InverseProblem", "make_problem", "problem_names", "problems", "register"]
