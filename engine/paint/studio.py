"""What is painted on, of either kind (maps.py, lesions.py): what it may start from, what is shown and saved of it."""

from __future__ import annotations

import base64
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataloaders.io.files import atomic_path
from dataloaders.io.intensity import Window
from dataloaders.io.manifest import Case
from dataloaders.io.pictures import hex_color, label_colors
from dataloaders.io.png import write_png
from dataloaders.io.schema import decode
from dataloaders.io.spec import Channel, DataSpec, Label
from dataloaders.labelmaps.labels import id_type
from engine.paint.canvas import Start, View
from evaluation.report.pictures import HU_WINDOWS

MAX_VOXELS = 2**27  # of files that are sent to the page: 512³
MAX_SLICES = 2048
OKABE_ITO = "#e69f00 #56b4e9 #009e73 #f0e442 #0072b2 #d55e00 #cc79a7".split()  # Okabe and Ito, 2008: for all eyes


@dataclass(frozen=True)
class ImagePanel:
    """Images beside the canvas. windows: units of each channel's levels. sliders: name, low, high, step, unit of each.

    live: whether they follow the canvas.
    """

    name: str
    channels: Sequence[Channel]
    windows: Sequence[Window]
    resamples: bool = False
    sliders: Sequence[Sequence[Any]] = ()
    live: bool = True


class Studio(ABC):
    """What is painted on, and what runs make of it. One serves all pages; a canvas is a page's own.

    spec: classes and grid that are painted. sha256: of all that images are made by. over: number of the scan under
    the canvas to begin with, or None. voxel_ml: of a voxel where what is painted is counted, else 0.
    """

    spec: DataSpec
    sha256: dict[str, str]
    over: int | None = None
    voxel_ml = 0.0

    @property
    def id_type(self) -> Any:
        """Pixel type of labels."""
        return id_type(self.spec.num_labels)

    # -- what a canvas may begin with -----------------------------------------------------------------------------------

    def cases(self) -> list[list[Any]]:
        """[id, split, slices] of each case that can be begun with."""
        return []

    @abstractmethod
    def empty(self) -> Start:
        """All background."""

    def of_case(self, name: str) -> Start:
        """A case of `cases`; ValueError where there is none of that name."""
        raise ValueError(f"no case {name[:80]!r} in the data")

    @abstractmethod
    def of_file(self, path: Path) -> Start:
        """A file that was sent; ValueError for one that cannot be begun with."""

    def of_saved(self, data: Any) -> Start:
        """Inverse of `Start.to_dict`; ValueError for what it cannot have written."""
        if not isinstance(data, dict) or set(data) != {"case", "ids"} or not isinstance(data["ids"], str):
            raise ValueError("the session says not what it begins with")
        case = decode(Case, data["case"], "case")
        if not 1 <= len(case.slices) <= MAX_SLICES:
            raise ValueError(f"the session has {len(case.slices)} slices, allowed are 1..{MAX_SLICES}")
        shape = (len(case.slices), *self.spec.size)
        wanted = int(np.prod(shape)) * np.dtype(self.id_type).itemsize
        try:
            unpacked = zlib.decompressobj().decompress(base64.b64decode(data["ids"], validate=True), wanted + 1)
        except (ValueError, zlib.error):
            unpacked = b""
        ids = np.frombuffer(unpacked, self.id_type)
        if len(unpacked) != wanted or ids.max() >= self.spec.num_labels:
            raise ValueError(f"the session's label map is damaged, or not one of {shape[1]} x {shape[2]} pixels")
        return Start(case, ids.reshape(shape))

    # -- what is shown --------------------------------------------------------------------------------------------------

    @abstractmethod
    def panels(self, case: Case) -> list[ImagePanel]:
        """Images that stand beside a canvas of that case."""

    @abstractmethod
    def image(self, name: str, position: int, view: View) -> NDArray[np.uint16]:
        """(C, H, W) levels of a slice in the panel of that name."""

    def note(self, name: str, view: View) -> str:
        """What the page says below that image; empty for nothing."""
        return ""

    @abstractmethod
    def backdrops(self, case: Case) -> Sequence[str]:
        """Names of the scans under a canvas of that case."""

    @abstractmethod
    def backdrop(self, case: Case, position: int) -> NDArray[np.uint16] | None:
        """(C, H, W) levels of those scans; None where there are none."""

    def describe(self, start: Start) -> dict[str, Any]:
        """What the page shows beside pixels."""
        return {
            "case": start.case.id,
            "slices": len(start.ids),
            "size": self.spec.size,
            "aspect": self.spec.spacing[0] / self.spec.spacing[1],
            "labels": [[label.name, label.color] for label in self.spec.labels],
            "panels": [asdict(panel) for panel in self.panels(start.case)],
            "backdrops": self.backdrops(start.case),
            "over": "" if self.over is None else f"real {self.over}",
            "voxel_ml": self.voxel_ml,
            "volumes": self.has_volumes(start.case),
            "hu": HU_WINDOWS,
            "notes": list(start.notes),
        }

    # -- what is saved --------------------------------------------------------------------------------------------------

    def has_volumes(self, case: Case) -> bool:
        """Whether slices have a place in a volume."""
        return case.geometry is not None

    @abstractmethod
    def save_volumes(self, folder: Path, view: View) -> list[Path]:
        """Write NIfTI files; ValueError where slices have no place in a volume."""

    def save_slice(self, folder: Path, position: int, view: View) -> list[Path]:
        """PNG files of a slice: class ids in their colours, and 16-bit images."""
        place = f"{view.case.id}_z{view.case.slices[position].index:04d}"
        written = [folder / f"{place}_label.png"]
        if self.spec.num_labels <= 256:
            picture = Image.fromarray(view.ids[position])
            picture.putpalette(label_colors(self.spec.labels).tobytes())
            with atomic_path(written[0]) as temporary:
                picture.save(temporary, format="PNG")
        else:
            write_png(written[0], view.ids[position])
        for panel in self.panels(view.case):
            for channel, levels in zip(panel.channels, self.image(panel.name, position, view), strict=True):
                written.append(folder / f"{place}_{panel.name}_{channel.name}.png")
                write_png(written[-1], levels)
        return written


def coloured(labels: Sequence[Label]) -> tuple[Label, ...]:
    """Labels with the colours that they are painted in: their own, else those that all eyes tell apart while they last."""
    few = len(labels) <= len(OKABE_ITO) + 1
    other = ["#000000", *OKABE_ITO] if few else [hex_color(color) for color in label_colors(labels)]
    return tuple(replace(label, color=label.color or other[label.id]) for label in labels)
