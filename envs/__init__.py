"""Inverse problems: forward operators, likelihoods, problems, exact truths, and the gymnasium environments."""
