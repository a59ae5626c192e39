"""Images of noise: read in their units, and held out by place."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits

from envs.data import MissingDataError, load_dataset

DATA = Path(os.environ.get("RTB_DATA", "nowhere"))
needs_hst = pytest.mark.skipif(not (DATA / "cosmos_galsim").is_dir(), reason="RTB_DATA has no cosmos_galsim")


def test_whole_images_keep_their_units_and_a_tenth_is_held_out(tmp_path):
    values = np.random.default_rng(0).normal(3.0, 20.0, (40, 6, 8))
    np.save(tmp_path / "blank.npy", values)
    data = load_dataset("noise", path=str(tmp_path / "blank.npy"))
    assert data.train.shape == (36, 1, 6, 8) and data.held_out.shape == (4, 1, 6, 8)
    together = torch.cat([data.train, data.held_out]).flatten().sort().values
    assert together.numpy() == pytest.approx(np.sort(values.astype(np.float32).ravel()))
    assert data.value_range is None and data.name == "blank"


def test_cut_outs_are_pieces_of_the_image_and_share_no_pixel_with_those_held_out(tmp_path):
    values = np.arange(60 * 20, dtype=np.float32).reshape(60, 20)
    fits.PrimaryHDU(values).writeto(tmp_path / "blank.fits")
    data = load_dataset("noise", path=str(tmp_path / "blank.fits"), size=8)
    windows = np.lib.stride_tricks.sliding_window_view(values, (8, 8))
    assert data.held_out[:, 0].numpy().tolist() == [windows[52, column].tolist() for column in (0, 8)]
    assert len(data.train) == 23 * 7 and data.train[8, 0].tolist() == windows[2, 2].tolist()
    assert not set(data.train.flatten().tolist()) & set(data.held_out.flatten().tolist())
    assert "2 cut-outs of the lowest 8 of 60 rows are held out" in data.split


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.zeros((3, 4, 4), "<U1"), {}, r"must be numbers \[H, W\], .* got <U1 \[3, 4, 4\]"),
        (np.zeros(9), {}, r"must be numbers .* got float64 \[9\]"),
        (np.zeros((15, 20)), {"size": 8}, "need images of at least 16 x 8, got 15 x 20"),
        (np.zeros((15, 20)), {"size": -1}, "cut-outs of -1 x -1 pixels"),
        (
            np.full((20, 6, 6), np.nan),
            {},
            r"blank.npy: images of noise must be finite, got nan at \[0, 0\] of number 0",
        ),
        (
            np.full((30, 30), np.inf),
            {"size": 8},
            r"blank.npy: images .* must be finite, got inf at \[0, 0\] of number 0",
        ),
        (np.full((30, 30), np.nan), {"size": 8}, "every cut-out of 8 x 8 pixels has a pixel that is masked by NaN"),
        (np.zeros((1, 6, 6)), {}, "at least, one to hold out, got 1"),
    ],
)
def test_images_that_cannot_be_are_refused(tmp_path, values, options, message):
    np.save(tmp_path / "blank.npy", values)
    with pytest.raises(ValueError, match=message):
        load_dataset("noise", path=str(tmp_path / "blank.npy"), **options)


def test_a_file_that_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(MissingDataError, match=r"no data at .*blank\.npy"):
        load_dataset("noise", path=str(tmp_path / "blank.npy"))
    with pytest.raises(ValueError, match="data set 'noise' needs a path"):
        load_dataset("noise")
    monkeypatch.delenv("RTB_DATA", raising=False)
    with pytest.raises(MissingDataError, match=r"needs cosmos_galsim/147246.*GalSim"):
        load_dataset("hst-noise")


def test_cut_outs_with_what_was_masked_are_left_out(tmp_path):
    values = np.random.default_rng(0).normal(size=(60, 20)).astype(np.float32)
    values[10, 10] = np.nan
    np.save(tmp_path / "blank.npy", values)
    data = load_dataset("noise", path=str(tmp_path / "blank.npy"), size=8)
    rows, columns = range(0, 45, 2), range(0, 13, 2)
    seen = sum(row <= 10 < row + 8 and column <= 10 < column + 8 for row in rows for column in columns)
    assert len(data.train) == 23 * 7 - seen and seen > 0
    assert data.split.endswith(f"; {seen} with a pixel that is masked are left out")


@needs_hst
def test_blank_sky_of_hubble_is_correlated_by_the_drizzle_and_has_no_galaxy():
    data = load_dataset("hst-noise")
    assert data.event_shape == (1, 16, 16)
    for part in (data.train, data.held_out):
        assert float(part.mean()) == pytest.approx(0, abs=0.06) and float(part.std()) == pytest.approx(1, abs=0.03)
        beside = float((part[..., 1:] * part[..., :-1]).mean())
        apart = float((part[..., 5:] * part[..., :-5]).mean())
        assert 0.4 < beside < 0.55 and abs(apart) < 0.08
    assert float(data.train.max()) < 8
