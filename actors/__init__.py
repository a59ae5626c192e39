"""Actors make trajectories: rollouts and every kind of exploration."""

from actors.actor import EXPLORATIONS, Actor, ActorConfig
from actors.rollout import Rollout, rollout

__all__ = ["EXPLORATIONS", "Actor", "ActorConfig", "Rollout", "rollout"]
