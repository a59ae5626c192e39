"""The problems that ship, a file each; importing this package registers them."""

from envs.problems import digits_half, gaussian_linear, gmm_25_to_9, gmm_linear

__all__ = ["digits_half", "gaussian_linear", "gmm_25_to_9", "gmm_linear"]
