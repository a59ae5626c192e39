"""The report of a run: one HTML file with everything inside, readable without a network in light and dark.

Contents: summary table, warnings, figures, and the resolved configuration folded away.
"""

from __future__ import annotations

import base64
import html
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.amortised import AmortisedEvaluation
from evaluation.calibration import Calibration
from evaluation.evaluation import Correction, Evaluation
from evaluation.figures.picture import Picture, number

__all__ = ["SummaryRow", "amortised_rows", "corrected_rows", "summary_rows", "write_report"]

NONE = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRow:
    """One line of the summary; texts are shown as they are, empty ones as a dash."""

    quantity: str
    """What it is, with its unit."""
    learned: str
    """Value of the learned posterior."""
    exact: str = ""
    """Value of the exact posterior, or of exact samples against each other."""
    difference: str = ""
    """Learned minus exact; empty for what is an error by itself."""
    hint: str = ""
    """How to read it, in a few words."""


def summary_rows(evaluation: Evaluation) -> tuple[SummaryRow, ...]:
    """What is known of a posterior, in the order of a reader's questions: is it right, and where is it wrong."""
    e, exact = evaluation, evaluation.exact_log_partition
    rows = [_bound("ELBO (nats)", e.elbo, e.elbo_standard_error, exact, "lower bound of log Z")]
    rows.append(
        _bound(
            f"importance-weighted log Z, {e.count:,} paths (nats)",
            e.iw_log_partition,
            e.iw_standard_error,
            exact,
            "the estimate of log Z",
        )
    )
    if e.eubo is not None and e.eubo_standard_error is not None and e.gap is not None:
        # Without the correction a coarse chain can bring the mean below log Z: then it is no bound.
        hint = "upper bound of log Z" if e.discretisation is not None else "upper bound up to discretisation"
        if e.discretisation:
            hint += f", {number(e.discretisation)} of it from the finite number of steps"
        rows.append(_bound("EUBO (nats)", e.eubo, e.eubo_standard_error, exact, hint))
        rows.append(
            SummaryRow(
                quantity="EUBO − ELBO (nats)",
                learned=number(e.gap),
                exact="" if e.discretisation is None else number(e.discretisation),
                hint="exact: that of the chain's posterior",
            )
        )
    rows.append(
        SummaryRow(
            quantity="effective sample size",
            learned=f"{100 * e.effective_sample_size:.3g} %",
            exact="" if exact is None else "100 %",
            hint=f"worth {e.effective_sample_size * e.count:,.0f} of {e.count:,} paths; few: distrust log Z",
        )
    )
    distances = (("W2", e.w2, e.w2_floor), ("sliced W2", e.sliced_w2, e.sliced_w2_floor))
    for name, value, lowest in distances:
        if value is not None and lowest is not None:
            hint = "units of x; exact: two exact samples of that size"
            rows.append(_pair(f"{name} to the exact posterior", value, lowest, hint))
    if e.reduced_chi2 is not None:
        known = "" if e.exact_reduced_chi2 is None else number(e.exact_reduced_chi2, 3)
        hint = "of the residuals y − A(x), in variances of the noise; 1 on average if the truth is from the prior"
        rows.append(SummaryRow(quantity="reduced χ²", learned=number(e.reduced_chi2, 3), exact=known, hint=hint))
    errors = (
        ("class probabilities, L1", e.class_l1, "0 to 2"),
        ("mean of x, RMS error", e.mean_error, "over the elements of x"),
        ("standard deviation of x, RMS error", e.std_error, "over the elements of x"),
    )
    rows += [
        SummaryRow(quantity=name, learned=number(value, 3), exact="0", hint=hint)
        for name, value, hint in errors
        if value is not None
    ]
    return tuple(rows)


def corrected_rows(correction: Correction | None) -> tuple[SummaryRow, ...]:
    """Rows of the samples that were resampled and moved, where there are any."""
    if correction is None:
        return ()
    c = correction
    hint = f"drawn by weight among the paths, {c.ancestors:,} of them, then moved; {100 * c.accepted:.0f} % accepted"
    told = f"{c.distinct:,} of {c.count:,}"
    rows = [SummaryRow(quantity="corrected samples, distinct", learned=told, hint=hint)]
    if c.reduced_chi2 is not None:
        rows.append(
            SummaryRow(
                quantity="corrected: reduced χ²", learned=number(c.reduced_chi2, 3), hint="also 1 if modes are missing"
            )
        )
    if c.sliced_w2 is not None and c.sliced_w2_floor is not None:
        rows.append(_pair("corrected: sliced W2", c.sliced_w2, c.sliced_w2_floor, "as above, of as many samples"))
    if c.class_l1 is not None:
        rows.append(SummaryRow(quantity="corrected: class L1", learned=number(c.class_l1, 3), exact="0", hint="0 to 2"))
    return tuple(rows)


def amortised_rows(each: AmortisedEvaluation | None, calibration: Calibration | None) -> tuple[SummaryRow, ...]:
    """Rows over all measurements, and of the calibration, where they were judged."""
    rows = []
    if each is not None:
        count, values = len(each.elbo), each.summary()
        known = (
            ("median |IW - log Z| (nats)", "log_partition_error", "0", f"over all {count} measurements"),
            ("mean log Z - ELBO (nats)", "elbo_gap", "0", f"over all {count} measurements"),
            ("mean effective sample size", "ess", "1", "a fraction"),
        )
        rows = [
            SummaryRow(quantity=quantity, learned=number(values[key], 3), exact=exact, hint=hint)
            for quantity, key, exact, hint in known
            if math.isfinite(values[key])
        ]
        if math.isfinite(values["class_l1"]):
            hint = "0 to 2; exact: as many exact samples"
            rows.append(_pair("mean L1 of class probabilities", values["class_l1"], values["class_l1_floor"], hint))
    if calibration is not None:
        rows.append(
            SummaryRow(
                quantity="calibration, largest deviation",
                learned=number(calibration.deviation, 3),
                exact=f"< {number(calibration.by_chance, 3)}",
                hint=f"TARP over {calibration.pairs} simulated pairs; exact: 95 % of tests",
            )
        )
    return tuple(rows)


def write_report(
    path: Path,
    title: str,
    summary: Sequence[SummaryRow],
    pictures: Sequence[Picture],
    config_text: str,
    notes: Sequence[str] = (),
    subtitle: str = "",
) -> None:
    """Writes the report to `path`; `notes` are warnings and interventions, one sentence each.

    The file appears at once: a reader sees the old report or the new one, never half.
    """
    warnings = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    parts = [
        f"<header><h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(subtitle)}</p>" if subtitle else "",
        "</header>",
        f'<section class="notes"><h2>Notes</h2><ul>{warnings}</ul></section>' if notes else "",
        _table(summary),
        *map(_figure, pictures),
        f"<details><summary>Resolved configuration</summary><pre>{html.escape(config_text)}</pre></details>",
    ]
    body = "\n".join(part for part in parts if part)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(_page(html.escape(title), body), encoding="utf-8")
    os.replace(temporary, path)


def _bound(quantity: str, value: float, error: float, exact: float | None, hint: str) -> SummaryRow:
    return SummaryRow(
        quantity=quantity,
        learned=f"{number(value)} ± {number(error)}",
        exact="" if exact is None else number(exact),
        difference="" if exact is None else _signed(value - exact),
        hint=hint,
    )


def _pair(quantity: str, value: float, exact: float, hint: str) -> SummaryRow:
    return SummaryRow(
        quantity=quantity,
        learned=number(value, 3),
        exact=number(exact, 3),
        difference=_signed(value - exact, 3),
        hint=hint,
    )


def _signed(value: float, digits: int = 2) -> str:
    return ("+" if value >= 0 else "") + number(value, digits)


def _table(rows: Sequence[SummaryRow]) -> str:
    known = [name for name in ("exact", "difference") if any(getattr(row, name) for row in rows)]
    names = ["learned", *known]  # a problem without an exact posterior has no columns for one
    lines = []
    for row in rows:
        hint = f'<span class="hint">{html.escape(row.hint)}</span>' if row.hint else ""
        cells = "".join(f"<td>{html.escape(getattr(row, name) or NONE)}</td>" for name in names)
        lines.append(f'<tr><th scope="row">{html.escape(row.quantity)}{hint}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{name.capitalize()}</th>' for name in ("quantity", *names))
    return (
        f'<section><h2>Summary</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f'<section><h2>{html.escape(picture.title)}</h2><figure><img alt="{html.escape(picture.title)}" '
        f'src="data:image/png;base64,{data}"><figcaption>{html.escape(picture.caption)}</figcaption></figure></section>'
    )


def _page(title: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{_CSS}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""


_CSS = """
:root { --page: #f6f7f8; --card: #ffffff; --ink: #23282e; --soft: #636b74; --line: #e2e5e9; --mark: #c77d11;
  --noted: #fff8ec; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15181c; --card: #1d2126; --ink: #e4e7ea; --soft: #9aa3ad; --line: #30363d; --mark: #e0a13d;
    --noted: #2a241a; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 26px; font-weight: 650; line-height: 1.25; margin: 0; }
header p { color: var(--soft); margin: 6px 0 0; }
h2 { font-size: 17px; font-weight: 650; margin: 0 0 12px; }
section, details { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 20px 24px;
  margin-top: 20px; }
.notes { background: var(--noted); border-left: 4px solid var(--mark); }
.notes ul { margin: 0; padding-left: 20px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 0 8px 20px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; font-weight: 500; white-space: normal; }
thead th { color: var(--soft); font-size: 13px; font-weight: 500; padding-top: 0; }
tbody tr:last-child > * { border-bottom: 0; padding-bottom: 0; }
.hint { display: block; color: var(--soft); font-size: 13px; font-weight: 400; line-height: 1.35; }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; background: #ffffff; border-radius: 6px; }
@media (prefers-color-scheme: dark) { img { padding: 12px; } }
figcaption { color: var(--soft); font-size: 14px; margin-top: 12px; max-width: 75ch; }
summary { cursor: pointer; font-weight: 650; }
pre { overflow-x: auto; font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  margin: 14px 0 0; }
@media print { section, details { break-inside: avoid; } }
"""
