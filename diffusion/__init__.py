"""Probability of diffusion models, torch only: schedules, kernels, denoisers, priors, posterior forms, trajectories."""
