"""Loaders of the lesion generator: slices with lesions for training, in 3-D stacks of slices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import Dataset

from config import Config
from dataloaders.io.manifest import Manifest
from dataloaders.io.spec import LESION
from dataloaders.slices import BatchLoader, SliceDataset, SliceSample, collate
from models.base import Batch, seeded_generator
from models.lesion.options import LesionConfig


def lesion_loaders(config: Config, data: Manifest) -> tuple[BatchLoader, BatchLoader | None]:
    """Training and, where there are validation cases, validation loader. ValueError for data that were not filled."""
    o, root = config.lesion, config.dataroot
    check_filled(data, o.everywhere, root)
    training = with_lesions(data) if o.sampling == "lesions" and o.dims == 2 else data
    slices = SliceDataset(root, training, "train", config.flip, config.seed, config.cache_gb, filled=True)
    stacks = None if o.dims == 2 else StackDataset(slices, o.patch)
    loader = BatchLoader(slices, config.batch_size, config.seed, config.num_workers, stacks)
    return loader, lesion_test_loader(o, root, data, "val", config.batch_size) if data.split("val") else None


def lesion_test_loader(o: LesionConfig, root: Path, data: Manifest, split: str, batch_size: int) -> BatchLoader:
    """All slices of a split with their copies without lesions; whole cases for a network of volumes."""
    check_filled(data, o.everywhere, root)
    dataset = SliceDataset(root, data, split, filled=True)
    return BatchLoader(dataset, batch_size) if o.dims == 2 else CaseLoader(dataset)


def check_filled(data: Manifest, everywhere: bool, root: Path) -> None:
    """ValueError where the data were not prepared the way that the masks need."""
    fill = data.provenance.get("options", {}).get("fill", "none")
    if fill == "none":
        raise ValueError(f"--dataroot {root}: has no copies without lesions; prepare the data with --fill lesion")
    wanted = "salem2019" if everywhere else "lesion"
    if fill != wanted:
        flag = "--lesion.everywhere" if everywhere else "--lesion.no-everywhere"
        raise ValueError(
            f"--dataroot {root}: was prepared with --fill {fill}; {flag} needs --fill {wanted}, "
            "or what is filled and what the masks show would differ"
        )


def with_lesions(data: Manifest) -> Manifest:
    """The manifest with only those training slices that show lesions; ValueError where there are none."""
    lesion = data.spec.label_id(LESION)
    cases = []
    for case in data.cases:
        if case.split == "train":
            case = replace(case, slices=tuple(s for s in case.slices if s.histogram.get(lesion, 0) > 0))
        if case.slices:
            cases.append(case)
    if not any(case.split == "train" for case in cases):
        raise ValueError("no training slice has a lesion, so there is nothing to learn from")
    return replace(data, cases=tuple(cases))


class CaseLoader(BatchLoader):
    """Whole cases in order, one a batch, for networks that need all slices of a volume at once."""

    def __init__(self, dataset: SliceDataset) -> None:
        super().__init__(dataset, 1)
        self.slices = dataset

    def once(self, limit: int = 0) -> Iterator[Batch]:
        """All slices of each case, (D, H, W); with `limit` about that many in all, neighbours from each case's middle."""
        places: dict[str, list[int]] = {}
        for index, (case, _) in enumerate(self.slices.entries):
            places.setdefault(case.id, []).append(index)
        share = max(1, limit // len(places)) if limit else 0
        for indices in places.values():
            if 0 < share < len(indices):
                start = (len(indices) - share) // 2
                indices = indices[start : start + share]
            yield collate([self.dataset[index] for index in indices])


class StackDataset(Dataset[list[SliceSample]]):
    """Stacks of neighbouring slices of one case, around each slice that shows lesions (all, where none does).

    In batches label (B, D, H, W), image and source (B, C, D, H, W).
    """

    def __init__(self, slices: SliceDataset, depth: int) -> None:
        self.slices, self.depth = slices, depth
        lesion = slices.spec.label_id(LESION)
        self.runs: dict[str, tuple[int, int]] = {}
        for index, (case, _) in enumerate(slices.entries):
            first, _ = self.runs.get(case.id, (index, 0))
            self.runs[case.id] = (first, index + 1)
        items = [item for case in slices.entries.cases for item in case.slices]
        self.centres = [i for i, item in enumerate(items) if item.histogram.get(lesion, 0) > 0]
        if not self.centres:
            raise ValueError("no training slice has a lesion, so there is nothing to learn from")
        thin = [name for name, (first, stop) in self.runs.items() if stop - first < depth]
        if thin:
            raise ValueError(f"--lesion.patch {depth}: the case {thin[0]} has fewer slices")

    def __len__(self) -> int:
        return len(self.centres)

    def collate(self, samples: Sequence[Sequence[SliceSample]]) -> Batch:
        """Stacks of D slices -> one Batch, the depth behind the channels; case and index are those of the first slices."""
        stacks = [collate(stack) for stack in samples]
        label = torch.stack([stack.label for stack in stacks])
        image = torch.stack([stack.real for stack in stacks]).movedim(1, 2)
        source = torch.stack([stack.source for stack in stacks if stack.source is not None]).movedim(1, 2)
        return replace(collate([stack[0] for stack in samples]), label=label, image=image, source=source)

    def __getitem__(self, key: tuple[int, int]) -> list[SliceSample]:
        index, position = key
        centre = self.centres[index]
        first, stop = self.runs[self.slices.entries[centre][0].id]
        rng = seeded_generator(self.slices.seed, "stack", position)
        start = centre - int(torch.randint(self.depth, (), generator=rng))
        start = min(max(start, first), stop - self.depth)
        # One position for all slices, so that the stack is mirrored as a whole or not at all.
        return [self.slices[i, position] for i in range(start, start + self.depth)]
