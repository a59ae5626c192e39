"""Data: what was written is read, and simulated states are on their attractors."""

import gzip
import os
import struct
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.integrate import solve_ivp

from envs.data import MissingDataError, load_dataset, read_fits, read_idx, read_images, read_npz
from envs.data.dataset import Dataset
from envs.data.lorenz import STEP_63, STEP_96, lorenz63_derivative, lorenz96_derivative, runge_kutta
from envs.data.readers import read_x

HAS_DATA = pytest.mark.skipif(not os.environ.get("RTB_DATA"), reason="RTB_DATA is not set")

IDX = bytes([0, 0, 0x0B, 2]) + struct.pack(">II", 2, 3) + struct.pack(">6h", 1, -2, 3, 400, 5, 6)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_idx_file_is_read_zipped_or_not(tmp_path, pack):
    (tmp_path / "a").write_bytes(pack(IDX))
    assert read_idx(tmp_path / "a").tolist() == [[1, -2, 3], [400, 5, 6]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (IDX[:-1], "must have 24 bytes for an array of shape .2, 3., got 23"),
        (IDX + b"x", "got 25"),
        (IDX[:6], "ends within its header of 12 bytes"),
        (b"\x89PNG....", "expected an IDX file"),
        (b"", "expected an IDX file"),
        (gzip.compress(IDX)[:-9], "cannot unzip"),
    ],
)
def test_what_is_no_idx_file_is_refused(tmp_path, data, message):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "a")


def test_an_npz_file_names_its_arrays_and_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "one.npz", x=np.arange(3.0))
    np.savez(tmp_path / "two.npz", x=np.arange(3.0), y=np.arange(2))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert read_npz(tmp_path / "one.npz").tolist() == [0, 1, 2] and read_npz(tmp_path / "two.npz", "y").tolist() == [
        0,
        1,
    ]
    with pytest.raises(ValueError, match=r"has several arrays and needs a key; choose one of x, y"):
        read_npz(tmp_path / "two.npz")
    with pytest.raises(ValueError, match="has no array 'z'; choose one of x, y"):
        read_npz(tmp_path / "two.npz", "z")
    (tmp_path / "text.npz").write_text("1 2 3")
    for name in ("object.npy", "text.npz"):
        with pytest.raises(ValueError, match=rf"{name}.*: expected arrays of numbers, got .* nothing is unpickled"):
            read_npz(tmp_path / name)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((4, 3), dtype=np.uint8), r"floating-point numbers in the units of the prior, got uint8 \[4, 3\]"),
        (np.zeros(4), r"expected x \[N, \*D\].*, got float64 \[4\]"),
        (np.zeros((0, 3)), r"got float64 \[0, 3\]"),
        (np.array([[1.0, np.nan], [np.inf, 0.0]]), "every number must be finite, got 2 NaN or infinite ones of 4"),
    ],
)
def test_x_of_ones_own_are_finite_numbers_in_the_units_of_the_prior(tmp_path, x, message):
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match=rf"x.npy: .*{message}"):
        read_x(tmp_path / "x.npy")


def test_files_that_are_no_images_and_values_that_are_no_numbers_are_named(tmp_path):
    fits = pytest.importorskip("astropy.io.fits", reason="needs astropy (the extra astronomy)")
    for name in ("a.fits", "a.png"):
        (tmp_path / name).write_bytes(b"neither")
    with pytest.raises(ValueError, match=r"cannot read .*a.fits as FITS"):
        load_dataset("fits", path=str(tmp_path / "a.fits"))
    with pytest.raises(ValueError, match=r"expected a folder of images, got the file .*a.png"):
        load_dataset("images", path=str(tmp_path / "a.png"))
    fits.writeto(tmp_path / "b.fits", np.full((3, 2, 2), np.nan))
    with pytest.raises(ValueError, match=r"values must be finite, got 12 others of 12, the first nan at \[0, 0, 0"):
        load_dataset("fits", path=str(tmp_path / "b.fits"))


def _images(folder, count=12, mode="L", size=(6, 4), suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    shape = (*size[::-1], 3) if mode == "RGB" else size[::-1]
    arrays = [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]
    for index, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{index:02d}.{suffix}")
    return np.stack(arrays)


def test_a_folder_of_grey_images_has_one_channel_and_no_classes(tmp_path):
    arrays = _images(tmp_path / "a")
    images, labels, names = read_images(tmp_path / "a")
    assert images.shape == (12, 1, 4, 6) and (images[:, 0] == arrays).all()
    assert labels is None and names == ()


def test_folders_of_colour_images_are_classes(tmp_path):
    first, second = _images(tmp_path / "a" / "cat", 2, "RGB"), _images(tmp_path / "a" / "dog", 3, "RGB")
    images, labels, names = read_images(tmp_path / "a")
    assert (images == np.concatenate([first, second]).transpose(0, 3, 1, 2)).all()
    assert labels.tolist() == [0, 0, 1, 1, 1] and names == ("cat", "dog")


def test_jpeg_is_read_and_sixteen_bits_keep_theirs(tmp_path):
    Image.fromarray(np.full((8, 8), 100, np.uint8)).save(_made(tmp_path / "a") / "flat.jpg")
    assert np.abs(read_images(tmp_path / "a")[0].astype(int) - 100).max() <= 2
    Image.fromarray(np.full((2, 2), 40_000, np.uint16)).save(_made(tmp_path / "b") / "deep.png")
    assert (read_images(tmp_path / "b")[0] == 40_000).all()


def _made(folder):
    folder.mkdir()
    return folder


def test_images_that_are_not_alike_and_files_that_are_none_are_named(tmp_path):
    _images(tmp_path / "a", 2)
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "a" / "other.png")
    with pytest.raises(ValueError, match=r"00.png is uint8 \[1, 4, 6\], .*other.png is uint8 \[1, 4, 5\]"):
        read_images(tmp_path / "a")
    (tmp_path / "a" / "other.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"cannot read .*other.png as an image"):
        read_images(tmp_path / "a")
    with pytest.raises(ValueError, match=r"has no image that ends in .png, .jpg, .jpeg"):
        read_images(_made(tmp_path / "empty"))


def test_without_astropy_the_reader_of_fits_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "astropy.io", None)
    with pytest.raises(MissingDataError, match=r"rtb\[astronomy\]"):
        read_fits(tmp_path)


def test_images_and_stacks_of_fits_files_are_read(tmp_path):
    fits = pytest.importorskip("astropy.io.fits", reason="needs astropy (the extra astronomy)")

    arrays = np.random.default_rng(0).normal(size=(3, 4, 5))
    fits.writeto(tmp_path / "a.fits", arrays[0])
    table = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(arrays[1:])])
    table.writeto(tmp_path / "b.fits")
    assert read_fits(tmp_path) == pytest.approx(arrays, rel=1e-6)
    assert read_fits(tmp_path / "a.fits").shape == (1, 4, 5)
    (tmp_path / "no.txt").write_text("no FITS")
    with pytest.raises(ValueError, match=r"cannot read .*no.txt as FITS, is all of it there\?"):
        read_fits(tmp_path / "no.txt")
    data = load_dataset("fits", path=str(tmp_path), limits=(0.0, 2.0))
    assert data.event_shape == (1, 4, 5) and len(data.train) + len(data.held_out) == 3


def test_your_own_images_are_scaled_and_a_tenth_is_held_out_the_same_each_time(tmp_path):
    arrays = _images(tmp_path / "a", 20)
    data, again = (load_dataset("images", path=str(tmp_path / "a")) for _ in range(2))
    assert (len(data.train), len(data.held_out)) == (18, 2) and torch.equal(data.train, again.train)
    found = torch.cat([data.train, data.held_out]).sum((1, 2, 3)).sort().values
    expected = np.sort((arrays / 127.5 - 1).sum((1, 2)))
    assert found.numpy() == pytest.approx(expected, abs=1e-4)
    assert data.value_range == (-1.0, 1.0)


def test_your_own_vectors_keep_their_units_unless_limits_are_given(tmp_path):
    path = str(tmp_path / "x.npy")
    np.save(path, np.linspace(0, 500, 40).reshape(20, 2))
    plain = load_dataset("npz", path=path)
    assert plain.event_shape == (2,) and float(plain.train.max()) > 400 and plain.value_range is None
    assert float(load_dataset("npz", path=path, limits=(0.0, 500.0)).train.max()) == 1.0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("minst", {}, "unknown data set 'minst'; did you mean 'mnist'"),
        ("digits", {"path": "here"}, "unknown option 'path' of data set 'digits'; it has none"),
        ("npz", {"kye": "x"}, "unknown option 'kye' of data set 'npz'; did you mean 'key'"),
        ("images", {}, "data set 'images' needs a path"),
        ("npz", {"path": "nowhere.npz"}, r"no data at nowhere.npz"),
    ],
)
def test_a_data_set_that_cannot_be_loaded_says_why(name, options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(name, **options)


@pytest.mark.parametrize(("limits", "message"), [((1.0, 1.0), "must increase"), ((1.0,), "two numbers")])
def test_limits_that_are_none_are_refused(tmp_path, limits, message):
    np.save(tmp_path / "x.npy", np.arange(6.0).reshape(3, 2))
    with pytest.raises(ValueError, match=message):
        load_dataset("npz", path=str(tmp_path / "x.npy"), limits=limits)


def test_a_data_set_with_values_that_are_not_finite_is_refused():
    bad = torch.tensor([[1.0], [float("nan")]])
    with pytest.raises(ValueError, match="train of data set 'a' has values that are not finite"):
        Dataset(name="a", train=bad, held_out=bad[:1], split="", source="", licence="")


def test_values_outside_of_the_range_are_named():
    good, bad = torch.zeros(2, 1), torch.tensor([[0.0], [255.0]])
    with pytest.raises(ValueError, match=r"held_out of data set 'a' must be within \[-1.0, 1.0\], got 0 to 255"):
        Dataset(name="a", train=good, held_out=bad, split="", source="", licence="", value_range=(-1.0, 1.0))


def test_the_digits_are_those_of_the_problem():
    data = load_dataset("digits")
    assert (len(data.train), len(data.held_out)) == (1_500, 297) and data.event_shape == (1, 8, 8)
    assert (float(data.train.min()), float(data.train.max())) == (-1.0, 1.0)
    assert data.data_std == pytest.approx(0.5413715, abs=1e-6)


@HAS_DATA
def test_mnist_has_its_published_class_counts_and_is_padded_with_black():
    data = load_dataset("mnist")
    assert data.train.shape == (60_000, 1, 32, 32) and data.held_out.shape == (10_000, 1, 32, 32)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.train_labels.bincount().tolist() == counts
    assert (data.train[:, :, :2] == -1).all() and float(data.train.max()) == 1.0
    # The published mean of MNIST's pixels in [0, 1] is 0.1307, over 28 x 28 of them.
    assert float((data.train[..., 2:30, 2:30].mean() + 1) / 2) == pytest.approx(0.1307, abs=1e-4)


@HAS_DATA
def test_photographs_and_galaxies_have_their_shapes_and_ranges():
    data = load_dataset("cifar10")
    assert data.event_shape == (3, 32, 32) and data.train_labels.bincount().tolist() == [1_600] * 10
    # Channels first: the published means of red, green, blue in [0, 1] are 0.491, 0.482, 0.447.
    assert ((data.train.mean((0, 2, 3)) + 1) / 2).tolist() == pytest.approx([0.491, 0.482, 0.447], abs=0.005)
    galaxies = load_dataset("galaxies")
    assert galaxies.train.shape == (8_000, 1, 32, 32) and len(galaxies.held_out) == 861


@pytest.mark.parametrize(
    ("derivative", "start", "step"),
    [
        (lorenz63_derivative, [1.0, 2.0, 25.0], STEP_63),
        (lorenz96_derivative, np.sin(np.arange(40.0)) * 4 + 2, STEP_96),
    ],
)
def test_a_step_is_of_fourth_order(derivative, start, step):
    """The error of one step is of order step^5: with half the step it is a thirty-second."""
    start = np.asarray(start, float)
    errors = []
    for size in (step, step / 2):
        exact = solve_ivp(lambda _, x: derivative(x[None])[0], (0, size), start, "DOP853", rtol=1e-13, atol=1e-13).y[
            :, -1
        ]
        errors.append(np.abs(runge_kutta(derivative, start[None], size)[0] - exact).max())
    assert 24 < errors[0] / errors[1] < 42


def test_states_of_lorenz_1963_have_the_averages_that_a_stationary_state_must_have():
    data = load_dataset("lorenz63")
    x, y, z = data.train.double().T
    means = torch.stack([x * x, x * y, 8 / 3 * z])
    batches = means.reshape(3, 500, 40).mean(2)  # a trajectory each, independent of the others
    differences = torch.stack([batches[0] - batches[1], batches[1] - batches[2]])
    error = differences.std(1) / 500**0.5
    assert float((differences.mean(1) / error).abs().max()) < 4
    assert float(means[2].mean()) == pytest.approx(62.8, abs=0.5)  # E z is 23.55


def test_states_of_lorenz_1996_conserve_energy_on_average():
    """Advection conserves it, so E x^2 = F E x."""
    data = load_dataset("lorenz96")
    each = (data.train.double().square() - 8 * data.train.double()).mean(1).reshape(500, 40).mean(1)
    assert abs(float(each.mean())) < 4 * float(each.std()) / 500**0.5
    assert float(each.std()) / 500**0.5 < 0.05  # of 18.7: the check has power
    other = data.held_out.double()
    assert float((other.square() - 8 * other).mean()) == pytest.approx(0, abs=4 * float(each.std()) / 50**0.5)


def test_fields_have_the_power_and_the_density_that_they_are_drawn_for():
    """E |x_f|^2 = P(f) at each of 64 frequencies, E (1 + delta) = 1 and Var delta = exp(s^2) - 1, of 9,000 fields."""
    data = load_dataset("lognormal-fields", count=10_000, size=8, std=0.6, slope=1.2, knee=1.5)
    assert data.train.shape == (9_000, 1, 8, 8) and len(data.held_out) == 1_000
    x = data.train[:, 0].double()
    f = torch.fft.fftfreq(8, 1 / 8, dtype=torch.float64)
    shape = (1.5**2 + f[:, None] ** 2 + f**2) ** -1.2
    expected = 0.36 * shape / shape.mean()
    found = torch.fft.fft2(x, norm="ortho").abs().square().mean(0)
    assert (found / expected).numpy() == pytest.approx(np.ones((8, 8)), abs=5 * (2 / 9_000) ** 0.5)
    density = (x - 0.18).exp()
    each = density.mean((1, 2))
    assert float(each.mean()) == pytest.approx(1, abs=4 * float(each.std()) / 9_000**0.5)
    assert float(density.var()) == pytest.approx(np.exp(0.36) - 1, rel=0.04)
    assert not torch.equal(data.train, load_dataset("lognormal-fields", count=10_000, size=8, seed=1).train)
    with pytest.raises(ValueError, match="std must be positive, that of the logarithm of the density in a cell, got 0"):
        load_dataset("lognormal-fields", std=0.0)
