"""The problems that ship, a file each; importing this package registers them."""

from envs.problems import (
    digits_half,
    digits_phase,
    funnel,
    gaussian_field,
    gaussian_linear,
    gmm_25,
    gmm_25_to_9,
    gmm_linear,
    images,
    lgcp,
    manywell,
    radio,
    rare_event,
    sbibm,
)

__all__ = [
    "digits_half",
    "digits_phase",
    "funnel",
    "gaussian_field",
    "gaussian_linear",
    "gmm_25",
    "gmm_25_to_9",
    "gmm_linear",
    "images",
    "lgcp",
    "manywell",
    "radio",
    "rare_event",
    "sbibm",
]
