"""Tables of visibilities: what is read, what is refused with its place, and what an average costs."""

import bz2
import gzip
import logging
import math
import os
from pathlib import Path

import numpy as np
import pytest

from envs.data import MissingDataError, VisibilityTable, read_visibilities
from envs.data.visibilities import average_in_cells, average_in_time

DATA = Path(os.environ.get("RTB_DATA", "nowhere"))
EHT = DATA / "eht_m87_2017"
needs_eht = pytest.mark.skipif(not EHT.is_dir(), reason="RTB_DATA has no eht_m87_2017")
needs_alma = pytest.mark.skipif(not (DATA / "alma_frank").is_dir(), reason="RTB_DATA has no alma_frank")
HEADER = "#SRC:M87\n#time(UTC),T1,T2,U(lambda),V(lambda),Iamp(Jy),Iphase(d),Isigma(Jy)\n"
ROW = "0.5,AA,PV,-4e9,-4.5e9,2.0,90.0,0.1\n"


def _written(path, text):
    path.write_text(text)
    return path


def test_a_table_is_read_with_its_weights_as_inverse_variances(tmp_path):
    text = "# u [lambda] v[lambda] Re(V) [Jy] Im(V) [Jy] weight [Jy^-2]\n# wavelength[m] = 0.0013, weighted (1)\n"
    text += "1e5 -2e5 0.5 -0.25 400\n\n3e5 1e4 1 2 4\n"
    path = tmp_path / "table.txt.bz2"
    path.write_bytes(bz2.compress(text.encode()))
    table = read_visibilities(path)
    assert table.u.tolist() == [1e5, 3e5] and table.v.tolist() == [-2e5, 1e4]
    assert table.value.tolist() == [0.5 - 0.25j, 1 + 2j] and table.std.tolist() == [0.05, 0.5]
    assert table.time is None and table.stations is None and table.flagged == 0


def test_the_csv_is_read_by_the_names_of_its_columns(tmp_path):
    moved = "#T1,T2,time(UTC),Isigma(Jy),U(lambda),V(lambda),Iphase(d),Iamp(Jy)\nAA,PV,0.5,0.1,-4e9,-4.5e9,90.0,2.0\n"
    for name, text in (("a.csv", HEADER + ROW), ("b.csv", moved)):
        table = read_visibilities(_written(tmp_path / name, text))
        assert table.value == pytest.approx([2j], abs=1e-12) and table.std == pytest.approx([0.1])
        assert table.stations.tolist() == [["AA", "PV"]] and table.time.tolist() == [0.5]
        assert (table.u[0], table.v[0]) == (4e9, 4.5e9)  # the second station less the first


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "1 2 3 4\n", r"a.txt, line 1: expected 5 columns \(u, v, Re\(V\), Im\(V\), weight\), got 4"),
        ("a.txt", "# a\n1 2 3 4 5\n1 2 3 x 5\n", "a.txt, line 3: could not convert string to float: 'x'"),
        ("a.txt", "1 2 3 4 5\n1 2 nan 4 5\n", r"a.txt, line 2: Re\(V\) must be finite, got nan; flag it by weight 0"),
        ("a.txt", "1 2 3 4 5\n\n1 2 3 4 -5\n", "a.txt, line 3: weights must be finite and not negative, got -5.0"),
        ("a.txt", "1 2 3 4 nan\n", "a.txt, line 1: weights must be finite and not negative, got nan"),
        ("a.txt", "1 2 3 4 5\n1 2 3 4 0\n1 2 3 4 0\n", "a.txt: 2 of 3 rows are flagged by .* the first in line 2"),
        ("a.txt", "# u[m] v[m] Re[Jy] Im[Jy] w[Jy^-2]\n1 2 3 4 5\n", r"a.txt: u must be in \[lambda\], .* says \[m\]"),
        ("a.txt", "# u(m) v(m) Re(V)(Jy) Im(V)(Jy)\n1 2 3 4 5\n", r"a.txt: u must be in \[lambda\], .* says \[m\]"),
        ("a.txt", "# u[lambda] v[klambda] Re Im w\n1 2 3 4 5\n", r"v must be in \[lambda\], .* says \[klambda\]"),
        ("a.txt", "# u[lambda] v[lambda] Re(V)[mJy] Im(V) w\n1 2 3 4 5\n", r"Re\(V\) must be in \[Jy\], .* \[mJy\]"),
        ("a.txt", "# u v Re[mJy] Im[mJy] w\n1 2 3 4 5\n", r"a.txt: columns must be in lambda, .* speaks of mJy: conv"),
        ("a.txt", "# units: klambda, Jy\n1 2 3 4 5\n", r"a.txt: columns must be in lambda, .* speaks of klambda: conv"),
        ("a.txt", "# u[lambda] v[lambda] weight [Jy]\n1 2 3 4 5\n", r"weight must be in \[Jy\^-2\], .* \[Jy\]"),
        ("a.txt", "# nothing\n", "a.txt has no row of numbers"),
        ("a.csv", ROW, r"a.csv must name its columns time, T1, .* missing: time, T1, T2, U, V, Iamp, Iphase, Isigma"),
        ("a.csv", HEADER.replace("Isigma(Jy)", "weight(1)") + ROW, "missing: Isigma"),
        ("a.csv", HEADER.replace("U(lambda)", "U(m)") + ROW, r"a.csv: U must be in \[lambda\], the file says \[m\]"),
        ("a.csv", HEADER + ROW + ROW.replace("0.1\n", "0\n"), "a.csv, line 4: Isigma must be positive, got 0.0"),
        ("a.csv", HEADER + ROW.replace("2.0", "-2.0"), "a.csv, line 3: Iamp must be finite and 0 or more, got -2.0"),
        ("a.csv", HEADER + ROW.replace("PV", "AA"), "a.csv, line 3: a baseline has two stations, got AA twice"),
        ("a.csv", HEADER + ROW + ROW.replace("90.0", "inf"), "a.csv, line 4: Iphase must be finite, got inf"),
        ("a.csv", HEADER + ROW + "1,2\n", "a.csv, line 4: expected 8 columns, got 2"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_the_file_and_the_row(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_visibilities(_written(tmp_path / name, text))


@pytest.mark.parametrize(
    ("comment", "spoken"),
    [
        ("U[m] V[m]", r"u must be in \[lambda\], the file says \[m\]"),
        ("uu(m) vv(m) re im wgt", r"u must be in \[lambda\], the file says \[m\]"),
        ("u[m], v", r"speaks of u\[m"),
        ("u, v [km]", r"speaks of v \[km"),
        ("u_m v_m Re Im weight", "speaks of u_m"),
        ("uv in ns", "speaks of in ns"),
        ("units: m, Jy", "speaks of units: m"),
        ("u and v in metres", "speaks of metres"),
        ("Baselines are in Kilometers", "speaks of Kilometers"),
        ("u, v in seconds", "speaks of in seconds"),
        ("uv in megalambda", "speaks of megalambda"),
        ("u and v in Mega wavelengths", "speaks of Mega wavelengths"),
        ("UV: KLAMBDA", "speaks of KLAMBDA"),
        ("u, v in Gλ", "speaks of Gλ"),
        ("u v Re Im weight in MJY", "speaks of MJY"),
        ("flux densities in millijansky", "speaks of millijansky"),
        ("u v Re Im [mjy]", "speaks of mjy"),
    ],
)
def test_other_units_in_a_comment_are_refused_however_they_are_spelt(tmp_path, comment, spoken):
    with pytest.raises(ValueError, match=f"a.txt: .*{spoken}"):
        read_visibilities(_written(tmp_path / "a.txt", f"# {comment}\n1 2 3 4 5\n"))


@pytest.mark.parametrize(
    "comment",
    [
        "u [wavelengths] v [λ] Re(V) [Jy] Im(V) [jy] weight [1/Jy^2]",
        "u(lambda) v(lambda) Re(Jansky) Im(Jy) weight(Jy**-2)",
        "U [Wavelength] V [Lambda] weights [Jy⁻²]",
        "u v Re Im weight [Jy^{-2}]",
        "u [lambda] v [lambda] of V [Jy]",
        "dishes of 12 metres, wavelength[m] = 0.0013",
        "u and v at 1.3 mm; the longest baseline has 16.2 kilometres, scans 30 seconds",
        "u and v in M87, in some minutes, in mean, in m87.csv",
        "team of B. Metre; some comment in millions",
    ],
)
def test_equal_units_and_comments_about_other_things_are_taken(tmp_path, comment):
    assert len(read_visibilities(_written(tmp_path / "a.txt", f"# {comment}\n1 2 3 4 5\n"))) == 1


def test_equal_units_of_the_csv_are_taken_and_others_refused(tmp_path):
    header = "#time(hr),T1,T2,U(wavelengths),V(λ),Iamp(jy),Iphase(deg),Isigma(Jansky)\n"
    assert read_visibilities(_written(tmp_path / "a.csv", header + ROW)).value == pytest.approx([2j], abs=1e-12)
    with pytest.raises(ValueError, match=r"Iphase must be in \[d\], the file says \[rad\]"):
        read_visibilities(_written(tmp_path / "b.csv", header.replace("deg", "rad") + ROW))
    with pytest.raises(ValueError, match=r"time must be in \[UTC\], the file names no unit"):
        read_visibilities(_written(tmp_path / "c.csv", header.replace("(hr)", "") + ROW))


def test_copies_and_conjugates_of_rows_are_kept_and_warned_of(tmp_path, caplog):
    rows = ["1 2 3 4 5", "-1 -2 3 -4 5", "1 2 3 4 6", "9 9 9 9 0", "1 2 3 4 5"]
    rows += ["0 0 1 2 3", "0 0 1 -2 3", "0 -2 1 0 3", "-0 2 1 -0 3", "5 6 7 8 9"]
    path = _written(tmp_path / "a.txt", "\n".join(rows) + "\n")
    assert len(read_visibilities(path, flagged="drop")) == 9
    (record,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert "a.txt: 4 of 9 rows are copies of others, or their conjugates at (-u, -v)" in record.message
    assert record.message.endswith(": line 2 of line 1, line 5 of line 1, line 7 of line 6, ...")
    caplog.clear()
    turned = "0.5,PV,AA,4e9,4.5e9,2.0,-90.0,0.1\n"
    read_visibilities(_written(tmp_path / "a.csv", HEADER + ROW + turned))
    assert caplog.text.rstrip().endswith("count twice: line 4 of line 3")
    caplog.clear()
    read_visibilities(_written(tmp_path / "b.csv", HEADER + ROW + turned.replace("0.5,", "0.6,")))
    read_visibilities(_written(tmp_path / "b.txt", "1 2 3 4 5\n1 2 3 -4 5\n-1 -2 3 4.5 5\n"))
    assert not caplog.text


COMMAS = "1e5,-2e5,0.5,-0.25,400\n"


@pytest.mark.parametrize(
    "text",
    [
        COMMAS,
        COMMAS.replace(",", ", "),
        "# u,v,re,im,w\n" + COMMAS,
        "u,v,Re,Im,weight\n" + COMMAS,
        "u [lambda], v [lambda], Re(V) [Jy], Im(V) [Jy], weight [1/Jy^2]\n" + COMMAS,
        "u v Re Im weight\n" + COMMAS.replace(",", " "),
        "\ufeffu,v,Re,Im,weight\n" + COMMAS,
        "\ufeff" + COMMAS,
        "u,v,Re,Im,weight,\n" + COMMAS.replace("400", "400,"),
    ],
)
def test_a_table_may_have_commas_a_header_and_a_byte_order_mark(tmp_path, text):
    table = read_visibilities(_written(tmp_path / "a.csv", text))
    assert (table.u.tolist(), table.v.tolist(), table.std.tolist()) == ([1e5], [-2e5], [0.05])
    assert table.value.tolist() == [0.5 - 0.25j] and table.stations is None


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + HEADER + ROW,
        HEADER.replace("#time", "time") + ROW,
        "\ufeff" + HEADER.split("\n")[1][1:] + "\n" + ROW,
        HEADER + ROW.replace("0.1", "0.1,"),
        HEADER.replace("Isigma(Jy)", "Isigma(Jy),") + ROW.replace("0.1", "0.1,"),
    ],
)
def test_the_csv_may_have_a_byte_order_mark_a_last_comma_and_a_header_without_a_hash(tmp_path, text):
    table = read_visibilities(_written(tmp_path / "a.csv", text))
    assert table.stations.tolist() == [["AA", "PV"]] and table.std == pytest.approx([0.1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("u,v,Re,Im,sigma\n" + COMMAS, r"columns must be u, v, .*; the file says sigma for weight"),
        ("# Re,Im,u,v,weight\n" + COMMAS, r"columns must be u, v, .*; the file says Re for u"),
        ("u,v,amp,phase,weight\n" + COMMAS, r"the file says amp for Re\(V\)"),
        ("u[m],v[m],Re,Im,weight\n" + COMMAS, r"u must be in \[lambda\], the file says \[m\]"),
        ("a,b,c,d,e\n" + COMMAS, "a.csv, line 1: could not convert string to float: 'a'"),
        ("u,v,Re,Im,weight\n", "a.csv has no row of numbers"),
        (COMMAS + "1,2,3\n", r"a.csv, line 2: expected 5 columns \(u, v, Re\(V\), Im\(V\), weight\), got 3"),
        ("1,2,3,4,5,6\n", r"must name its columns time, .* or have the 5 columns u, v, .* and no more, got 6; missing"),
        ("#time(UTC),T1,T2,U(lambda),V(lambda)\n0.5,AA,PV,1,2\n", "missing: Iamp, Iphase, Isigma"),
    ],
)
def test_commas_with_other_columns_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_visibilities(_written(tmp_path / "a.csv", text))


def test_flagged_rows_are_dropped_only_when_asked_and_are_counted_and_logged(tmp_path, caplog):
    path = _written(tmp_path / "a.txt", "1 2 3 4 5\n1 2 nan 4 0\n3 4 5 6 7\n")
    with caplog.at_level(logging.INFO):
        table = read_visibilities(path, flagged="drop")
    assert len(table) == 2 and table.flagged == 1 and table.u.tolist() == [1.0, 3.0]
    assert "1 of 3 rows are flagged by their weight, the first in line 2; they are left out" in caplog.text
    with pytest.raises(ValueError, match="none is left"):
        read_visibilities(_written(tmp_path / "b.txt", "1 2 3 4 0\n"), flagged="drop")
    with pytest.raises(ValueError, match="flagged must be refuse or drop, got 'keep'"):
        read_visibilities(path, flagged="keep")
    with pytest.raises(MissingDataError, match="no file of visibilities at"):
        read_visibilities(tmp_path / "c.txt")


def _uvfits(
    path,
    *,
    stokes=-1.0,
    data=None,
    seconds=1e-5,
    unit="JY",
    names=("UU---SIN", "VV---SIN", "BASELINE", "DATE"),
    more=None,
    third="RA",
    baseline=(258, 259, 515),
):
    """Three groups of two channels of RR, LL; weights 4 and 4 unless `data` [3, 1, 1, 2, 2, 3] says otherwise."""
    fits = pytest.importorskip("astropy.io.fits")
    if data is None:
        data = np.ones((3, 1, 1, 2, 2, 3), np.float32)
        data[..., 0, 1], data[..., 2] = 0.5, 4.0  # RR = 1 + 0.5i, LL = 1 + 1i
    groups = [seconds * np.arange(1, 4), -seconds * np.arange(3), np.array(baseline), np.full(3, 2457850.0)]
    names, groups = [*names, *(more or {})], [*groups, *(more or {}).values()]
    unit_of_groups = fits.GroupsHDU(fits.GroupData(data, bitpix=-32, parnames=names, pardata=groups))
    header = unit_of_groups.header
    header["BUNIT"] = unit
    axes = {2: ("COMPLEX", 1, 1), 3: ("STOKES", stokes, -1), 4: ("FREQ", 2e11, 1e9), 5: (third, 1, 1), 6: ("DEC", 1, 1)}
    for axis, (name, value, step) in axes.items():
        header[f"CTYPE{axis}"], header[f"CRVAL{axis}"], header[f"CDELT{axis}"] = name, float(value), float(step)
        header[f"CRPIX{axis}"] = 1.0
    fits.HDUList([unit_of_groups]).writeto(path)
    return path


def test_uvfits_of_two_channels_and_two_hands_is_total_intensity_at_the_frequency_of_each_channel(tmp_path):
    table = read_visibilities(_uvfits(tmp_path / "a.uvfits"))
    assert table.u == pytest.approx([-2e6, -2.01e6, -4e6, -4.02e6, -6e6, -6.03e6], rel=1e-6)
    assert table.v == pytest.approx([0, 0, 2e6, 2.01e6, 4e6, 4.02e6], rel=1e-6)
    assert table.value == pytest.approx(np.full(6, 1 + 0.75j)) and table.std == pytest.approx(np.full(6, 0.5 / 2**0.5))
    assert table.stations[::2].tolist() == [["1", "2"], ["1", "3"], ["2", "3"]]
    assert table.time == pytest.approx(np.full(6, 12.0))  # a Julian date starts at noon


@pytest.mark.parametrize("name", ["a.fit", "a.uvp", "a.uvfits.gz", "a.txt", "a.UVF.GZ", "a"])
def test_formats_are_known_by_their_content_compressed_or_not(tmp_path, name):
    content = _uvfits(tmp_path / "made.uvfits").read_bytes()
    packed = gzip.compress if name.lower().endswith("gz") else bytes
    (tmp_path / name).write_bytes(packed(content))
    assert read_visibilities(tmp_path / name).name == name
    (tmp_path / name).write_bytes(gzip.compress(b"1 2 3 4 5\n"))
    assert read_visibilities(tmp_path / name).std == pytest.approx([5**-0.5])
    (tmp_path / name).write_bytes(gzip.compress(content)[:-60])
    with pytest.raises(ValueError, match=f"cannot read .*{name} as FITS, is all of it there"):
        read_visibilities(tmp_path / name)
    (tmp_path / name).write_bytes(gzip.compress(b"1 2 3 4 5\n")[:8])
    with pytest.raises(ValueError, match=f"{name} cannot be read as text"):
        read_visibilities(tmp_path / name)


def test_a_file_that_is_called_uvfits_and_is_none_is_named(tmp_path):
    pytest.importorskip("astropy.io.fits")
    with pytest.raises(ValueError, match=r"cannot read .*a\.uvfits as FITS"):
        read_visibilities(_written(tmp_path / "a.uvfits", "not found\n"))


def test_uvfits_that_is_flagged_or_not_what_it_should_be_is_named(tmp_path):
    data = np.ones((3, 1, 1, 2, 2, 3), np.float32)
    data[1, 0, 0, 1, 0, 2] = -4.0  # RR of the second channel of the second group
    path = _uvfits(tmp_path / "a.uvfits", data=data)
    with pytest.raises(ValueError, match="1 of 6 rows are flagged by their weight, the first in group 2"):
        read_visibilities(path)
    assert len(read_visibilities(path, flagged="drop")) == 5
    data[2, 0, 0, 0, 1, 0] = np.nan
    with pytest.raises(ValueError, match=r"group 3: Re\(V\) must be finite, got nan"):
        read_visibilities(_uvfits(tmp_path / "b.uvfits", data=data), flagged="drop")
    with pytest.raises(ValueError, match="must be in seconds of light travel, got up to 3e"):
        read_visibilities(_uvfits(tmp_path / "c.uvfits", seconds=1e6))
    with pytest.raises(ValueError, match="must be in Jy, BUNIT says 'UNCALIB'"):
        read_visibilities(_uvfits(tmp_path / "d.uvfits", unit="UNCALIB"))
    with pytest.raises(ValueError, match=r"must hold Stokes I, RR and LL, .* or one of these; got .* \[-3, -4\]"):
        read_visibilities(_uvfits(tmp_path / "e.uvfits", stokes=-3))
    with pytest.raises(ValueError, match="has no group parameter BASELINE, got"):
        read_visibilities(_uvfits(tmp_path / "f.uvfits", names=("UU", "VV", "PAIR", "DATE")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"CRVAL4": 230.0}, r"a.uvfits: FREQ must be in Hz, above 1e\+06, got 230"),
        ({"CRVAL4": None}, r"a.uvfits: the axis FREQ must have its value in CRVAL4, which is not in the header"),
        ({"CTYPE5": "IF", "CTYPE6": "RA"}, None),
    ],
)
def test_frequencies_of_uvfits_are_known_or_it_is_refused(tmp_path, changes, message):
    fits = pytest.importorskip("astropy.io.fits")
    path = _uvfits(tmp_path / "a.uvfits")
    with fits.open(path, mode="update") as file:
        for key, value in changes.items():
            file[0].header[key] = value
            if value is None:
                del file[0].header[key]
    if message is None:
        assert len(read_visibilities(path)) == 6  # one IF needs no table of frequencies
        return
    with pytest.raises(ValueError, match=message):
        read_visibilities(path)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("SOURCE", (1, 1, 2), r"a.uvfits, group 3: all groups must be of one source, got SOURCE \[1.0, 2.0\]"),
        ("FREQSEL", (1, 2, 1), r"group 2: all groups must be of one set of frequencies, got FREQSEL \[1.0, 2.0\]"),
        ("SOURCE", (3, 3, 3), None),
    ],
)
def test_uvfits_of_several_sources_or_tunings_is_refused_with_the_group(tmp_path, name, values, message):
    path = _uvfits(tmp_path / "a.uvfits", more={name: np.array(values)})
    if message is None:
        assert len(read_visibilities(path)) == 6
        return
    with pytest.raises(ValueError, match=message):
        read_visibilities(path)


def test_uvfits_that_ends_early_or_has_one_frequency_for_two_bands_is_named(tmp_path):
    data = np.ones((3, 1, 2, 2, 2, 3), np.float32)
    path = _uvfits(tmp_path / "a.uvfits", data=data, third="IF")
    with pytest.raises(ValueError, match=r"a.uvfits: AIPS FQ must have IF FREQ of 2 bands, one an IF, got 1"):
        read_visibilities(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"cannot read .*a.uvfits as FITS, is all of it there\?"):
        read_visibilities(path)


@pytest.mark.parametrize("second", ["DATE", "_DATE"])
def test_a_day_and_its_fraction_are_added_under_either_name_of_the_second(tmp_path, second):
    table = read_visibilities(_uvfits(tmp_path / "a.uvfits", more={second: np.array([0.125, 0.25, 1.0])}))
    assert table.time[::2] == pytest.approx([15.0, 18.0, 36.0])


def test_a_date_whose_day_is_in_the_zero_of_its_parameter_keeps_its_fraction(tmp_path):
    fits = pytest.importorskip("astropy.io.fits")
    path = _uvfits(tmp_path / "a.uvfits")
    with fits.open(path) as file:
        file[0].data.field(3)[:] = [0.0625, 0.125, 0.25]
        file.writeto(path, overwrite=True)
    content, end = path.read_bytes(), b"END" + b" " * 77
    card = b"PZERO4  =            2457850.0".ljust(80)  # put in by hand: astropy would change the numbers to match
    path.write_bytes(content.replace(end + b" " * 80, card + end, 1))
    assert read_visibilities(path).time[::2] == pytest.approx([13.5, 15.0, 18.0], abs=1e-6)


def _frequencies(offsets, selections, name="FRQSEL"):
    fits = pytest.importorskip("astropy.io.fits")
    columns = [fits.Column(name, "J", array=selections), fits.Column("IF FREQ", f"{len(offsets[0])}D", array=offsets)]
    return fits.BinTableHDU.from_columns(columns, name="AIPS FQ")


def _with_tables(path, *tables):
    fits = pytest.importorskip("astropy.io.fits")
    with fits.open(path, mode="update") as file:
        for table in tables:
            file.append(table)
    return path


def test_frequencies_are_those_of_the_set_that_the_groups_choose(tmp_path):
    """UU is 1e-5 s in the first group; the bands are 0.1 THz apart from 0.2 or 0.7 THz on."""
    bands = {"data": np.ones((3, 1, 2, 2, 2, 3), np.float32), "third": "IF"}
    both = _frequencies([[0, 1e11], [5e11, 6e11]], [1, 2])
    for chosen, first in ((1, 2e6), (2, 7e6)):
        more = {"FREQSEL": np.full(3, float(chosen))}
        table = read_visibilities(_with_tables(_uvfits(tmp_path / f"{chosen}.uvfits", more=more, **bands), both))
        assert table.u[:4] == pytest.approx(-np.array([first, first + 1e4, first + 1e6, first + 1.01e6]), rel=1e-6)
    more = {"FREQSEL": np.full(3, 2.0)}
    one = _with_tables(_uvfits(tmp_path / "one.uvfits", more=more), _frequencies([[0], [1e11]], [1, 2]))
    assert read_visibilities(one).u[:2] == pytest.approx([-3e6, -3.01e6], rel=1e-6)  # one band needs no axis IF
    single = _with_tables(_uvfits(tmp_path / "single.uvfits", **bands), _frequencies([[5e11, 6e11]], [2]))
    assert read_visibilities(single).u[0] == pytest.approx(-7e6, rel=1e-6)
    more = {"FREQSEL": np.full(3, 3.0)}
    with pytest.raises(ValueError, match=r"b.uvfits: the groups are of FREQSEL 3, AIPS FQ has FRQSEL \[1, 2\]"):
        read_visibilities(_with_tables(_uvfits(tmp_path / "b.uvfits", more=more, **bands), both))
    with pytest.raises(ValueError, match=r"c.uvfits: AIPS FQ must have one row .* or a parameter FREQSEL .* got 2"):
        read_visibilities(_with_tables(_uvfits(tmp_path / "c.uvfits", **bands), both))
    other = _frequencies([[0, 1e11]], [1], name="SELECTION")
    with pytest.raises(ValueError, match=r"d\.uvfits: the table AIPS FQ has no column FRQSEL, got SELECTION, IF FREQ"):
        read_visibilities(_with_tables(_uvfits(tmp_path / "d.uvfits", more=more, **bands), other))


@pytest.mark.parametrize(
    ("stokes", "flagged", "hand"), [(-1, None, "RR"), (-6, None, "YY"), (-1, 1, "RR"), (-1, 0, "LL"), (-5, 0, "YY")]
)
def test_the_one_hand_there_is_is_total_intensity_with_its_own_variance(tmp_path, stokes, flagged, hand, caplog):
    """The first hand has 1 + 1i, the second 2 + 2i; one of them is `flagged` in all groups, or there is no second."""
    data = np.ones((3, 1, 1, 2, 1 if flagged is None else 2, 3), np.float32)
    data[..., 1:, :2], data[..., 2] = 2.0, 4.0
    if flagged is not None:
        data[..., flagged, 2] = 0
    with caplog.at_level(logging.INFO):
        table = read_visibilities(_uvfits(tmp_path / "a.uvfits", stokes=stokes, data=data))
    assert table.value == pytest.approx(np.full(6, 2 + 2j if flagged == 0 else 1 + 1j))
    assert table.std == pytest.approx(np.full(6, 0.5)) and table.flagged == 0
    assert f"a.uvfits has the hand {hand} alone: it is taken for Stokes I, as of no polarisation" in caplog.text


def test_rows_of_one_hand_in_a_file_of_two_are_flagged_and_the_message_says_why(tmp_path):
    data = np.ones((3, 1, 1, 2, 2, 3), np.float32)
    data[1, ..., 1, 2] = data[2, 0, 0, 0, :, 2] = 0
    path = _uvfits(tmp_path / "a.uvfits", data=data)
    message = r"3 of 6 rows are flagged by .*, the first in group 2 \(2 of them as one hand is missing\); read them"
    with pytest.raises(ValueError, match=message):
        read_visibilities(path)
    assert len(read_visibilities(path, flagged="drop")) == 3
    data[..., 2] = 0
    with pytest.raises(ValueError, match="6 of 6 rows are flagged by their weight, the first in group 1: none is left"):
        read_visibilities(_uvfits(tmp_path / "b.uvfits", data=data), flagged="drop")


def _antennas(names, numbers=(1, 2, 3), version=1):
    fits = pytest.importorskip("astropy.io.fits")
    columns = [fits.Column("ANNAME", "8A", array=list(names)), fits.Column("NOSTA", "J", array=list(numbers))]
    return fits.BinTableHDU.from_columns(columns, name="AIPS AN", ver=version)


@pytest.mark.parametrize("names", [("", "", ""), ("VLA", "VLA", "VLA"), ("AA", "PV", "AA"), ("AA", "", "PV")])
def test_stations_without_names_of_their_own_go_by_their_numbers(tmp_path, names, caplog):
    path = _with_tables(_uvfits(tmp_path / "a.uvfits"), _antennas(names))
    with caplog.at_level(logging.INFO):
        table = read_visibilities(path)
    assert table.stations[::2].tolist() == [["1", "2"], ["1", "3"], ["2", "3"]]
    assert "AIPS AN has no name for some stations or one for several: all go by their numbers" in caplog.text


def test_stations_beyond_255_are_told_apart(tmp_path):
    pairs = [(3, 7), (255, 300), (2000, 2001)]
    baseline = [256 * 3 + 7, 2048 * 255 + 300 + 65536, 2048 * 2000 + 2001 + 65536]
    table = read_visibilities(_uvfits(tmp_path / "a.uvfits", baseline=baseline))
    assert table.stations[::2].tolist() == [[str(one), str(other)] for one, other in pairs]
    own = {"ANTENNA2": np.array([7.0, 300.0, 2001.0]), "SUBARRAY": np.ones(3)}
    names = ("UU", "VV", "ANTENNA1", "DATE")
    table = read_visibilities(_uvfits(tmp_path / "b.uvfits", names=names, baseline=(3, 255, 2000), more=own))
    assert table.stations[::2].tolist() == [[str(one), str(other)] for one, other in pairs]


def test_several_subarrays_are_refused_unless_their_stations_agree(tmp_path):
    both = {"baseline": (258, 258.01, 515)}
    one, other = _antennas(("AA", "PV", "LM")), _antennas(("XX", "PV", "ZZ"), version=2)
    for name, options in (("a.uvfits", both), ("b.uvfits", {})):
        with pytest.raises(ValueError, match=rf"{name}: station 1 is AA in one table AIPS AN and XX in another: all "):
            read_visibilities(_with_tables(_uvfits(tmp_path / name, **options), one, other))
    for name, tables in (("c.uvfits", ()), ("d.uvfits", (one,))):
        with pytest.raises(ValueError, match=rf"{name}, group 2: all groups must be of one subarray, got \[1, 2\] and"):
            read_visibilities(_with_tables(_uvfits(tmp_path / name, **both), *tables))
    same = _antennas(("PV", "AA"), (2, 1), version=2)
    table = read_visibilities(_with_tables(_uvfits(tmp_path / "e.uvfits", **both), one, same))
    assert table.stations[::2].tolist() == [["AA", "PV"], ["AA", "PV"], ["PV", "LM"]]


def test_a_station_with_itself_is_left_out_of_uvfits_and_logged(tmp_path, caplog):
    data = np.ones((3, 1, 1, 2, 2, 3), np.float32)
    data[2, ..., 2] = -1
    path = _uvfits(tmp_path / "a.uvfits", baseline=(257, 258, 515), data=data)
    with caplog.at_level(logging.INFO):
        table = read_visibilities(path, flagged="drop")
    assert table.stations.tolist() == [["1", "2"]] * 2 and table.u == pytest.approx([-4e6, -4.02e6], rel=1e-6)
    assert "a.uvfits: 1 of 3 groups are of a station with itself, and are left out" in caplog.text
    assert "2 of 4 rows are flagged by their weight, the first in group 3" in caplog.text
    with pytest.raises(ValueError, match=r"b.uvfits: every group is of a station with itself, none of a baseline"):
        read_visibilities(_uvfits(tmp_path / "b.uvfits", baseline=(257, 514, 771)))


@needs_eht
def test_the_two_files_of_a_day_of_the_event_horizon_telescope_agree_and_have_the_known_numbers():
    table = read_visibilities(EHT / "csv" / "SR1_M87_2017_101_lo_hops_netcal_StokesI.csv")
    other = read_visibilities(EHT / "uvfits" / "SR1_M87_2017_101_lo_hops_netcal_StokesI.uvfits")
    assert len(table) == len(other) == 7447
    orders = [np.lexsort((*each.stations.T, each.time.round(4))) for each in (table, other)]
    assert (table.stations[orders[0]] == other.stations[orders[1]]).all()
    for name, tolerance in (("u", 2e3), ("v", 2e3), ("value", 2e-6), ("std", 2e-7), ("time", 1e-7)):
        difference = getattr(table, name)[orders[0]] - getattr(other, name)[orders[1]]
        assert np.abs(difference).max() < tolerance, name
    zero_spacing = (table.stations == ["AA", "AP"]).all(1)
    assert np.median(np.abs(table.value[zero_spacing])) == pytest.approx(1.21, abs=0.005)
    assert table.baseline.max() == pytest.approx(8.26e9, abs=0.005e9)
    assert len(np.unique(table.stations, axis=0)) == 21


@needs_alma
def test_the_published_subset_of_as_209_is_read():
    table = read_visibilities(DATA / "alma_frank" / "test_datafile.txt")
    assert len(table) == 196 and table.baseline.max() == pytest.approx(6.06e6, rel=1e-3)


def _point(east, north, u, v):
    return np.exp(-2j * math.pi * (u * east + v * north))


def _table(u, v, **columns):
    given = {"value": np.ones(len(u), complex), "std": np.full(len(u), 0.3)} | columns
    return VisibilityTable(name="made", u=np.asarray(u, float), v=np.asarray(v, float), **given)


def test_an_average_is_the_weighted_mean_keeps_the_information_and_is_logged(caplog):
    std, value = np.array([0.1, 0.2, 0.5]), np.array([1, 2 + 1j, 5.0])
    with caplog.at_level(logging.INFO):
        averaged = average_in_cells(_table([1.0, 2.0, 15.0], [1.0, 3.0, 1.0], value=value, std=std), 10.0)
    assert "made: 3 visibilities are averaged to 2, in cells of 10 wavelengths" in caplog.text
    weight = std[:2] ** -2
    assert averaged.value == pytest.approx([(weight @ value[:2]) / weight.sum(), 5.0])
    assert averaged.u == pytest.approx([(weight @ [1, 2]) / weight.sum(), 15.0])
    assert averaged.std == pytest.approx([weight.sum() ** -0.5, 0.5])


def test_visibilities_of_opposite_sides_meet_in_one_cell_as_conjugates():
    averaged = average_in_cells(_table([3.0, -3.0], [4.0, -4.0], value=np.array([1 + 2j, 1 - 2j])), 10.0)
    assert averaged.value == pytest.approx([1 + 2j]) and (averaged.u[0], averaged.v[0]) == pytest.approx((3.0, 4.0))


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_averaging_in_cells_weakens_a_point_source_as_the_formula_says(share):
    """A source at the edge of a field of 1 rad / 1000: 1 - (pi c l)^2 / 6 along each axis."""
    drawn = np.random.default_rng(0).uniform(0, 5e3, (2, 40_000))  # some 100 in a cell or more
    east = north = 0.5e-3
    table = _table(*drawn, value=_point(east, north, *drawn))
    averaged = average_in_cells(table, share / 1e-3)
    kept = (averaged.value / _point(east, north, averaged.u, averaged.v)).real
    expected = np.sinc(share * 0.5) ** 2
    assert kept.mean() == pytest.approx(expected, abs=0.002)
    assert expected == pytest.approx(1 - (math.pi * share * 0.5) ** 2 / 3, abs=0.02)


def test_averaging_in_time_keeps_baselines_apart_and_gives_a_span_one_time(caplog):
    time = np.array([0, 10, 20, 310, 320, 0, 20, 310]) / 3600
    stations = np.array([["A", "B"]] * 5 + [["A", "C"]] * 3)
    with caplog.at_level(logging.INFO):
        averaged = average_in_time(_table(np.arange(8.0), np.zeros(8), time=time, stations=stations), 300.0)
    assert "made: 8 visibilities are averaged to 4, in spans of 300 s" in caplog.text
    assert averaged.stations.tolist() == [["A", "B"], ["A", "C"], ["A", "B"], ["A", "C"]]
    assert averaged.u == pytest.approx([1, 5.5, 3.5, 7])
    assert averaged.time == pytest.approx(np.array([10, 10, 315, 315]) / 3600)
    assert len(np.unique(averaged.time)) == 2
    with pytest.raises(ValueError, match="made has no times and stations, which closures and averages"):
        average_in_time(_table([1.0], [1.0]), 60.0)
    with pytest.raises(ValueError, match="a positive number of seconds, got 0"):
        average_in_time(_table(np.arange(8.0), np.zeros(8), time=time, stations=stations), 0.0)


def test_a_baseline_from_its_other_end_is_averaged_as_the_conjugate():
    columns = {
        "value": np.array([1 + 2j, 3 - 4j, 5j, 7.0]),
        "time": np.array([0, 10, 400, 0]) / 3600,
        "stations": np.array([["B", "A"], ["A", "B"], ["A", "B"], ["A", "C"]]),
    }
    table = _table([3.0, -5.0, -6.0, 9.0], [1.0, -3.0, -2.0, 9.0], **columns)
    averaged = average_in_time(table, 300.0)
    assert averaged.stations.tolist() == [["A", "C"], ["B", "A"], ["B", "A"]]  # in the order that came first
    assert averaged.value == pytest.approx([7, 2 + 3j, -5j]) and averaged.u == pytest.approx([9, 4, 6])
    assert averaged.v == pytest.approx([9, 2, 2]) and averaged.std[1] == pytest.approx(0.3 / 2**0.5)
    cells = average_in_cells(table, 8.0)
    assert sorted(cells.value.real) == pytest.approx([4 / 3, 7]) and cells.value.imag.sum() == pytest.approx(1 / 3)


def test_a_table_of_bad_numbers_cannot_be_made_and_a_selection_is_logged(caplog):
    with pytest.raises(ValueError, match="every standard deviation must be positive"):
        _table([1.0], [1.0], std=np.zeros(1))
    with pytest.raises(ValueError, match="u, v and the visibilities must be finite"):
        _table([np.nan], [1.0])
    with pytest.raises(ValueError, match=r"needs K > 0 of each column, got 2 and \{'v': \(1,\)\}"):
        _table([1.0, 2.0], [1.0])
    table = _table([1.0, 2.0], [1.0, 1.0])
    with caplog.at_level(logging.INFO):
        assert len(table.where(table.u > 1, "long")) == 1
    assert "made: 1 of 2 visibilities are left out that are not long" in caplog.text
    with pytest.raises(ValueError, match="no visibility is left of 2 that are long"):
        table.where(table.u > 9, "long")
