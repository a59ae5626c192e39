r"""Some frequencies of an image: magnetic resonance, with one coil or several.

    y_ck = (F S_c x)_k    for the frequencies k that were measured,

F the orthonormal discrete Fourier transform and S_c the sensitivity of coil c. Complex numbers are pairs (real part,
imaginary part): x [2, H, W], or [1, H, W] if it is real, and y [coils, frequencies, 2]. Several coils are those of
SENSE (Pruessmann, Weiger, Scheidegger and Boesiger 1999, Magn. Reson. Med. 42, 952).
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs.operators.base import LinearOperator

__all__ = ["MaskedFourier", "random_lines"]


class MaskedFourier(LinearOperator):
    """Measured frequencies of an image [1 or 2, H, W], seen by coils."""

    mask: Tensor
    sensitivities: Tensor

    def __init__(self, event_shape: tuple[int, ...], mask: Tensor, sensitivities: Tensor | None = None) -> None:
        """`mask` [H, W], true where a frequency is measured, the zero frequency first as `torch.fft` has it.

        `sensitivities` [coils, H, W] is complex; None is one coil that sees all alike.
        """
        if len(event_shape) != 3 or event_shape[0] not in (1, 2):
            raise ValueError(f"x must be an image [1, H, W], or [2, H, W] with its imaginary part, got {event_shape}")
        size = event_shape[1:]
        if tuple(mask.shape) != size:
            raise ValueError(f"the mask must be of the image's {size} pixels, got shape {tuple(mask.shape)}")
        if not bool(mask.any()):
            raise ValueError("the mask keeps no frequency; at least one must be measured")
        coils = torch.ones(1, *size, dtype=torch.complex128) if sensitivities is None else sensitivities
        if coils.ndim != 3 or tuple(coils.shape[1:]) != size:
            raise ValueError(f"sensitivities must be [coils, {size[0]}, {size[1]}], got shape {tuple(coils.shape)}")
        super().__init__(event_shape, (len(coils), int(mask.sum()), 2))
        self.register_buffer("mask", mask.bool())
        self.register_buffer("sensitivities", torch.view_as_real(coils.to(torch.complex128)))

    def _coils(self, like: Tensor) -> Tensor:
        return torch.view_as_complex(self.sensitivities.to(like).contiguous())

    def forward(self, value: Tensor) -> Tensor:
        """See `LinearOperator`."""
        image = torch.complex(value[:, 0], value[:, 1] if self.event_shape[0] == 2 else torch.zeros_like(value[:, 0]))
        seen = torch.fft.fft2(image[:, None] * self._coils(value), norm="ortho")
        return torch.view_as_real(seen[..., self.mask])

    def adjoint(self, measurement: Tensor) -> Tensor:
        """See `LinearOperator`."""
        coils = self._coils(measurement)
        spectrum = torch.zeros((len(measurement), *coils.shape), dtype=coils.dtype, device=coils.device)
        spectrum[..., self.mask] = torch.view_as_complex(measurement.contiguous())
        image = (torch.fft.ifft2(spectrum, norm="ortho") * coils.conj()).sum(1)
        return torch.stack([image.real, image.imag][: self.event_shape[0]], 1)


def random_lines(height: int, width: int, acceleration: float, centre: float = 0.08, seed: int = 0) -> Tensor:
    """[height, width] a mask of whole lines of frequencies (columns): one of `acceleration` on average.

    The fraction `centre` of lowest frequencies is always measured, as for calibration, the others are drawn (as in
    fastMRI, Zbontar et al. 2018, arXiv 1811.08839).
    """
    if not 1 <= acceleration <= width or not 0 <= centre <= 1 / acceleration:
        raise ValueError(
            f"acceleration must be within 1..{width} and centre within [0, 1 / acceleration], got {acceleration} and "
            f"{centre}"
        )
    order = torch.fft.fftfreq(width).abs().argsort(stable=True)
    low, wanted = round(centre * width), round(width / acceleration)
    drawn = torch.randperm(width - low, generator=torch.Generator().manual_seed(seed))[: max(wanted - low, 0)]
    mask = torch.zeros(width, dtype=torch.bool)
    mask[order[:low]] = True
    mask[order[low:][drawn]] = True
    if not bool(mask.any()):
        mask[0] = True
    return mask.expand(height, width).clone()
