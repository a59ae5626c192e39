"""Evaluation judges samples: bounds on the evidence, distances to the truth, figures and the report."""
