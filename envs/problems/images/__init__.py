"""Problems of images, a forward operator a file; importing this package registers them."""

from envs.problems.images import (
    class_posterior,
    compressed_sensing,
    deblurring,
    denoising,
    high_dynamic_range,
    inpainting,
    magnetic_resonance,
    nonlinear_deblurring,
    phase_retrieval,
    quantisation,
    super_resolution,
    tomography,
)

__all__ = [
    "class_posterior",
    "compressed_sensing",
    "deblurring",
    "denoising",
    "high_dynamic_range",
    "inpainting",
    "magnetic_resonance",
    "nonlinear_deblurring",
    "phase_retrieval",
    "quantisation",
    "super_resolution",
    "tomography",
]
