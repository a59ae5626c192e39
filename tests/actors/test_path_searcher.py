"""Path search as a kind of exploration: populations larger than a batch."""

import json

import numpy as np
import pytest
import torch

from actors import ActorConfig
from actors.on_policy import OnPolicy
from actors.path_search import PathSearch
from actors.path_searcher import PathSearchConfig, PathSearcher
from diffusion.posterior import ControlPosterior

BATCH, POPULATION = 16, 64


@pytest.fixture
def posterior(gaussian_problem):
    torch.manual_seed(0)
    return ControlPosterior(gaussian_problem.prior, (2,), gaussian_problem.gradient, hidden=8, depth=1)


def _turns(searcher, problem, posterior, count, generator):
    rows = torch.zeros(BATCH, dtype=torch.long)
    return [searcher.explore(problem, posterior, rows, 0.0, generator) for _ in range(count)]


def test_a_population_is_tempered_together_and_then_moved_and_handed_on_batch_by_batch(gaussian_problem, posterior):
    generator = torch.Generator().manual_seed(0)
    searcher = PathSearcher(PathSearchConfig(population=POPULATION, sweeps=1))
    first, turns = _turns(searcher, gaussian_problem, posterior, 1, generator)[0], 1
    assert len(first.states) == BATCH and len(searcher._populations[0][0].states) == POPULATION
    while searcher._populations[0][0].beta < 1:
        _turns(searcher, gaussian_problem, posterior, 1, generator)
        turns += 1
    assert 1 < turns < 20
    before = searcher._populations[0][0]
    made = _turns(searcher, gaussian_problem, posterior, POPULATION // BATCH, generator)
    parts = searcher._populations[0]
    assert [len(part.states) for part in parts] == [BATCH] * (POPULATION // BATCH)
    assert {part.log_partition for part in parts} == {before.log_partition}
    for part, handed_on in zip(parts, made, strict=True):  # every part has had its turn, in order
        torch.testing.assert_close(part.states, handed_on.states, rtol=0, atol=0)
    again = _turns(searcher, gaussian_problem, posterior, 1, generator)[0]
    moved = (again.states != made[0].states).flatten(1).any(1)
    assert moved.any() and [part.sweeps for part in parts] == [before.sweeps + 1] * 3 + [before.sweeps + 2]


def test_parts_of_a_population_are_the_population_and_share_nothing(gaussian_problem):
    whole = PathSearch(gaussian_problem, 0, POPULATION, generator=torch.Generator().manual_seed(0))
    whole.temper()
    whole.sweep()
    kept = {name: value.clone() for name, value in whole.state_dict()[0].items()}
    parts = whole.split(BATCH)
    for name, value in kept.items():
        joined = [part.state_dict()[0][name] for part in parts]
        expected = value if len(value) == POPULATION else value.repeat(len(parts), *[1] * (value.ndim - 1))
        torch.testing.assert_close(torch.cat(joined), expected, rtol=0, atol=0)
    for part in parts:
        part.sweep()
    for name, value in whole.state_dict()[0].items():
        torch.testing.assert_close(value, kept[name], rtol=0, atol=0)


def test_larger_populations_resume_bit_for_bit_while_tempered_and_afterwards(gaussian_problem, posterior):
    generator = torch.Generator().manual_seed(0)
    searcher = PathSearcher(PathSearchConfig(population=POPULATION))
    for turns in (1, 20):
        _turns(searcher, gaussian_problem, posterior, turns, generator)
        arrays, scalars = searcher.state_dict()
        arrays, scalars = {name: value.copy() for name, value in arrays.items()}, json.loads(json.dumps(scalars))
        other, stream = PathSearcher(PathSearchConfig(population=POPULATION)), torch.Generator()
        stream.set_state(generator.get_state())
        other.load_state_dict(gaussian_problem, arrays, scalars, stream)
        ours = _turns(searcher, gaussian_problem, posterior, 6, generator)
        theirs = _turns(other, gaussian_problem, posterior, 6, stream)
        for one, two in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.states, two.states, rtol=0, atol=0)
            torch.testing.assert_close(one.log_behaviour_ratio, two.log_behaviour_ratio, rtol=0, atol=0)


def test_rows_taken_of_a_rollout_are_its_rows(gaussian_problem, posterior):
    made = OnPolicy().explore(gaussian_problem, posterior, torch.zeros(5, dtype=torch.long), 0.0, torch.Generator())
    taken = made.take(torch.tensor([3, 1]))
    np.testing.assert_array_equal(taken.states, made.states[[3, 1]])
    np.testing.assert_array_equal(taken.log_weight, made.log_weight[[3, 1]])
    assert taken.acceptance is None and taken.guidance.shape[0] == 2


@pytest.mark.parametrize("population", [32, 96, 100])
def test_a_population_that_is_no_multiple_of_the_batch_is_refused(population):
    with pytest.raises(ValueError, match=rf"must be a multiple of actor.batch_size = 64, got {population}"):
        ActorConfig(batch_size=64, path_search=PathSearchConfig(population=population))


def test_a_population_beside_starts_from_replay_is_refused():
    with pytest.raises(ValueError, match="with start_by age it keeps none, got 128"):
        PathSearchConfig(population=128, start_by="age")
