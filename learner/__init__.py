"""The learner consumes trajectories: objectives, gradient, optimiser step."""

from learner.config import LearnerConfig
from learner.guard import Diverged, GuardConfig
from learner.learner import Learner, Update

__all__ = ["Diverged", "GuardConfig", "Learner", "LearnerConfig", "Update"]
