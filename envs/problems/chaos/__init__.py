"""Problems of chaotic systems: what was the state, given a few noisy numbers that were measured later?"""

from envs.problems.chaos import initial_state, systems

__all__ = ["initial_state", "systems"]
