"""OGIP files: what was written is read in every layout, real files have the numbers of their headers."""

import os
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from envs.data import MissingDataError
from envs.data.ogip import check_same_energies, read_arf, read_pha, read_rmf
from tests import ogip_files as made

HAS_DATA = pytest.mark.skipif(not os.environ.get("RTB_DATA"), reason="RTB_DATA is not set")


def _real(name):
    return Path(os.environ["RTB_DATA"], "xray_sherpa", name)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("layout", ["variable", "fixed", "full"])
def test_a_matrix_is_read_in_every_layout_and_from_every_first_channel(tmp_path, layout, first):
    found = read_rmf(made.write_rmf(tmp_path / "a.rmf", first=first, layout=layout))
    assert found.matrix == pytest.approx(made.MATRIX, abs=1e-7) and found.first_channel == first
    assert found.energy.tolist() == np.stack([made.ENERGY[:-1], made.ENERGY[1:]], 1).tolist()
    assert found.channel_energy[:, 0].tolist() == made.CHANNEL_ENERGY[:-1].tolist() and not found.includes_area


def test_a_spectrum_is_read_with_its_groups_and_its_quality(tmp_path):
    extra = [("GROUPING", "I", [1, -1, 1, 0, 1, -1]), ("QUALITY", "I", [0, 0, 0, 2, 0, 5])]
    path = made.write_pha(tmp_path / "a.pi", extra=extra, RESPFILE="a.rmf", ANCRFILE="NONE")
    found = read_pha(path)
    assert found.counts.tolist() == made.COUNTS.tolist() and found.channel.tolist() == [1, 2, 3, 4, 5, 6]
    assert (found.exposure, found.scale, found.named) == (1000.0, 0.5, {"RESPFILE": "a.rmf"})
    assert found.group.tolist() == [0, 0, 1, 2, 3, 3] and found.good.tolist() == [1, 1, 1, 0, 1, 0]
    plain = read_pha(made.write_pha(tmp_path / "b.pi"))
    assert plain.group.tolist() == list(range(6)) and plain.good.all()


@HAS_DATA
@pytest.mark.parametrize(("name", "counts"), [("3c273", 736), ("9774", 4424)])
def test_files_of_chandra_have_the_numbers_of_their_headers(name, counts):
    spectrum, redistribution = read_pha(_real(f"{name}.pi")), read_rmf(_real(f"{name}.rmf"))
    assert spectrum.counts.sum() == counts == fits.getheader(spectrum.path, "SPECTRUM")["TOTCTS"]
    assert redistribution.matrix.sum(1) == pytest.approx(np.ones(len(redistribution.matrix)), abs=1e-5)
    header = fits.getheader(redistribution.path, "MATRIX")
    assert redistribution.matrix.shape[1] == header["DETCHANS"] and redistribution.first_channel == 1
    assert (redistribution.matrix > 0).sum() <= header["NUMELT"]
    check_same_energies(read_arf(_real(f"{name}.arf")), redistribution)


@HAS_DATA
def test_a_matrix_of_asca_keeps_the_efficiency_in_its_rows():
    rows = read_rmf(_real("sis0.rmf")).matrix.sum(1)
    assert float(rows.min()) == pytest.approx(0, abs=1e-6) and float(rows.max()) == pytest.approx(0.868, abs=1e-3)
    assert read_pha(_real("sis0.pha")).counts.sum() == 50_389


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"counts": np.array([1, 2, -3, 0])}, r"a.pi: COUNTS must be whole numbers of 0 and more, got -3 in row 3$"),
        ({"counts": np.array([1.0, np.nan, 2.0])}, r"a.pi: COUNTS must be finite, got nan in row 2"),
        ({"counts": np.array([1.5, 2.5])}, r"COUNTS must be whole numbers .* got 1.5 in row 1, and in 1 more"),
        ({"EXPOSURE": 0.0}, r"a.pi: EXPOSURE must be a time above 0 s, got 0.0"),
        ({"BACKSCAL": -1.0}, r"BACKSCAL times AREASCAL must be above 0, got -1"),
        ({"HDUCLAS1": "RESPONSE"}, r"HDUCLAS1 of SPECTRUM must be SPECTRUM, got RESPONSE"),
        ({"HDUCLAS2": "NET"}, r"the background must not be subtracted"),
        ({"extra": [("BACKSCAL", "E", np.ones(6))]}, r"BACKSCAL and AREASCAL must be keywords"),
        ({"extra": [("QUALITY", "2I", np.zeros((6, 2)))]}, r"QUALITY must be one number a row"),
    ],
)
def test_a_spectrum_that_cannot_be_is_refused_with_its_row(tmp_path, options, message):
    path = made.write_pha(tmp_path / "a.pi", **options)
    with pytest.raises(ValueError, match=message):
        read_pha(path)


def test_a_file_of_another_kind_is_refused_by_its_extensions_and_columns(tmp_path):
    arf, pha = made.write_arf(tmp_path / "a.arf"), made.write_pha(tmp_path / "a.pi")
    with pytest.raises(ValueError, match=r"a.arf must have an extension SPECTRUM, got PRIMARY, SPECRESP"):
        read_pha(arf)
    with pytest.raises(ValueError, match=r"a.pi must have an extension MATRIX"):
        read_rmf(pha)
    with fits.open(arf, mode="update") as file:
        file["SPECRESP"].columns.change_name("SPECRESP", "AREA")
    with pytest.raises(ValueError, match=r"must have columns .*; SPECRESP is not among ENERG_LO, ENERG_HI, AREA"):
        read_arf(arf)
    (tmp_path / "b.pi").write_text("no FITS")
    with pytest.raises(ValueError, match=r"cannot read .*b.pi as FITS"):
        read_pha(tmp_path / "b.pi")
    with pytest.raises(MissingDataError, match=r"there is no file .*c.pi"):
        read_pha(tmp_path / "c.pi")
    gap = made.ENERGY.copy()
    with pytest.raises(ValueError, match=r"SPECRESP must be finite, got nan in row 2"):
        read_arf(made.write_arf(tmp_path / "d.arf", gap, np.array([1.0, np.nan, 1, 1, 1])))
    with pytest.raises(ValueError, match=r"SPECRESP must be 0 cm\^2 or more, got -1 in row 4"):
        read_arf(made.write_arf(tmp_path / "d.arf", gap, np.array([1.0, 1, 1, -1, 1])))
    gap[2] = 1.5
    with pytest.raises(ValueError, match=r"ENERG_LO, got 2 in row 2"):
        read_arf(made.write_arf(tmp_path / "d.arf", gap))


def test_a_matrix_that_does_not_fit_its_channels_is_refused_with_its_row(tmp_path):
    path = made.write_rmf(tmp_path / "a.rmf", first=1)
    with fits.open(path, mode="update") as file:
        file["MATRIX"].header["TLMIN4"] = 3
    with pytest.raises(
        ValueError, match=r"row 1 of MATRIX needs 2 channels from 1 on .* there are 6 channels from 3 on"
    ):
        read_rmf(path)
    matrix = made.MATRIX.copy()
    matrix[1, 1] = np.nan
    path = made.write_rmf(tmp_path / "b.rmf", matrix, layout="full")
    with pytest.raises(ValueError, match=r"b.rmf: MATRIX must be finite and 0 or more, got .* in row 2"):
        read_rmf(path)


def test_an_arf_and_an_rmf_on_different_energies_are_named_with_the_row(tmp_path):
    rmf, other = read_rmf(made.write_rmf(tmp_path / "a.rmf")), made.ENERGY.copy()
    other[3] = 4.1
    arf = read_arf(made.write_arf(tmp_path / "a.arf", other))
    with pytest.raises(
        ValueError, match=r"a.arf and .*a.rmf must be on the same .*3 to 4.1 keV and 3 to 4 keV in row 3"
    ):
        check_same_energies(arf, rmf)
    short = read_arf(made.write_arf(tmp_path / "b.arf", made.ENERGY[:-1], made.AREA[:-1]))
    with pytest.raises(ValueError, match=r"must be on the same energies, got 4 bins and 5"):
        check_same_energies(short, rmf)
