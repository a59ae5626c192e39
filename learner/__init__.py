"""The learner consumes trajectories: objectives, gradient, optimiser step."""
