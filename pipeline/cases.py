"""The scans of a study: found in BIDS folders or listed, and divided by patient."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from dataloaders.io.console import warn_once
from dataloaders.io.files import listed
from dataloaders.io.manifest import Split
from dataloaders.prepare.sources import find_bids
from dataloaders.prepare.splits import split_patients
from pipeline.study import CaseOptions, InputOptions, Study


@dataclass(frozen=True, kw_only=True)
class StudyCase(CaseOptions):
    """One scan, with its split."""

    split: Split = "train"

    @property
    def given_brain(self) -> bool:
        """Whether the brain is known, so that nothing has to be stripped."""
        return self.stripped or self.brain is not None


def find_cases(study: Study) -> list[StudyCase]:
    """All cases in order of their ids, each with its split.

    ValueError naming the folder or key where nothing is found, where files are missing, where an id occurs twice, and
    where a split would be without a patient.
    """
    cases = [case for source in study.input for case in _bids_cases(source)]
    for entry in study.case:
        for key, path in {"t1": entry.t1, "brain": entry.brain, "reference": entry.reference}.items():
            if path is not None and not path.is_file():
                raise ValueError(f"case {entry.id}: {key} = {path}: no such file")
        cases.append(StudyCase(**{**vars(entry), "patient": entry.patient or entry.id}))
    twice = sorted(name for name, count in Counter(case.id for case in cases).items() if count > 1)
    if twice:
        raise ValueError(f"cases {', '.join(twice)} occur more than once; exclude them from one input")
    splits = _splits(study, sorted({case.patient for case in cases}))
    made = (StudyCase(**{**vars(case), "split": splits[case.patient]}) for case in cases)
    return sorted(made, key=lambda case: case.id)


def _bids_cases(o: InputOptions) -> list[StudyCase]:
    if not o.source.is_dir():
        raise ValueError(f"input.source = {o.source}: no such folder")
    found = find_bids(o.source, [o.modality], o.brain_masks, exclude=o.exclude, wanted=o.filter)
    if found.faults:
        raise ValueError(f"input.source = {o.source}: {'; '.join(listed(found.faults))}")
    for note in found.notes:
        if "--bids_filter" in note or note.startswith("exclude "):
            warn_once(note.replace("--bids_filter", "input.filter"))
    patients = sorted({case.patient for case in found.cases})
    if unknown := sorted(set(o.subjects) - set(patients)):
        raise ValueError(f"input.subjects: {', '.join(unknown)} not among the patients {', '.join(patients)}")
    wanted = [p for p in patients if p in o.subjects or not o.subjects][: o.limit or None]
    cases = [
        StudyCase(
            id=case.id,
            patient=case.patient,
            t1=case.images[0],
            stripped=o.stripped,
            brain=case.masks.get("brain"),
            reference=case.masks.get("label"),
        )
        for case in found.cases
        if case.patient in wanted
    ]
    if not cases:
        raise ValueError(f"input.source = {o.source}: no sub-*/[ses-*/]anat/*_{o.modality}.nii.gz to take")
    return cases


def _splits(study: Study, patients: list[str]) -> dict[str, Split]:
    """Patient -> split."""
    o = study.split
    if o.val and not o.test:
        raise ValueError(f"split.val = {list(o.val)}: name the patients of split.test too")
    if len(patients) < 2:
        raise ValueError(f"a study needs two patients at least, one to train and one to test on; found {patients}")
    try:
        splits = split_patients(patients, o.fractions, study.seed, o.val, o.test)
    except ValueError as error:
        raise ValueError(
            str(error).replace("--val_patients", "split.val").replace("--test_patients", "split.test")
        ) from None
    for name in ("train", "test"):
        if name not in splits.values():
            raise ValueError(f"split: no patient is left for {name}; the patients are {', '.join(patients)}")
    return splits
