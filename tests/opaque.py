"""A denoiser of which nothing is known but its estimates, as of a network."""

import torch


class Opaque(torch.nn.Module):
    """Says what `denoiser` says, and has no density, covariance or draws of its own."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, state, alpha, sigma):
        return self.denoiser(state, alpha, sigma)
