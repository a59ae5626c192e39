"""The problems that ship, a file each; importing this package registers them."""

from envs.problems import (
    chaos,
    digits_half,
    digits_phase,
    funnel,
    gaussian_field,
    gaussian_linear,
    gmm_25,
    gmm_25_to_9,
    gmm_linear,
    images,
    latent,
    lgcp,
    manywell,
    rare_event,
    sbibm,
)

__all__ = [
    "chaos",
    "digits_half",
    "digits_phase",
    "funnel",
    "gaussian_field",
    "gaussian_linear",
    "gmm_25",
    "gmm_25_to_9",
    "gmm_linear",
    "images",
    "latent",
    "lgcp",
    "manywell",
    "rare_event",
    "sbibm",
]
