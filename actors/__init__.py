"""Actors make trajectories: rollouts and every kind of exploration."""
