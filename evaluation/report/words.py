"""The sentences of the report: who is better on what, and what the numbers do not show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dataloaders.overview import counted
from evaluation.compare import Entrant, Row
from evaluation.report.kit import joined, render
from evaluation.report.names import GROUPS, OTHER, group_of, is_distribution, kind_of, metric_name, name_of
from evaluation.statistics import MIN_PATIENTS

ENOUGH_FOR_FID = 2048  # slices; the size of Inception's features
MOST_NAMED = 2  # measures; of more the number is told
SUMMED_UP = {  # groups of metrics that the verdict speaks of even when nothing was measured
    "Agreement with the real image",
    "Intensities within the labels",
    "Texture, borders and continuity",
}
ANSWERS = {  # group of metrics -> the question that it answers
    "Label faithfulness": "whether a segmenter finds the labels again in the generated images",
    "Variety of draws": "how much several draws from one label map differ",
}
NEVER_ASKED = ("whether the images help to train a segmenter", "whether a radiologist would take them for real")


# -- verdict ------------------------------------------------------------------------------------------------------


def verdict(entrants: Sequence[Entrant], rows: Sequence[Row]) -> list[str]:
    """Sentences on who is better on what, and on how much that means."""
    n = entrants[0].metrics["n"]
    split = str(entrants[0].provenance.get("split") or "given")
    sentences = [f"{counted(n['slices'], f'{split} slice')} of {counted(n['patients'], 'patient')}."]
    if len(entrants) < 2:
        return sentences
    sentences += [f"{kind}: {winners(entrants, of_kind)}." for kind, of_kind in by_kind(rows).items()]
    return [*sentences, certainty(rows, n["patients"])]


def by_kind(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Kind of metric -> its rows, of the kinds that a verdict speaks of."""
    found: dict[str, list[Row]] = {kind: [] for kind in (*map(kind_of, GROUPS), OTHER)}
    for row in rows:
        found[kind_of(group_of(row.metric))].append(row)
    return {
        kind: of_kind
        for kind, of_kind in found.items()
        if kind in SUMMED_UP or any(row.measured and row.better for row in of_kind)
    }


def winners(entrants: Sequence[Entrant], group: Sequence[Row]) -> str:
    """Who is best on one kind of metric, and how many of its measures can no longer tell."""
    judged = [row for row in group if row.best is not None]
    if not judged:
        return "no difference" if any(row.measured for row in group) else "not measured here"
    won = {entrant.name: [row for row in judged if row.best == i] for i, entrant in enumerate(entrants)}
    (name, most), *others = sorted(((n, r) for n, r in won.items() if r), key=lambda part: -len(part[1]))
    measures = counted(len(judged), "measure")
    if not others:
        text = f"{name} is best on {'all ' if len(judged) > 1 else ''}{measures}"
    else:
        several = len({row.channel for row in group}) > 2  # one of them, and what is of all
        named = {other: [metric_name(row) if several else name_of(row.metric) for row in of] for other, of in others}
        short = {other: [str(len(names))] if len(names) > MOST_NAMED else names for other, names in named.items()}
        told = "; ".join(f"{other} on {', '.join(dict.fromkeys(names))}" for other, names in short.items())
        text = f"{name} is best on {len(most)} of {measures}; {told}"
    passed = sum(row.passed(row.best) for row in judged if row.best is not None)
    return text + (f"; {passed} can no longer tell the best from real images" if passed else "")


def certainty(rows: Sequence[Row], patients: int) -> str:
    """What the number of patients allows to say."""
    if patients < MIN_PATIENTS:
        return (
            f"With {counted(patients, 'patient')} no interval over patients can be given: "
            "the numbers describe these slices and prove nothing about other patients."
        )
    judged = [row for row in rows if row.difference is not None]
    if not judged:
        return "No two methods differ on a measure that has a value per patient, so nothing could be tested."
    open_ = [metric_name(row) for row in judged if not row.clear]
    clear = len(judged) - len(open_)
    text = (
        f"Over the patients, the 95 % intervals of the differences leave out zero for {clear} of {len(judged)} measures"
    )
    text += f"; {joined(open_)} may be chance." if open_ else "."
    p_values = [row.difference.p_value for row in judged if row.difference is not None]
    small = sum(p is not None and p < 0.05 for p in p_values)
    test = f"A sign-flip test over patients gives p < 0.05 for {small} of {len(judged)}, uncorrected for their number"
    test += (
        f" (with {patients} patients it cannot give less than {2.0 ** (1 - patients):.2g})." if patients < 6 else "."
    )
    return f"{text} {test}"


# -- what this does not show --------------------------------------------------------------------------------------


def limits(entrants: Sequence[Entrant], rows: Sequence[Row]) -> list[str]:
    """Sentences on what the report does not show."""
    first, several = entrants[0], len(entrants) > 1
    data, n = first.part("data_provenance"), first.metrics["n"]
    trained = [entrant for entrant in entrants if entrant.provenance.get("images_seen")]
    seen = {e.name: int(e.provenance["images_seen"]) for e in trained if not e.fitted}
    lacking = [(e, row, row.reason(i)) for row in rows for i, e in enumerate(entrants) if row.values[i] is None]
    measured = {group_of(row.metric) for row in rows if row.measured}
    unasked = [question for group, question in ANSWERS.items() if group not in measured]
    text = render(
        "limits.txt",
        n=n,
        fewest=MIN_PATIENTS,
        enough=ENOUGH_FOR_FID,
        split=first.provenance.get("split"),
        blocks="slices" in str(data.get("split", "")),
        tissue=(data.get("options") or {}).get("tissue", "none"),
        methods=len(entrants),
        tests=[of.patients for row in rows if (of := row.difference) is not None and of.p_value is not None],
        apart=[f"{metric_name(r)} ({r.incomparable.partition(': ')[2]})" for r in rows if r.incomparable and several],
        once=bool(trained) and len({e.part("config").get("seed") for e in trained}) <= 1,
        seen=[f"{name} {images:,}" for name, images in seen.items()] if len(set(seen.values())) > 1 else [],
        devices=len({str(e.part("environment").get("device")) for e in entrants}),
        nowhere=by_reason((reason, name_of(row.metric)) for _, row, reason in lacking if not row.measured),
        partly=by_reason((f"{e.name}: {reason}", metric_name(row)) for e, row, reason in lacking if row.measured),
        sets=any(is_distribution(row.metric) and row.measured for row in rows),
        floors=any(row.references("floor") for row in rows if is_distribution(row.metric) and row.measured),
        counts={entrant.name: entrant.metrics.get("counts") or {} for entrant in entrants},
        open=[*unasked, *NEVER_ASKED],
    )
    return text.splitlines()


def by_reason(found: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """(reason, name) -> names of each reason, none twice."""
    grouped: dict[str, dict[str, None]] = {}
    for reason, name in found:
        grouped.setdefault(reason, {})[name] = None
    return {reason: [*names] for reason, names in grouped.items()}
