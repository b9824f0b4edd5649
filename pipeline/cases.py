"""The scans of a study: found in BIDS folders or listed, and divided by patient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dataloaders.io.files import listed
from dataloaders.io.manifest import Split
from dataloaders.io.notices import warn_once
from dataloaders.io.schema import NAME
from dataloaders.prepare.sources import find_bids
from pipeline.study import InputOptions, StudyOptions


@dataclass(frozen=True)
class Case:
    """One scan. brain, reference: files, or None; stripped: it shows the brain alone."""

    id: str
    patient: str
    t1: Path
    stripped: bool = False
    brain: Path | None = None
    reference: Path | None = None
    split: Split = "train"

    @property
    def given_brain(self) -> bool:
        """Whether the brain is known, so that nothing has to be stripped."""
        return self.stripped or self.brain is not None


def find_cases(study: StudyOptions) -> list[Case]:
    """All cases in order of their ids, each with its split.

    ValueError naming the folder or key where nothing is found, where files are missing, where an id occurs twice, and
    where a split would be without a patient.
    """
    cases = [case for source in study.input for case in _bids_cases(source)]
    for entry in study.case:
        for key, path in {"t1": entry.t1, "brain": entry.brain, "reference": entry.reference}.items():
            if path is not None and not path.is_file():
                raise ValueError(f"case {entry.id}: {key} = {path}: no such file")
        name = NAME.of(entry.id, "case id")
        patient = NAME.of(entry.patient or name, "patient")
        cases.append(Case(name, patient, entry.t1, entry.stripped, entry.brain, entry.reference))
    ids = [case.id for case in cases]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise ValueError(f"cases {', '.join(twice)} occur more than once; exclude them from one input")
    splits = _splits(study, sorted({case.patient for case in cases}))
    return sorted((replace(case, split=splits[case.patient]) for case in cases), key=lambda case: case.id)


def _bids_cases(o: InputOptions) -> list[Case]:
    if not o.source.is_dir():
        raise ValueError(f"input.source = {o.source}: no such folder")
    found = find_bids(o.source, [o.modality], o.brain_masks, exclude=o.exclude, wanted=o.filter)
    if found.faults:
        raise ValueError(f"input.source = {o.source}: {'; '.join(listed(found.faults))}")
    for note in found.notes:
        if "--bids_filter" in note or note.startswith("exclude "):
            warn_once(note.replace("--bids_filter", "input.filter"))
    patients = sorted({case.patient for case in found.cases})
    unknown = sorted(set(o.subjects) - set(patients))
    if unknown:
        raise ValueError(f"input.subjects: {', '.join(unknown)} not in {o.source}, which has {', '.join(patients)}")
    wanted = [p for p in patients if p in o.subjects or not o.subjects]
    wanted = wanted[: o.limit or None]
    cases = [
        Case(case.id, case.patient, case.images[0], o.stripped, case.brain)
        for case in found.cases
        if case.patient in wanted
    ]
    if not cases:
        raise ValueError(f"input.source = {o.source}: no sub-*/[ses-*/]anat/*_{o.modality}.nii.gz to take")
    return cases


def _splits(study: StudyOptions, patients: list[str]) -> dict[str, Split]:
    named = (*study.split.test, *study.split.val)
    unknown = sorted(set(named) - set(patients))
    if unknown:
        raise ValueError(f"split: {', '.join(unknown)} not among the patients {', '.join(patients)}")
    both = sorted(set(study.split.val) & set(study.split.test))
    if both:
        raise ValueError(f"split: {', '.join(both)} in both val and test")
    if study.split.val and not study.split.test:
        raise ValueError(f"split.val = {list(study.split.val)}: name the patients of split.test too")
    if len(patients) < 2:
        raise ValueError(f"a study needs two patients at least, one to train and one to test on; found {patients}")
    if named:
        test, val = study.split.test, study.split.val
        splits: dict[str, Split] = {p: "test" if p in test else "val" if p in val else "train" for p in patients}
    else:
        from dataloaders.prepare.splits import split_patients  # imports torch, which most units do without

        splits = split_patients(patients, study.split.fractions, study.seed)
    for name in ("train", "test"):
        if name not in splits.values():
            raise ValueError(f"split: no patient is left for {name}; the patients are {', '.join(patients)}")
    return splits
