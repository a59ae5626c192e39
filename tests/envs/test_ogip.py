"""OGIP files: what was written is read in every layout, real files have the numbers of their headers."""

import os
import re
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
    assert (found.exposure, found.area_scale, found.region) == (1000.0, 1.0, 0.5)
    assert found.named == {"RESPFILE": "a.rmf"}
    assert found.group.tolist() == [0, 0, 1, 2, 3, 3] and found.good.tolist() == [1, 1, 1, 0, 1, 0]
    plain = read_pha(made.write_pha(tmp_path / "b.pi"))
    assert plain.group.tolist() == list(range(6)) and plain.good.all()


def test_a_scale_may_be_a_column_that_has_the_same_number_in_all_channels(tmp_path):
    extra = [("BACKSCAL", "E", np.full(6, 0.25)), ("AREASCAL", "E", np.full(6, 0.5))]
    found = read_pha(made.write_pha(tmp_path / "a.pi", extra=extra, BACKSCAL=None, AREASCAL=None))
    assert (found.region, found.area_scale) == (0.25, 0.5)
    found = read_pha(made.write_pha(tmp_path / "b.pi", BACKSCAL=None, AREASCAL=None))
    assert (found.region, found.area_scale) == (None, 1.0)


def _rename(path, change):
    """`change` to the names of all extensions and of their columns."""
    with fits.open(path) as file:
        for unit in file[1:]:
            unit.header["EXTNAME"] = change(unit.name)
            for name in unit.columns.names:
                unit.columns.change_name(name, change(name))
        file.writeto(path, overwrite=True)


def test_names_of_extensions_and_columns_are_of_either_case(tmp_path):
    extra = [("GROUPING", "I", [1, -1, 1, 0, 1, -1]), ("QUALITY", "I", [0, 0, 0, 2, 0, 5])]
    pha, arf = made.write_pha(tmp_path / "a.pi", extra=extra), made.write_arf(tmp_path / "a.arf")
    rmf = made.write_rmf(tmp_path / "a.rmf", first=0)
    for path in (pha, arf, rmf):
        _rename(path, str.lower)
    spectrum = read_pha(pha)
    assert spectrum.group.tolist() == [0, 0, 1, 2, 3, 3] and spectrum.good.tolist() == [1, 1, 1, 0, 1, 0]
    assert read_arf(arf).area.tolist() == made.AREA.tolist()
    found = read_rmf(rmf)
    assert found.matrix == pytest.approx(made.MATRIX, abs=1e-7) and found.first_channel == 0
    with fits.open(arf, mode="update") as file:
        file["SPECRESP"].columns.change_unit("specresp", "m**2")
    with pytest.raises(ValueError, match=r"SPECRESP of SPECRESP must be in cm\^2"):
        read_arf(arf)


def test_an_extension_of_another_name_is_known_by_its_class(tmp_path):
    path = made.write_pha(tmp_path / "a.pi")
    with fits.open(path, mode="update") as file:
        file["SPECTRUM"].name = "SOURCE"
    assert read_pha(path).counts.tolist() == made.COUNTS.tolist()


def test_a_second_spectrum_or_matrix_is_refused(tmp_path):
    pha, rmf = made.write_pha(tmp_path / "a.pi"), made.write_rmf(tmp_path / "a.rmf", layout="fixed")
    for path, read in ((pha, read_pha), (rmf, read_rmf)):
        with fits.open(path) as file:
            name = file[1].name
            again = file[1].copy()
            again.name = f"{name}2"
            fits.HDUList([*file, again]).writeto(path, overwrite=True)
        message = rf"{path.name} must have one extension {name}, got 2 of the kind: {name}, {name}2"
        with pytest.raises(ValueError, match=message):
            read(path)


def test_an_exposure_may_stand_in_the_first_header(tmp_path):
    path = made.write_pha(tmp_path / "a.pi", EXPOSURE=None)
    with pytest.raises(ValueError, match=r"EXPOSURE in SPECTRUM or the first header must be .*, got None"):
        read_pha(path)
    fits.setval(path, "EXPOSURE", value=700.0, ext=0)
    assert read_pha(path).exposure == 700.0
    fits.setval(path, "EXPOSURE", value=800.0, ext=1)
    assert read_pha(path).exposure == 800.0


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
        ({"EXPOSURE": 0.0}, r"a.pi: EXPOSURE in SPECTRUM or .* must be a time above 0 s, got 0.0"),
        ({"BACKSCAL": -1.0}, r"a.pi: BACKSCAL must be a number above 0, got -1.0"),
        ({"BACKSCAL": "a.fits"}, r"a.pi: BACKSCAL must be a number above 0, got a.fits"),
        ({"AREASCAL": 0}, r"a.pi: AREASCAL must be a number above 0, got 0"),
        ({"extra": [("GROUPING", "I", [1, -1, 7, 0, 1, -1])]}, r"a.pi: GROUPING must be 1, -1 or 0, got 7 in row 3"),
        ({"extra": [("GROUPING", "I", [-1, -1, 1, 1, 1, 1])]}, r"GROUPING of the first .*, got -1 in row 1"),
        ({"HDUCLAS1": "RESPONSE"}, r"HDUCLAS1 of SPECTRUM must be SPECTRUM, got RESPONSE"),
        ({"HDUCLAS2": "Net"}, r"the background must not be subtracted"),
        ({"CORRFILE": "my.cor"}, r"a.pi: CORRFILE must be none, no such correction is made, got my.cor"),
        (
            {"POISSERR": False, "extra": [("STAT_ERR", "E", np.sqrt([3, 9, 26.01, 7, 2, 0]))]},
            r"a.pi: POISSERR is not T, so STAT_ERR must be an error of Poisson's, .*, got 5.1 in row 3$",
        ),
        ({"POISSERR": False, "STAT_ERR": 2.0}, r"STAT_ERR must be an error of Poisson's, .*, got 2 in row 1, and in 4"),
        ({"QUALITY": "good"}, r"a.pi: QUALITY must be a number, got good"),
        ({"HDUCLAS4": "TYPE:II"}, r"a.pi is a PHA file of type II, of several .* extract one to a file of type I"),
        ({"extra": [("SPEC_NUM", "I", range(6))]}, r"a.pi is a PHA file of type II"),
        ({"extra": [("BACKSCAL", "E", [2, 2, 2, 3, 2, 4])]}, r"BACKSCAL must be 2 in all .*, got 3 in row 4, and in 1"),
        ({"extra": [("AREASCAL", "E", np.zeros(6))]}, r"AREASCAL must be a number above 0, got 0.0"),
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
    with pytest.raises(ValueError, match=r"ENERG_LO must be 0 keV or more, and below ENERG_HI, got 2 in row 2"):
        read_arf(made.write_arf(tmp_path / "d.arf", gap))
    path = made.write_arf(tmp_path / "d.arf")
    with fits.open(path, mode="update") as file:
        file["SPECRESP"].data["ENERG_LO"][3] = 4.25
    with pytest.raises(ValueError, match=r"ENERG_LO must be ENERG_HI of the row before, in keV, got 4.25 in row 4$"):
        read_arf(path)
    with fits.open(path, mode="update") as file:
        file["SPECRESP"].data[:] = file["SPECRESP"].data[::-1].copy()
    with pytest.raises(ValueError, match=r"ENERG_HI must be ENERG_LO of the row before, in keV, got 4 in row 3$"):
        read_arf(path)


@pytest.mark.parametrize(
    ("kind", "column", "unit", "expected"),
    [
        ("arf", "ENERG_HI", "eV", "keV"),
        ("arf", "SPECRESP", "m**2", r"cm\^2"),
        ("rmf", "ENERG_LO", "Angstrom", "keV"),
        ("rmf", "E_MAX", "eV", "keV"),
        ("pi", "COUNTS", "count/s", "counts"),
    ],
)
def test_columns_in_other_units_are_refused_by_name(tmp_path, kind, column, unit, expected):
    write, read, extension = {
        "arf": (made.write_arf, read_arf, "SPECRESP"),
        "rmf": (made.write_rmf, read_rmf, "EBOUNDS" if column == "E_MAX" else "MATRIX"),
        "pi": (made.write_pha, read_pha, "SPECTRUM"),
    }[kind]
    path = write(tmp_path / f"a.{kind}")
    read(path)
    with fits.open(path, mode="update") as file:
        file[extension].columns.change_unit(column, unit)
    message = rf"a.{kind}: {column} of {extension} must be in {expected}, TUNIT says {re.escape(unit)}"
    with pytest.raises(ValueError, match=message):
        read(path)


@pytest.mark.parametrize("unit", ["cm2", "cm^2", "cm**2", "cm^(2)", "cm**(+2)", "cm+2", "CM 2"])
def test_an_area_in_square_centimetres_is_known_however_it_is_written(tmp_path, unit):
    path = made.write_arf(tmp_path / "a.arf")
    with fits.open(path, mode="update") as file:
        file["SPECRESP"].columns.change_unit("SPECRESP", unit)
    assert read_arf(path).area.tolist() == made.AREA.tolist()
    with fits.open(path, mode="update") as file:
        file["SPECRESP"].columns.change_unit("SPECRESP", unit.replace("2", "-2"))
    with pytest.raises(ValueError, match=r"SPECRESP of SPECRESP must be in cm\^2"):
        read_arf(path)


def test_rows_that_go_down_in_energy_are_turned_round(tmp_path):
    arf, rmf = made.write_arf(tmp_path / "a.arf"), made.write_rmf(tmp_path / "a.rmf", layout="fixed")
    for path in (arf, rmf):
        with fits.open(path, mode="update") as file:
            file[1].data[:] = file[1].data[::-1].copy()
    area, found = read_arf(arf), read_rmf(rmf)
    assert area.area.tolist() == made.AREA.tolist() and found.matrix == pytest.approx(made.MATRIX, abs=1e-7)
    assert area.energy[:, 0].tolist() == found.energy[:, 0].tolist() == made.ENERGY[:-1].tolist()


def test_a_file_that_ends_early_or_holds_an_image_is_named(tmp_path):
    path = made.write_pha(tmp_path / "a.pi")
    path.write_bytes(path.read_bytes()[:5760])  # the headers alone
    with pytest.raises(ValueError, match=r"cannot read .*a.pi as FITS, is all of it there\?"):
        read_pha(path)
    image = fits.ImageHDU(np.ones((3, 3)), name="SPECTRUM")
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(tmp_path / "b.pi")
    with pytest.raises(ValueError, match=r"b.pi: SPECTRUM must be a table, got an image"):
        read_pha(tmp_path / "b.pi")


def test_errors_that_are_not_of_counting_are_said_to_be_left_out(tmp_path, caplog):
    read_pha(made.write_pha(tmp_path / "a.pi", extra=[("SYS_ERR", "E", [0, 0, 0.1, 0, 0, 0])]))
    assert "a.pi: SYS_ERR of up to 0.1 is left out" in caplog.text
    read_pha(made.write_pha(tmp_path / "b.pi", SYS_ERR=0.03))
    assert "b.pi: SYS_ERR of up to 0.03 is left out" in caplog.text
    caplog.clear()
    read_pha(made.write_pha(tmp_path / "c.pi", SYS_ERR=0.0))
    assert not caplog.text


@pytest.mark.parametrize("error", [np.sqrt(made.COUNTS), 1 + np.sqrt(made.COUNTS + 0.75), np.zeros(6)])
def test_errors_of_counting_are_no_news_and_others_are_if_poissons_are_to_be_taken(tmp_path, error):
    read_pha(made.write_pha(tmp_path / "a.pi", extra=[("STAT_ERR", "E", error)], POISSERR=False))
    read_pha(made.write_pha(tmp_path / "b.pi", extra=[("STAT_ERR", "E", error + 3)], POISSERR=True))


def test_a_quality_of_the_whole_spectrum_and_corrections_by_nothing(tmp_path):
    assert not read_pha(made.write_pha(tmp_path / "a.pi", QUALITY=5)).good.any()
    for keywords in ({"CORRFILE": "none"}, {"CORRFILE": "NONE", "CORRSCAL": 1.0}, {"CORRFILE": " "}, {"CORRSCAL": 1.0}):
        assert read_pha(made.write_pha(tmp_path / "b.pi", QUALITY=0, **keywords)).good.all()
    read_pha(made.write_pha(tmp_path / "c.pi", CORRFILE="my.cor", CORRSCAL=0.0))


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
    path = made.write_rmf(tmp_path / "c.rmf", made.MATRIX * made.AREA[:, None])
    with pytest.raises(ValueError, match=r"c.rmf: a row of MATRIX is of probabilities .*, got 10 in row 1, and in 3"):
        read_rmf(path)
    path = made.write_rmf(tmp_path / "d.rmf", made.MATRIX * made.AREA[:, None], HDUCLAS3="FULL")
    assert read_rmf(path).matrix.sum(1) == pytest.approx(made.MATRIX.sum(1) * made.AREA, rel=1e-6)
    for extension, column, value, message in (
        ("EBOUNDS", "E_MIN", 30.0, r"e.rmf: E_MIN of EBOUNDS .* below E_MAX, got 30 in row 3"),
        ("EBOUNDS", "E_MIN", -1.0, r"e.rmf: E_MIN of EBOUNDS must be 0 keV or more, .* got -1 in row 3"),
        ("MATRIX", "N_GRP", -1, r"e.rmf: N_GRP must be 0 or more, got -1 in row 3"),
    ):
        path = made.write_rmf(tmp_path / "e.rmf", layout="fixed")
        with fits.open(path, mode="update") as file:
            file[extension].data[column][2] = value
        with pytest.raises(ValueError, match=message):
            read_rmf(path)


def test_energies_are_those_of_the_channel_that_a_row_names(tmp_path, caplog):
    path, order = made.write_rmf(tmp_path / "a.rmf", first=0), [3, 0, 5, 1, 2, 4]
    with fits.open(path, mode="update") as file:
        file["EBOUNDS"].data[:] = file["EBOUNDS"].data[order].copy()
    assert read_rmf(path).channel_energy[:, 0].tolist() == made.CHANNEL_ENERGY[:-1].tolist() and not caplog.text
    with fits.open(path, mode="update") as file:
        file["EBOUNDS"].data["CHANNEL"] = np.arange(6)
    message = r"a.rmf: energies of EBOUNDS must go up, or down, .* 3.75 and 0.75 keV in channels 0 and 1"
    with pytest.raises(ValueError, match=message):
        read_rmf(path)
    with fits.open(path, mode="update") as file:
        for name in ("E_MIN", "E_MAX"):
            file["EBOUNDS"].data[name] = np.sort(file["EBOUNDS"].data[name])[::-1].copy()
    assert read_rmf(path).channel_energy[:, 0].tolist() == made.CHANNEL_ENERGY[:-1][::-1].tolist()


def test_rows_that_name_no_channels_are_taken_in_order_with_a_warning(tmp_path, caplog):
    path = made.write_rmf(tmp_path / "a.rmf")
    with fits.open(path, mode="update") as file:
        file["EBOUNDS"].data["CHANNEL"] = [0, 0, 3, 0, 0, -32768]
    assert read_rmf(path).channel_energy[:, 0].tolist() == made.CHANNEL_ENERGY[:-1].tolist()
    assert "a.rmf: CHANNEL of EBOUNDS is not each channel from 1 to 6 once, so its rows are taken in" in caplog.text


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
