"""The comparison as one HTML page that needs nothing else."""

from __future__ import annotations

from html import escape

from reporting.html_page import note, page, plot
from reporting.html_page import table as html_table
from tools.compare.comparison import Comparison
from tools.compare.figures import penalty_heatmap
from tools.compare.statistics import penalties
from tools.compare.tables import Table, accuracy_table, forecast_table, saving_table

ACCURACY_NOTE = (
    "Test accuracy of the round with the best validation accuracy so far, mean and 95 % interval "
    "over seeds (Student's t). AUBC is the area under the curve divided by the range of the "
    "budgets. p is of a paired t-test of the AUBC over seeds, with Holm's correction."
)
SAVING_NOTE = (
    "Labels that {baseline} needs, divided by the labels that the group needs, to reach a "
    "validation accuracy: the geometric mean over seeds and its 95 % interval. Each seed's curve "
    "is made monotone by isotonic regression. Where {baseline} misses the accuracy with a seed, it "
    "counts as needing its whole budget: the seed is censored, and the true saving is larger (≥). "
    "No saving is stated where the group misses the accuracy with a seed."
)
FORECAST_NOTE = (
    "Validation accuracy now and after more labels, by a power law through the last rounds of each "
    "seed, mean over seeds. The interval is for one run, not for the mean."
)
PENALTY_NOTE = (
    "Each cell is the share of budgets at which the row's group is better than the column's, by "
    "paired t-tests at the 5 % level with Holm's correction. A low column mean is good."
)


def html_page(comparison: Comparison, curves_png: bytes) -> str:
    """The whole page; `curves_png` is what `figures.comparison_figure` draws."""
    savings = SAVING_NOTE.format(baseline=comparison.baseline)
    figure = plot(curves_png, "Learning curves and label savings of each group.")
    sections = [
        ("Curves", note(_seeds_text(comparison)) + figure),
        ("Accuracy", note(ACCURACY_NOTE) + _html(accuracy_table(comparison))),
    ]
    if comparison.others:
        sections.append(("Label savings", note(savings) + _html(saving_table(comparison))))
    expected = forecast_table(comparison)
    if expected[1]:
        sections.append(("Would more labels help?", note(FORECAST_NOTE) + _html(expected)))
    if len(comparison.groups) > 1 and len(comparison.seeds) > 1:
        curves = {name: group.test for name, group in comparison.groups.items()}
        matrix = penalty_heatmap(penalties(comparison.budgets, curves), list(curves))
        picture = plot(matrix, "Penalty matrix; the note above says how to read it.")
        sections.append(("Who beats whom", note(PENALTY_NOTE) + picture))
    return page(f"Comparison on {comparison.data}", "", sections)


def _seeds_text(comparison: Comparison) -> str:
    text = f"Seeds {', '.join(map(str, comparison.seeds))}."
    if comparison.left_out:
        text += (
            f" Seeds {', '.join(map(str, comparison.left_out))} are left out, because not all "
            "groups have them."
        )
    return text


def _html(table: Table) -> str:
    header, rows = table
    return html_table(
        [escape(cell) for cell in header], [[escape(cell) for cell in row] for row in rows]
    )
