"""What the names of image files say: the patient, the slice's place, and whether they end in a channel's number."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

_BIDS = re.compile(r"^(sub-[A-Za-z0-9]+)(?:_|$)")
_ENDING = re.compile(r"^(.+)_(\d{4})$")
_MODALITY = re.compile(r".(_[A-Za-z][A-Za-z0-9]*)$")
_SLICE = re.compile(r"^(.+)_z(\d+)(_\d{4})?$")  # after the slice's number, four digits are always a channel
_T = TypeVar("_T")


def place_of(name: str) -> tuple[str, int | None]:
    """(series, slice number) of a name such as ``a_z0012_0000``; the number is None where the name has none."""
    match = _SLICE.match(name)
    return (match[1] + (match[3] or ""), int(match[2])) if match else (name, None)


def label_of(name: str, labels: Mapping[str, _T]) -> _T | None:
    """The label map of an image: of the same name, or of the name without the channel."""
    return labels.get(name) or labels.get(re.sub(r"_\d{4}$", "", name))


def without_modality(files: dict[str, _T]) -> dict[str, _T]:
    """Files by their names without a last part that all share and that is no number: ``_T1w``, ``_dseg``, ``_CT``."""
    endings = {match[1] if (match := _MODALITY.search(name)) else "" for name in files}
    return (
        {name.removesuffix(ending): file for name, file in files.items() for ending in endings}
        if len(endings) == 1
        else files
    )


def shows_channels(names: Collection[str], labels: Collection[str] = ()) -> bool:
    """Whether ``_0000`` at the end of names is nnU-Net's channel and not a number of the image, such as ``amos_0001``.

    It is where a label map bears the short name only, or where several names have the same endings from 0000 on.
    """
    endings: dict[str, set[int]] = {}
    for match in filter(None, (_ENDING.match(name) for name in names)):
        if match[1] in labels and match[0] not in labels:
            return True
        endings.setdefault(match[1], set()).add(int(match[2]))
    sets = list(endings.values())
    alike = len(sets) > 1 and all(one == sets[0] for one in sets)
    return alike and len(sets[0]) > 1 and sets[0] == set(range(len(sets[0])))


def first_group(regex: str | None, text: str, flag: str) -> str:
    """What the first group of an expression finds in a text, without one the text; ValueError where it finds nothing."""
    match = None if regex is None else re.search(regex, text)
    if regex is not None and (match is None or not match.groups() or not match[1]):
        raise ValueError(f"{flag} {regex!r} does not match {text!r}")
    return text if match is None else match[1]


def check_regex(regex: str | None, flag: str, what: str) -> None:
    """ValueError for an expression that is none, or that has no group for what it is to find."""
    if regex is None:
        return
    try:
        groups = re.compile(regex).groups
    except re.error as error:
        raise ValueError(f"{flag} {regex!r}: not a regular expression ({error})") from None
    if not groups:
        raise ValueError(f"{flag} {regex!r}: put the {what} into a group, such as (sub-\\d+)")


@dataclass(frozen=True)
class PatientRule:
    """How a patient is found in a file's name.

    regex: its first group is the patient; else BIDS's ``sub-<label>``, else the name without slice and channel.
    channels: whether names end in a channel's number (`shows_channels`). ValueError for an expression without a group.
    """

    regex: str | None = None
    channels: bool = False

    def __post_init__(self) -> None:
        check_regex(self.regex, "--patient_regex", "patient")

    @property
    def text(self) -> str:
        """For people."""
        if self.regex is not None:
            return f"first group of {self.regex} in the file name"
        without = "slice and channel" if self.channels else "slice"
        return f"sub-<label> at the start of the file name, else the file name without {without}"

    def patient(self, name: str) -> str:
        """Patient of a file's name without suffix; ValueError where the expression does not find one."""
        if self.regex is not None:
            return first_group(self.regex, name, "--patient_regex")
        if match := _BIDS.match(name):
            return match[1]
        if match := _SLICE.match(name):
            return match[1]
        match = _ENDING.match(name) if self.channels else None
        return match[1] if match else name
