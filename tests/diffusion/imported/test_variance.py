import pytest
import torch

from diffusion.imported.variance import SamplerVariance
from diffusion.kernel import DenoisingCoefficients
from diffusion.schedule import make_schedule


def test_large_and_small_are_the_variances_of_ddpm_and_differ_at_the_last_step_only_from_what_it_has():
    schedule = make_schedule("vp-linear", 30)
    alpha, sigma = schedule.alpha[:-1], schedule.sigma[:-1]
    kept = (alpha / schedule.alpha[1:]).square()
    beta = 1 - kept
    small = DenoisingCoefficients(schedule, SamplerVariance(name="small", data_std=1.0)(alpha, sigma)).std.square()
    large = DenoisingCoefficients(schedule, SamplerVariance(name="large", data_std=1.0)(alpha, sigma)).std.square()
    posterior = beta * schedule.sigma[1:].square() / sigma.square()
    assert torch.allclose(large, beta, rtol=1e-9)
    assert torch.allclose(small[:-1], posterior[:-1], rtol=1e-9)
    assert float(posterior[-1]) == 0.0
    assert float(small[-1]) == pytest.approx(float(beta[-1]), rel=1e-9)


def test_data_of_another_scale_have_that_scale_s_variance():
    alpha, sigma = torch.ones(2, dtype=torch.float64), torch.tensor([3.0, 0.5], dtype=torch.float64)
    found = SamplerVariance(name="large", data_std=2.0)(alpha, sigma)
    assert found.tolist() == pytest.approx([4 * 9 / 13, 4 * 0.25 / 4.25])


def test_another_name_or_scale_is_refused():
    with pytest.raises(ValueError, match="unknown variance 'learned' of a sampler; expected one of small, large"):
        SamplerVariance(name="learned", data_std=1.0)
    with pytest.raises(ValueError, match="data_std must be positive, got 0"):
        SamplerVariance(name="small", data_std=0.0)
