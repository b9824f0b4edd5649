"""The sentences of the report: who is better on what, and what the numbers do not show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from dataloaders.overview import counted
from evaluation.compare import Entrant, Row
from evaluation.report.names import GROUPS, OTHER, group_of, is_distribution, joined, metric_name, name_of
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
    titles = [
        *dict.fromkeys("Distribution of the images" if t.startswith("Distribution") else t for t in GROUPS),
        OTHER,
    ]
    groups: dict[str, list[Row]] = {title: [] for title in titles}
    for row in rows:
        groups["Distribution of the images" if is_distribution(row.metric) else group_of(row.metric)].append(row)
    for title, of_group in groups.items():
        if title in SUMMED_UP or any(row.measured and row.better for row in of_group):
            sentences.append(_group_sentence(entrants, of_group, title))
    return [*sentences, _certainty(rows, n["patients"])]


def _group_sentence(entrants: Sequence[Entrant], group: Sequence[Row], title: str) -> str:
    """Who is best on one kind of metric."""
    judged = [row for row in group if row.best is not None]
    if not judged:
        return f"{title}: {'no difference' if any(row.measured for row in group) else 'not measured here'}."
    won = {entrant.name: [row for row in judged if row.best == i] for i, entrant in enumerate(entrants)}
    parts = [(name, of_method) for name, of_method in won.items() if of_method]
    if len(parts) == 1:
        return (
            f"{title}: {parts[0][0]} is best on {'all ' if len(judged) > 1 else ''}{counted(len(judged), 'measure')}."
        )
    parts.sort(key=lambda part: -len(part[1]))
    told = "; ".join(f"{name} on {', '.join(metric_name(row) for row in of_method)}" for name, of_method in parts[1:])
    return f"{title}: {parts[0][0]} is best on {len(parts[0][1])} of {counted(len(judged), 'measure')}; {told}."


def _certainty(rows: Sequence[Row], patients: int) -> str:
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
