"""Images of a class: the exact classifier in closed form, and a trained one that says nearly the same."""

import math
import shutil

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from envs import make_problem
from envs.classifier import Classifier, classifier_names, load_classifier, save_classifier
from envs.likelihoods import CategoricalLikelihood
from envs.problems.images.source import image_source


def test_the_evidence_of_a_class_is_its_share_of_the_digits_and_its_posterior_their_kernel_density():
    problem = make_problem("image-class", {"classifier": "exact", "target": (3, 8), "num_steps": 2})
    data = load_digits()
    images, labels = data.data[:1500] / 8 - 1, data.target[:1500]
    for row, digit in enumerate((3, 8)):
        mine = images[labels == digit]
        exact = problem.exact[row]
        assert exact.log_partition == pytest.approx(math.log(len(mine) / 1500))
        assert exact.mean.flatten().numpy() == pytest.approx(mine.mean(0), abs=1e-6)
        assert exact.variance.flatten().numpy() == pytest.approx(mine.var(0) + 0.25**2, abs=1e-6)
        assert problem.class_probabilities(row).tolist() == np.eye(10)[digit].tolist()


def test_the_exact_likelihood_is_bayes_rule_and_adds_up_to_one(generator):
    """Every term of the sum over 1,500 components written out."""
    problem = make_problem("image-class", {"classifier": "exact", "num_steps": 2})
    data = load_digits()
    means, labels = torch.from_numpy(data.data[:1500] / 8 - 1), torch.from_numpy(data.target[:1500])
    value = 0.5 * means[:5] + 0.5 * means[5:10] + 0.1 * torch.randn(5, 64, generator=generator, dtype=torch.float64)
    terms = -0.5 * torch.cdist(value, means).square() / 0.25**2
    total = terms.logsumexp(1)
    likelihood, sums = problem.likelihood, torch.zeros(5, dtype=torch.float64)
    for digit in range(10):
        y = torch.eye(10, dtype=torch.float64)[digit].expand(5, 10)
        found = likelihood.log_prob(value.reshape(5, 1, 8, 8), y)
        expected = terms[:, labels == digit].logsumexp(1) - total
        assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-9, abs=1e-9)
        sums += found.exp()
    assert sums.numpy() == pytest.approx(np.ones(5), abs=1e-9)


def test_the_trained_classifier_agrees_with_the_labels_of_images_it_has_not_seen():
    classifier = load_classifier("digits")
    source = image_source("digits-kde", 2, "vp-cosine-zero-snr")
    labels = torch.from_numpy(load_digits().target[1500:])
    assert float((classifier(source.held_out).argmax(1) == labels).double().mean()) > 0.9
    assert not any(parameter.requires_grad for parameter in classifier.parameters())


def test_the_evidence_by_the_trained_classifier_is_near_that_of_the_labels():
    """Its errors are a few percent, so the mean of p(3 | x) over the prior is near the share of threes."""
    problem = make_problem("image-class", {"num_steps": 2})
    exact = problem.exact[0]
    assert exact.log_partition == pytest.approx(math.log(153 / 1500), abs=0.1)
    assert exact.log_partition_error < 0.02
    assert float(problem.class_probabilities(0)[3]) > 0.95
    value = problem.prior.denoiser.sample(20_000, torch.Generator().manual_seed(5)).float()
    mean = problem.likelihood.log_prob(value, problem.measurements.expand(20_000, 10)).double().exp().mean()
    assert exact.log_partition == pytest.approx(float(mean.log()), abs=4 * 0.03)


@pytest.mark.parametrize("classifier", ["digits", "exact"])
def test_the_gradient_is_that_of_finite_differences(classifier, generator):
    problem = make_problem("image-class", {"classifier": classifier, "num_steps": 2})
    value = problem.prior.denoiser.sample(4, generator)
    likelihood = problem.likelihood.double()
    measurement = problem.measurements.double().expand(4, 10)
    direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    gradient, step = likelihood.gradient(value, measurement), 1e-6
    above, below = (likelihood.log_prob(value + sign * step * direction, measurement) for sign in (1, -1))
    slope = (gradient * direction).flatten(1).sum(1)
    assert slope.numpy() == pytest.approx(((above - below) / (2 * step)).numpy(), rel=1e-4, abs=1e-5)


def test_a_class_is_drawn_with_its_probability_and_a_measurement_that_is_no_class_is_impossible(generator):
    logits = torch.tensor([0.0, math.log(3.0)])
    likelihood = CategoricalLikelihood(torch.nn.Linear(1, 2), 2)
    likelihood.logits.weight.data.zero_()
    likelihood.logits.bias.data.copy_(logits)
    likelihood.requires_grad_(False)
    drawn = likelihood.sample(torch.zeros(4_000, 1), generator)
    assert drawn.sum(1).tolist() == [1.0] * 4_000
    assert float(drawn[:, 1].mean()) == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 4_000))
    for wrong in ([0.5, 0.5], [1.0, 1.0], [0.0, 0.0], [2.0, -1.0]):
        assert float(likelihood.log_prob(torch.zeros(1, 1), torch.tensor([wrong]))) == -math.inf
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        CategoricalLikelihood(torch.nn.Linear(1, 1), 1)
    with pytest.raises(ValueError, match=r"must give logits \[1, 3\], got \(1, 2\)"):
        CategoricalLikelihood(torch.nn.Linear(1, 2), 3).log_prob(torch.zeros(1, 1), torch.eye(3)[:1])


def test_a_classifier_comes_back_and_what_is_none_is_refused_by_name(tmp_path):
    classifier = Classifier((1, 2, 2), ("a", "b"), hidden=4)
    folder = save_classifier(tmp_path / "c", classifier, "# Card\n")
    value = torch.randn(3, 1, 2, 2)
    assert torch.equal(load_classifier(folder)(value), classifier(value))
    assert "digits" in classifier_names()
    for change, message in [
        (lambda: (folder / "classifier.json").write_text("{"), "cannot read the classifier in .*Expecting"),
        (lambda: (folder / "classifier.json").write_text("{}"), "has no 'format'"),
        (lambda: (folder / "weights.safetensors").write_bytes(b"x"), "cannot read the classifier"),
        (lambda: shutil.rmtree(folder), "No such file"),
    ]:
        description = (folder / "classifier.json").read_text()
        change()
        with pytest.raises(ValueError, match=message):
            load_classifier(folder)
        if folder.exists():
            (folder / "classifier.json").write_text(description)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": (10,)}, r"classes 0..9, got \[10\]"),
        ({"target": ()}, r"classes 0..9, got \[\]"),
        ({"classifier": "digit"}, "did you mean 'digits'"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        make_problem("image-class", options)
