"""One evaluation of a posterior: bounds on the evidence, and distances to the exact posterior where it is known.

It takes samples and the log weights of the paths that made them, so it does not care who drew them. Cheap enough to
run during training with `quick`; everything is a function of the arguments and `seed`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from diffusion.path import PathScorer, denoise_path
from envs.likelihoods import StandardisedLikelihood
from envs.problem import InverseProblem
from evaluation import bounds
from evaluation.distance import class_l1, floor, sliced_wasserstein2, wasserstein2

__all__ = ["Correction", "Evaluation", "evaluate", "evaluate_corrected"]

EUBO_PATHS = 1_024  # standard error below 0.1 nats once KL(pi || q) is a few nats
EUBO_PATHS_QUICK = 128
W2_SAMPLES = 2_000  # the size at which W2 is published for toy problems
W2_REPEATS = 4  # exact samples to compare with: how many fall into each mode is luck, and W2 shows little else
W2_DIM = 32  # in more dimensions W2 between exact samples hides all but gross errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Quality of one posterior. None: not known for this problem, or left out by `quick`."""

    count: int
    """Number N of samples."""
    elbo: float
    """Lower bound of log Z, nats."""
    elbo_standard_error: float
    """Monte-Carlo standard error of `elbo`."""
    iw_log_partition: float
    """Importance-weighted lower bound IW-N of log Z with all N samples, nats; trust it as far as the ESS goes."""
    iw_standard_error: float
    """Standard error of `iw_log_partition` by the delta method."""
    effective_sample_size: float
    """Fraction of N in (0, 1]."""
    eubo: float | None = None
    """Upper bound of log Z from exact posterior paths, nats, `discretisation` included; no bound where that is None."""
    eubo_standard_error: float | None = None
    """Monte-Carlo standard error of `eubo`."""
    discretisation: float | None = None
    """What the chain's finite number of steps adds to `eubo`, nats; 0 for exact paths of the chain, None unknown."""
    exact_log_partition: float | None = None
    """Exact log Z, nats."""
    sliced_w2: float | None = None
    """Sliced 2-Wasserstein distance to as many exact samples, in the units of x."""
    sliced_w2_floor: float | None = None
    """The same between two exact samples of that size."""
    w2: float | None = None
    """Exact 2-Wasserstein distance of at most 2,000 samples, in the units of x; at most 16 dimensions."""
    w2_floor: float | None = None
    """The same between two exact samples of that size."""
    class_names: tuple[str, ...] = ()
    """Names of the problem's classes."""
    class_probabilities: tuple[float, ...] | None = None
    """Learned probability of each class."""
    exact_class_probabilities: tuple[float, ...] | None = None
    """Exact probability of each class."""
    class_l1: float | None = None
    """Sum of absolute differences of the two, 0 to 2."""
    mean_error: float | None = None
    """Root mean square over elements of x of (learned mean - exact mean)."""
    std_error: float | None = None
    """Root mean square over elements of x of (learned - exact standard deviation)."""

    reduced_chi2: float | None = None
    """Mean square of the samples' residuals y - A(x) in standard deviations of the noise; of the exact posterior 1 on
    average over y, as x and the truth that was measured have the same distribution given y."""
    exact_reduced_chi2: float | None = None
    """The same of as many samples of the exact posterior at this y."""

    @property
    def gap(self) -> float | None:
        """EUBO - ELBO, which the chain's exact posterior pi would bring down to `discretisation` and no further.

        For exact paths of the chain it is KL(q || pi) + KL(pi || q). For noised exact samples pi~ it is
        KL(q || pi) + KL(pi~ || q) + log Z - log Z of the chain.
        """
        return None if self.eubo is None else self.eubo - self.elbo

    @property
    def class_error(self) -> float | None:
        """Largest absolute error of the probability of a class."""
        learned, exact = self.class_probabilities, self.exact_class_probabilities
        if learned is None or exact is None:
            return None
        return max(abs(ours - theirs) for ours, theirs in zip(learned, exact, strict=True))

    def as_metrics(self) -> dict[str, float]:
        """The numbers that are known, as `eval/elbo` and so on."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {"gap": self.gap, "class_error": self.class_error}
        return {f"eval/{name}": value for name, value in values.items() if isinstance(value, int | float)}


@torch.no_grad()
def evaluate(
    problem: InverseProblem,
    measurement_id: int,
    samples: Tensor,
    log_weight: Tensor,
    scorer: PathScorer | None = None,
    *,
    seed: int = 0,
    quick: bool = False,
) -> Evaluation:
    """Judges `samples` [N, *D] of q for measurement `measurement_id`, with the log weights [N] float64 of their paths.

    `scorer` is q; without it, or without an exact posterior, there is no EUBO. `quick` leaves out exact optimal
    transport and uses fewer paths for the EUBO.

    Raises:
        ValueError: samples and log weights do not match each other or the problem.
    """
    count = len(samples)
    if samples.shape[1:] != problem.event_shape or log_weight.shape != (count,) or count < 2:
        raise ValueError(
            f"expected at least 2 samples [N, {', '.join(map(str, problem.event_shape))}] and log weights [N], "
            f"got {[*samples.shape]} and {[*log_weight.shape]}"
        )
    if not 0 <= measurement_id < len(problem.measurements):
        raise ValueError(f"measurement_id must be within 0..{len(problem.measurements) - 1}, got {measurement_id}")
    known: dict[str, float | None] = {}
    if problem.exact:
        generator = torch.Generator().manual_seed(seed)
        known = _distances(problem, measurement_id, samples, generator, quick)
        if scorer is not None:
            paths = min(count, EUBO_PATHS_QUICK if quick else EUBO_PATHS)
            known |= _upper_bound(problem, measurement_id, scorer, paths, samples, generator)
    learned, exact = _class_probabilities(problem, measurement_id, samples)
    return Evaluation(
        count=count,
        elbo=bounds.elbo(log_weight),
        elbo_standard_error=bounds.bound_standard_error(log_weight),
        iw_log_partition=bounds.iw_log_partition(log_weight),
        iw_standard_error=bounds.iw_standard_error(log_weight),
        effective_sample_size=bounds.effective_sample_size(log_weight),
        exact_log_partition=problem.exact[measurement_id].log_partition if problem.exact else None,
        class_names=problem.classes.names if problem.classes else (),
        class_probabilities=None if learned is None else tuple(learned.tolist()),
        exact_class_probabilities=None if exact is None else tuple(exact.tolist()),
        class_l1=None if learned is None or exact is None else class_l1(learned, exact),
        reduced_chi2=_reduced_chi2(problem, measurement_id, samples),
        **known,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """Quality of samples that were corrected (`actors.resample_move`). None: not known for this problem."""

    count: int
    """Number of samples."""
    ancestors: int
    """How many paths as drawn they come from."""
    distinct: int
    """How many of them differ: copies of one path that were not moved are the same."""
    accepted: float
    """Share of the proposed suffixes that was accepted."""
    reduced_chi2: float | None = None
    """As `eval/reduced_chi2`."""
    sliced_w2: float | None = None
    """As `eval/sliced_w2`, to as many exact samples as there are of these."""
    sliced_w2_floor: float | None = None
    """The same between two exact samples of that size."""
    mean_error: float | None = None
    """As `eval/mean_error`."""
    std_error: float | None = None
    """As `eval/std_error`."""
    class_l1: float | None = None
    """As `eval/class_l1`."""

    def as_metrics(self) -> dict[str, float]:
        """The numbers that are known, as `eval/corrected/reduced_chi2` and so on."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {f"eval/corrected/{name}": value for name, value in values.items() if value is not None}


@torch.no_grad()
def evaluate_corrected(
    problem: InverseProblem, measurement_id: int, samples: Tensor, *, ancestors: int, accepted: float, seed: int = 0
) -> Correction:
    """Judges corrected `samples` [N, *D] of measurement `measurement_id`; how they were made is told as it is."""
    known: dict[str, float | None] = {}
    if problem.exact:
        generator = torch.Generator().manual_seed(seed)
        distances = _distances(problem, measurement_id, samples, generator, quick=True)
        known = {name: distances[name] for name in ("sliced_w2", "sliced_w2_floor", "mean_error", "std_error")}
    learned, exact = _class_probabilities(problem, measurement_id, samples)
    return Correction(
        count=len(samples),
        ancestors=ancestors,
        distinct=len(samples.flatten(1).unique(dim=0)),
        accepted=accepted,
        reduced_chi2=_reduced_chi2(problem, measurement_id, samples),
        class_l1=None if learned is None or exact is None else class_l1(learned, exact),
        **known,
    )


def _distances(
    problem: InverseProblem, measurement_id: int, samples: Tensor, generator: torch.Generator, quick: bool
) -> dict[str, float | None]:
    exact, count = problem.exact[measurement_id], len(samples)
    reference = exact.sample(count, generator)
    # One set of directions for distance and floor: their difference is then free of the choice of directions.
    directions = int(torch.randint(2**31, (), generator=generator))
    values = samples.detach().cpu().double()

    def sliced(a: Tensor, b: Tensor) -> float:
        return sliced_wasserstein2(a, b, generator=torch.Generator().manual_seed(directions))

    known: dict[str, float | None] = {
        "sliced_w2": sliced(values, reference),
        "sliced_w2_floor": floor(sliced, exact, count, generator),
        "mean_error": _rms(values.mean(0) - exact.mean.cpu()),
        "std_error": _rms(values.std(0) - exact.variance.cpu().sqrt()),
        "exact_reduced_chi2": _reduced_chi2(problem, measurement_id, reference.to(samples)),
    }
    if not quick and samples[0].numel() <= W2_DIM:
        size = min(count, W2_SAMPLES)
        parts = values[: count // size * size].split(size)
        distances = [wasserstein2(parts[i % len(parts)], exact.sample(size, generator)) for i in range(W2_REPEATS)]
        known["w2"] = sum(distances) / W2_REPEATS
        known["w2_floor"] = sum(floor(wasserstein2, exact, size, generator) for _ in range(W2_REPEATS)) / W2_REPEATS
    return known


def _upper_bound(
    problem: InverseProblem,
    measurement_id: int,
    scorer: PathScorer,
    count: int,
    samples: Tensor,
    generator: torch.Generator,
) -> dict[str, float | None]:
    # In the dtype of the samples, because that is what the network of `scorer` takes.
    states = bounds.exact_paths(problem, measurement_id, count, generator).to(problem.device, samples.dtype)
    with problem.placement():
        denoised = denoise_path(problem.prior, states)  # most of the time goes here: once for both
        weights = bounds.path_log_weight(problem, scorer, states, measurement_id, denoised)
        correction: Tensor | None = torch.zeros_like(weights)
        if not isinstance(problem.exact[measurement_id], bounds.ExactPathSampler):
            correction = bounds.path_discretisation(problem, states, denoised)
        weights = weights if correction is None else weights + correction
    return {
        "eubo": bounds.eubo(weights),
        "eubo_standard_error": bounds.bound_standard_error(weights),
        "discretisation": None if correction is None else float(correction.mean()),
    }


def _reduced_chi2(problem: InverseProblem, measurement_id: int, samples: Tensor) -> float | None:
    """Mean over samples and elements of y of the squared residual, in variances of the noise."""
    if not isinstance(problem.likelihood, StandardisedLikelihood):
        return None
    with problem.placement():
        measurement = problem.measurements[measurement_id].expand(len(samples), *problem.measurements.shape[1:])
        problem.calls.count += len(samples)
        residual = problem.likelihood.standardised(samples.to(problem.device), measurement)
        return float(residual.double().square().mean())


def _class_probabilities(
    problem: InverseProblem, measurement_id: int, samples: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Learned and exact probabilities [C]."""
    if problem.classes is None:
        return None, None
    learned = problem.classes.probabilities(samples).double().mean(0).cpu()
    exact = problem.class_probabilities(measurement_id)
    return learned, None if exact is None else exact.cpu()


def _rms(difference: Tensor) -> float:
    return float(difference.double().square().mean().sqrt())
