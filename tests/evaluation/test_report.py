import base64
import re
from html.parser import HTMLParser

import pytest

from evaluation import Evaluation
from evaluation.figures import Picture
from evaluation.report import NONE, SummaryRow, summary_rows, write_report

PNG = b"\x89PNG\r\n\x1a\n not looked at"


class Page(HTMLParser):
    """Collects text and every attribute that could make a browser load something."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in {"src", "href", "srcset", "data", "action"}]

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def evaluation():
    return Evaluation(
        count=4_096,
        elbo=-22.4,
        elbo_standard_error=0.02,
        iw_log_partition=-21.9,
        iw_standard_error=0.03,
        effective_sample_size=0.372,
        eubo=-21.0,
        eubo_standard_error=0.1,
        discretisation=0.5,
        exact_log_partition=-21.85,
        sliced_w2=0.02,
        sliced_w2_floor=0.015,
        class_l1=0.017,
        mean_error=0.005,
        std_error=0.013,
    )


def page(tmp_path, **changes):
    picture = Picture(name="bounds", title="Bounds & more", caption="A < B", png=PNG)
    arguments = {
        "title": "digits-half",
        "summary": [SummaryRow(quantity="ELBO (nats)", learned="−22.40", exact="−21.85", difference="−0.55")],
        "pictures": [picture, picture],
        "config_text": "problem:\n  name: digits-half\n",
        "notes": ["Actor 2 was restarted."],
    } | changes
    path = tmp_path / "report.html"
    write_report(path, **arguments)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_the_report_loads_nothing_from_outside(tmp_path):
    text = page(tmp_path)
    found = Page(text)
    assert len(found.links) == 2
    assert all(link.startswith("data:image/png;base64,") for link in found.links)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(found.tags)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text.split("</style>")[0])


def test_the_figures_inside_are_the_bytes_that_were_given(tmp_path):
    for link in Page(page(tmp_path)).links:
        assert base64.b64decode(link.removeprefix("data:image/png;base64,")) == PNG


def test_text_is_shown_and_never_taken_for_markup(tmp_path):
    text = page(
        tmp_path, title="<script>1</script>", notes=["<b>note</b>"], config_text="a: <img src=http://x>", subtitle="&"
    )
    found = Page(text)
    assert not {"script", "b"} & set(found.tags)
    assert found.tags.count("img") == 2
    assert "<b>note</b>" in found.words
    assert "a: <img src=http://x>" in found.words


def test_braces_in_texts_are_left_alone(tmp_path):
    found = Page(page(tmp_path, title="{_CSS} {body}"))
    assert found.words.count("{_CSS} {body}") == 2  # window title and headline
    assert found.tags.count("main") == 1


def test_notes_are_shown_only_if_there_are_any_and_the_configuration_is_folded(tmp_path):
    with_notes, without = Page(page(tmp_path)), Page(page(tmp_path, notes=[]))
    assert "Actor 2 was restarted." in with_notes.words
    assert "Notes" in with_notes.words
    assert "Notes" not in without.words
    assert with_notes.tags.count("details") == 1


def test_the_summary_holds_learned_exact_and_difference(evaluation):
    rows = {row.quantity: row for row in summary_rows(evaluation)}
    elbo = rows["ELBO (nats)"]
    assert (elbo.learned, elbo.exact, elbo.difference) == ("−22.40 ± 0.02", "−21.85", "−0.55")
    assert rows["EUBO (nats)"].difference == "+0.85"
    assert rows["EUBO − ELBO (nats)"].learned == "1.40"
    assert rows["effective sample size"].learned == "37.2 %"
    assert rows["effective sample size"].hint == "worth 1,524 of 4,096 paths; few: distrust log Z"
    distance = rows["sliced W2 to the exact posterior"]
    assert (distance.learned, distance.exact, distance.difference) == ("0.020", "0.015", "+0.005")
    assert "importance-weighted log Z, 4,096 paths (nats)" in rows
    assert "W2 to the exact posterior" not in rows  # not measured


def test_the_summary_of_a_problem_without_truth_has_the_bounds_of_q_alone(tmp_path):
    evaluation = Evaluation(
        count=100,
        elbo=-1.0,
        elbo_standard_error=0.1,
        iw_log_partition=-0.5,
        iw_standard_error=0.1,
        effective_sample_size=0.5,
    )
    rows = summary_rows(evaluation)
    assert len(rows) == 3
    assert all(row.difference == "" for row in rows)
    write_report(tmp_path / "report.html", "title", rows, [], "")
    table = (tmp_path / "report.html").read_text(encoding="utf-8").split("<table>")[1].split("</table>")[0]
    assert "Learned" in table and "Exact" not in table and "Difference" not in table and NONE not in table
