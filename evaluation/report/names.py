"""What metrics are called and how they are grouped, as they are declared; foreign keys get a name and a group too."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation import catalog
from evaluation.compare import Row
from evaluation.metrics.feature_sets import KINDS

GROUPS = catalog.TITLES
OTHER = "Other"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
HEADLINE = (  # what stands for its kind on the first screen, and first among the plots by patient
    *("mae_body", "efficientnet_lite0_kid", "kid", "radiomics_kid", "label_mean_error_relative", "label_mean_error"),
    *("spectrum_distance", "faithfulness_dice", "lesion_f1", "ssim", "wasserstein"),
)
SETS = "Distribution of the images"  # what all metrics of sets together are called


def name_of(metric: str) -> str:
    """Name for people of a metric without its channel: ``MAE in the body``; a foreign key's words."""
    known = catalog.described(metric)
    text = metric.replace("_", " ")
    return known.name if known else text[:1].upper() + text[1:]


def group_of(metric: str) -> str:
    """Title of the table that a metric belongs to."""
    known = catalog.described(metric)
    return known.group if known else OTHER


def is_distribution(metric: str) -> bool:
    """Whether a metric compares two sets of images, so that it has a floor and no value per patient."""
    known = catalog.described(metric)
    return known is not None and known.level == "set"


def kind_of(title: str) -> str:
    """Of a group: its title, that of all sets being one."""
    return SETS if title.startswith("Distribution") else title


def headline(rows: Sequence[Row]) -> Row | None:
    """The one that stands for rows of one kind: the first of `HEADLINE` that all methods have, else the first there is."""
    some = [row for row in rows if row.measured and row.better]
    judged = [row for row in some if None not in row.values] or some
    known = [row for name in HEADLINE for row in judged if row.metric == name]
    return next(iter([*known, *judged]), None)


def metric_name(row: Row) -> str:
    """Name for people, with the channel where there is one."""
    return name_of(row.metric) + (f" ({row.channel})" if row.channel else "")


def grouped(rows: Sequence[Row]) -> dict[tuple[str | None, str], list[Row]]:
    """(channel, group title) -> rows; channels in the rows' order, groups in the order above, the rest behind."""
    order = [*GROUPS]
    found: dict[tuple[str | None, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.channel, group_of(row.metric)), []).append(row)
    channels = list(dict.fromkeys(row.channel for row in rows))

    def place(key: tuple[str | None, str]) -> tuple[int, int, str]:
        channel, title = key
        known = order.index(title) if title in order else len(order) + (title == OTHER)
        return channels.index(channel), known, title

    return {key: found[key] for key in sorted(found, key=place)}


def decimals(values: Sequence[float | None], digits: int = 4) -> int:
    """Decimals that show `digits` significant ones of the largest value, so that a column lines up; -1 for powers of ten."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    if largest == 0:
        return 0
    places = digits - 1 - int(f"{largest:e}".partition("e")[2])
    return -1 if places > 7 or largest >= 1e6 else max(0, places)


def number(value: float, places: int) -> str:
    """`value` with so many decimals (see `decimals`) and a true minus sign."""
    if places < 0 and 0.01 <= abs(value) < 1e4:
        return f"{value:.3g}".replace("-", "−")
    if places < 0:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return "0" if value == 0 else f"{mantissa}×10{raised(int(exponent))}".replace("-", "−")
    text = f"{value:.{places}f}"
    return (text.lstrip("-") if float(text) == 0 else text).replace("-", "−")


def raised(exponent: int) -> str:
    """A whole number as superscript."""
    return str(exponent).translate(_RAISED)


def row_decimals(row: Row) -> int:
    """Decimals for all that is printed of a metric: values, intervals, floors; two digits of the smallest value."""
    ends = [end for entry in row.entries for end in ((entry or {}).get("ci95") or ())]
    references = [row.reference(i, what) for i in range(len(row.entries)) for what in ("floor", "ceiling")]
    places = decimals([*row.values, *ends, *references])
    smallest = min((abs(value) for value in [*row.values, *references] if value), default=0.0)
    return places if places < 0 else max(places, min(places + 2, decimals([smallest], 2)))


def short_name(row: Row) -> str:
    """Name within the table of its group, which names the features of a distribution metric already."""
    extractor, _, kind = row.metric.rpartition("_")
    short = KINDS[kind][0] if extractor and kind in KINDS and is_distribution(row.metric) else name_of(row.metric)
    return short[:1].upper() + short[1:]


def p_text(p: float | None) -> str:
    """``p = 0.031`` as papers print it."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.1 else f"p = {p:.2f}"
