"""Who learns, who validates, who tests: by patient, or by blocks of slices where there is one patient only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from dataloaders.io.files import naming, read_json
from dataloaders.io.manifest import SPLITS, Split
from dataloaders.io.schema import decode

FRACTIONS = (0.8, 0.1, 0.1)  # by default: training, validation, test
BLOCK = 8  # slices of a held-out block, about


def split_patients(
    patients: Sequence[str],
    fractions: tuple[float, float, float],
    seed: int,
    val: Sequence[str] = (),
    test: Sequence[str] = (),
) -> dict[str, Split]:
    """Patient -> split. Listed patients go where listed and the rest trains; otherwise seeded by fractions.

    Every split with a fraction above 0 gets at least one patient, test before val, as long as one is left to train.
    Independent of the order of `patients`. ValueError for unknown names and for a single patient that would have to
    be in several splits.
    """
    patients = sorted(set(patients))
    unknown = sorted({*val, *test} - set(patients))
    if unknown:
        raise ValueError(f"--val_patients/--test_patients name {unknown}, the patients are {patients}")
    if set(val) & set(test):
        raise ValueError(f"{sorted(set(val) & set(test))} stand in both --val_patients and --test_patients")
    if val or test:
        return {p: "test" if p in test else "val" if p in val else "train" for p in patients}
    if len(patients) == 1 and sum(fraction > 0 for fraction in fractions) > 1:
        raise ValueError(
            f"one patient ({patients[0]}) cannot be split by patient; use --split_by slices (held-out blocks of slices), "
            "or --split 1 0 0 to train on all of it, or --split 0 0 1 to test on all of it"
        )
    import torch  # slow to import, and only drawing needs it

    order = [patients[i] for i in torch.randperm(len(patients), generator=torch.Generator().manual_seed(seed)).tolist()]
    counts = _counts(len(patients), fractions)
    names: list[Split] = [split for split in SPLITS for _ in range(counts[split])]
    return dict(zip(order, names, strict=True))


def _counts(n: int, fractions: tuple[float, float, float]) -> dict[Split, int]:
    train, val, test = (fraction / sum(fractions) for fraction in fractions)
    keep = 1 if train > 0 else 0  # somebody must be left to learn from
    n_test = min(max(1, round(n * test)), n - keep) if test > 0 else 0
    n_val = min(max(1, round(n * val)), n - keep - n_test) if val > 0 else 0
    if train == 0 and val == 0:
        n_test = n
    elif train == 0:
        n_val = n - n_test
    return {"train": n - n_val - n_test, "val": n_val, "test": n_test}


def split_slices(indices: Sequence[int], fractions: tuple[float, float, float], guard: int) -> dict[int, Split]:
    """Slice index -> split, in contiguous held-out blocks spread over the volume.

    Neighbouring slices are nearly equal, so training slices closer than `guard` to a held-out one, and validation
    slices closer than that to a test one, are dropped (absent from the result).
    """
    indices = sorted(indices)
    n = len(indices)
    _, val, test = (fraction / sum(fractions) for fraction in fractions)
    segments = max(1, round(n * max(val, test) / BLOCK))
    split: dict[int, Split] = {}
    for s in range(segments):
        part = indices[s * n // segments : (s + 1) * n // segments]
        length_val, length_test = round(len(part) * val), round(len(part) * test)
        start_test = (len(part) - length_test) // 2 + (length_val + guard) // 2
        start_val = max(0, start_test - guard - length_val - (len(part) - length_test) // 4)
        for i, index in enumerate(part):
            is_test = start_test <= i < start_test + length_test
            is_val = start_val <= i < start_val + length_val
            split[index] = "test" if is_test else "val" if is_val else "train"
    return {i: name for i, name in split.items() if not _too_near(i, name, split, guard)}


def _too_near(index: int, name: Split, split: dict[int, Split], guard: int) -> bool:
    higher = SPLITS[SPLITS.index(name) + 1 :]
    return any(split.get(index + d) in higher for d in range(-guard, guard + 1))


class EmptySplit(ValueError):  # noqa: N818 (reads as what it is)
    """A split that was asked for and has nothing in it: the fault of the options, not of the data."""


def refuse_empty(given: Iterable[Split], fractions: tuple[float, float, float], cause: str) -> None:
    """`EmptySplit` where a split with a fraction above 0 is not among those that were `given` something.

    Of the default fractions, which nobody asked for, training alone has to be there.
    """
    there = set(given)
    asked = SPLITS if fractions != FRACTIONS else SPLITS[:1]
    empty = [
        name for name, part in zip(SPLITS, fractions, strict=True) if part > 0 and name in asked and name not in there
    ]
    if empty:
        text = " ".join(f"{part:g}" for part in fractions)
        raise EmptySplit(f"--split {text} leaves nothing for {' and '.join(empty)}: {cause}")


def read_split_file(path: Path) -> dict[Split, list[str]]:
    """Patients of each split from a JSON file {"train": [...], "val": [...], "test": [...]}; ValueError for another."""
    data = read_json(path)
    with naming(f"--split_file {path}"):
        found: dict[Split, list[str]] = decode(dict[Split, list[str]], data, "")
    return found


def split_as_listed(path: Path, patients: Sequence[str]) -> dict[str, Split]:
    """Patient -> split of `read_split_file`; ValueError where it does not list each patient just once."""
    data = read_split_file(path)
    listed = [patient for split in SPLITS for patient in data.get(split, [])]
    wrong = {
        "unknown": sorted(set(listed) - set(patients)),
        "not listed": sorted(set(patients) - set(listed)),
        "listed twice": sorted({patient for patient in listed if listed.count(patient) > 1}),
    }
    if any(wrong.values()):
        found = "; ".join(f"{what}: {', '.join(names)}" for what, names in wrong.items() if names)
        raise ValueError(f"--split_file {path}: {found}")
    return {patient: split for split in SPLITS for patient in data.get(split, [])}
