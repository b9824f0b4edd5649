"""The sentences of the report: who is better on what, and what the numbers do not show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from dataloaders.overview import counted
from evaluation.compare import Entrant, Row
from evaluation.report.names import GROUPS, OTHER, group_of, is_distribution, joined, kind_of, metric_name, name_of
from evaluation.statistics import MIN_PATIENTS

ENOUGH_FOR_FID = 2048  # slices; the size of Inception's features
SUMMED_UP = {  # groups of metrics that the verdict speaks of even when nothing was measured
    "Agreement with the real image",
    "Intensities within the labels",
    "Texture, borders and continuity",
}


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
        told = "; ".join(f"{other} on {', '.join(dict.fromkeys(names))}" for other, names in named.items())
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
    """What the report does not show: from the patients, the split, the training, the metrics that are missing."""
    return [
        *_of_patients(entrants),
        *_of_tests(entrants, rows),
        *_of_training(entrants),
        *_of_missing(entrants, rows),
        *_of_distribution(entrants, rows),
        *_of_images(entrants),
        *_of_purpose(rows),
    ]


def _of_patients(entrants: Sequence[Entrant]) -> Iterator[str]:
    """Who the numbers are about."""
    patients, data = counted(entrants[0].metrics["n"]["patients"], "patient"), entrants[0].part("data_provenance")
    if "slices" in str(data.get("split", "")):
        yield (
            "Training and test slices come from the same scan (held-out blocks with guard slices between). "
            "That tests interpolation within one anatomy, not generalisation to new patients."
        )
    split = entrants[0].provenance.get("split")
    if split in ("train", "val"):
        seen = "trained" if split == "train" else "chosen"
        yield f"These are {split} slices, on which methods were {seen}: new patients will look worse."
    if entrants[0].metrics["n"]["patients"] < MIN_PATIENTS:
        yield f"{patients}: too few for intervals or for any claim about a population."
    else:
        yield (
            f"{patients} from the sources of this data set: other scanners, sequences, ages and diseases were not tested."
        )
    tissue = (data.get("options") or {}).get("tissue", "none")
    if tissue != "none":
        yield (
            f"The label maps were made from the real images ({tissue}), not drawn by a reader: what that classifier gets "
            "wrong is asked of every method and counted as right."
        )


def _of_tests(entrants: Sequence[Entrant], rows: Sequence[Row]) -> Iterator[str]:
    """What intervals and p-values leave open."""
    tested = [row.difference for row in rows if row.difference is not None and row.difference.p_value is not None]
    if tested:
        patients = min(difference.patients for difference in tested)
        by_chance = f"about {max(1, round(0.05 * len(tested)))} would fall below 0.05 by chance alone"
        yield f"{counted(len(tested), 'test')} without correction for their number; {by_chance}."
        if 2.0 ** (1 - patients) > 0.01:
            least = f"{2.0 ** (1 - patients):.2g}"
            yield f"With {counted(patients, 'patient')} the sign-flip test cannot give a p below {least}."
    apart = [f"{metric_name(row)} ({row.incomparable.partition(': ')[2]})" for row in rows if row.incomparable]
    if apart and len(entrants) > 1:
        yield f"Computed in different ways for the methods, so nobody is called best: {joined(apart)}."


def _of_training(entrants: Sequence[Entrant]) -> Iterator[str]:
    """Whether the methods had the same chances."""
    trained = [e for e in entrants if e.provenance.get("images_seen")]
    if trained and len({e.part("config").get("seed") for e in trained}) <= 1:
        each = "The method was" if len(entrants) == 1 else "Each method was"
        yield (
            f"{each} trained once, with one seed: how far two trainings of the same settings lie apart is not known, and "
            "intervals over patients do not contain it."
        )
    learned = [e for e in trained if not e.fitted]
    images = {e.name: int(e.provenance["images_seen"]) for e in learned}
    if len(set(images.values())) > 1:
        each = joined([f"{name} {seen:,}" for name, seen in images.items()])
        yield f"Methods saw different numbers of images ({each}): longer training may change their order."
    if len({str(e.part("environment").get("device")) for e in entrants}) > 1:
        yield "Seconds per slice were measured on different devices and say nothing about the methods."


def by_reason(found: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """(reason, name) -> names of each reason, none twice."""
    grouped: dict[str, dict[str, None]] = {}
    for reason, name in found:
        grouped.setdefault(reason, {})[name] = None
    return {reason: [*names] for reason, names in grouped.items()}


def _of_missing(entrants: Sequence[Entrant], rows: Sequence[Row]) -> Iterator[str]:
    """Metrics without a value, with the reason."""
    lacking = [(e, row, row.reason(i)) for row in rows for i, e in enumerate(entrants) if row.values[i] is None]
    nowhere = by_reason((reason, name_of(row.metric)) for _, row, reason in lacking if not row.measured)
    if nowhere:
        yield f"Not computed here: {'; '.join(f'{joined(names)} ({reason})' for reason, names in nowhere.items())}."
    partly = by_reason((f"{e.name}: {reason}", metric_name(row)) for e, row, reason in lacking if row.measured)
    for reason, names in partly.items():
        yield f"Missing for some: {joined(names)} ({reason})."


def _of_distribution(entrants: Sequence[Entrant], rows: Sequence[Row]) -> Iterator[str]:
    """Floors and numbers of slices of the metrics that compare sets."""
    n = entrants[0].metrics["n"]
    sets = [row for row in rows if is_distribution(row.metric) and row.measured]
    if sets and not any(row.references("floor") for row in sets):
        why = "one patient's slices cannot be halved by patient" if n["patients"] < 2 else "none was computed"
        yield (
            f"Distribution metrics have no floor ({why}): how large they are between two sets of real images is unknown."
        )
    if sets and n["slices"] < ENOUGH_FOR_FID:
        yield (
            f"Fréchet distances (FID) depend on the number of slices; with {n['slices']} they compare methods on these "
            "slices at best, and never with other papers."
        )


def _of_images(entrants: Sequence[Entrant]) -> Iterator[str]:
    """Faults of the images that no mean shows."""
    for entrant in entrants:
        counts = entrant.metrics.get("counts") or {}
        if constant := counts.get("constant_images"):
            yield f"{counted(constant, 'generated image')} of {entrant.name} have a single value."
        if identical := counts.get("psnr_identical"):
            yield (
                f"{counted(identical, 'image')} of {entrant.name} equal the real one and are left out of the mean PSNR."
            )


def _of_purpose(rows: Sequence[Row]) -> Iterator[str]:
    """Questions that these metrics do not ask."""
    yield (
        "Pixelwise metrics (MAE, RMSE, PSNR, SSIM) ask for the one real image; several images may fit a label map, so "
        "they reward blur."
    )
    measured = {group_of(row.metric) for row in rows if row.measured}
    answers = {
        "Label faithfulness": "whether a segmenter finds the labels again in the generated images",
        "Variety of draws": "how much several draws from one label map differ",
    }
    open_ = [question for group, question in answers.items() if group not in measured]
    open_ += ["whether the images help to train a segmenter", "whether a radiologist would take them for real"]
    yield f"Not measured: {joined(open_)}."
