"""Forward operators: from x to the noiseless measurement, a family a file."""

from envs.operators.base import ForwardOperator, LinearOperator, Spectrum
from envs.operators.closures import Closures
from envs.operators.composed import Composed, LinearlyComposed, compose
from envs.operators.convolution import Convolution, gaussian_kernel, motion_kernel
from envs.operators.detectors import Clipped, Quantised
from envs.operators.encoded_blur import EncodedBlur
from envs.operators.evolution import Evolution
from envs.operators.fourier import MaskedFourier, random_lines
from envs.operators.lensing import LensedSource
from envs.operators.lognormal import Lognormal
from envs.operators.magnitudes import CodedMagnitudes, FourierMagnitudes
from envs.operators.matrix import Matrix, random_projections
from envs.operators.nonlinear_blur import NonlinearBlurSurrogate
from envs.operators.nonuniform_fft import FastVisibilities, visibility_operator
from envs.operators.pixels import Pixels, box_mask, random_mask
from envs.operators.separable import Separable, lower_resolution
from envs.operators.shear import Shear
from envs.operators.space_variant import SpaceVariantBlur
from envs.operators.sparse import SparseMatrix, radon
from envs.operators.thin_film import ThinFilms
from envs.operators.visibilities import Visibilities

__all__ = [
    "Clipped",
    "Closures",
    "CodedMagnitudes",
    "Composed",
    "Convolution",
    "EncodedBlur",
    "Evolution",
    "FastVisibilities",
    "ForwardOperator",
    "FourierMagnitudes",
    "LensedSource",
    "LinearOperator",
    "LinearlyComposed",
    "Lognormal",
    "MaskedFourier",
    "Matrix",
    "NonlinearBlurSurrogate",
    "Pixels",
    "Quantised",
    "Separable",
    "Shear",
    "SpaceVariantBlur",
    "SparseMatrix",
    "Spectrum",
    "ThinFilms",
    "Visibilities",
    "box_mask",
    "compose",
    "gaussian_kernel",
    "lower_resolution",
    "motion_kernel",
    "radon",
    "random_lines",
    "random_mask",
    "random_projections",
    "visibility_operator",
]
