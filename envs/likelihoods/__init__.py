"""Likelihoods p(y | x), normalised in y, a family a file."""

from envs.likelihoods.background import MeasuredBackgroundLikelihood
from envs.likelihoods.base import (
    AutogradLikelihood,
    DifferentiableLikelihood,
    ExpectedLikelihood,
    Likelihood,
    LikelihoodError,
    RelaxedLikelihood,
    SimulableLikelihood,
    StandardisedLikelihood,
)
from envs.likelihoods.black_box import BlackBoxLikelihood, WithoutGradient
from envs.likelihoods.categorical import CategoricalLikelihood
from envs.likelihoods.closure import ClosureLikelihood
from envs.likelihoods.counts import BernoulliLikelihood, PoissonGaussianLikelihood, PoissonLikelihood
from envs.likelihoods.event import EventLikelihood
from envs.likelihoods.gaussian import CorrelatedGaussianLikelihood, GaussianLikelihood
from envs.likelihoods.joint import DifferentiableJointLikelihood, JointLikelihood, SimulableJointLikelihood, joint
from envs.likelihoods.learned_noise import LearnedNoiseLikelihood
from envs.likelihoods.student_t import StudentTLikelihood

__all__ = [
    "AutogradLikelihood",
    "BernoulliLikelihood",
    "BlackBoxLikelihood",
    "CategoricalLikelihood",
    "ClosureLikelihood",
    "CorrelatedGaussianLikelihood",
    "DifferentiableJointLikelihood",
    "DifferentiableLikelihood",
    "EventLikelihood",
    "ExpectedLikelihood",
    "GaussianLikelihood",
    "JointLikelihood",
    "LearnedNoiseLikelihood",
    "Likelihood",
    "LikelihoodError",
    "MeasuredBackgroundLikelihood",
    "PoissonGaussianLikelihood",
    "PoissonLikelihood",
    "RelaxedLikelihood",
    "SimulableJointLikelihood",
    "SimulableLikelihood",
    "StandardisedLikelihood",
    "StudentTLikelihood",
    "WithoutGradient",
    "joint",
]
