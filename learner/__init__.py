"""The learner consumes trajectories: objectives, gradient, optimiser step."""

from learner.config import LearnerConfig
from learner.learner import Learner, Update

__all__ = ["Learner", "LearnerConfig", "Update"]
