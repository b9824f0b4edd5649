"""Stages 1 to 5: harmonise, strip, crop, segment, labels to tissues. All results are on one grid, the harmonised scan's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from dataloaders.io import geometry
from dataloaders.io.files import package_version
from dataloaders.io.manifest import affine_rows
from dataloaders.io.nifti import Volume, read_volume, whole_numbers, write_volume
from dataloaders.labelmaps.labels import count_labels
from dataloaders.prepare.tissue import TissueError, brain_mask
from pipeline.context import LOG, Context, Excluded, Made
from pipeline.interleave import even_slices
from pipeline.tissue import HIGH_PERCENTILE, TISSUES, gate, on_grid, read_labels, read_table, tissue_facts
from pipeline.tools import TOOLS
from pipeline.tools.base import ToolCall

N4 = {
    "version": package_version("simpleitk") or "unknown",
    "licence": "Apache-2.0 (SimpleITK)",
    "citation": "Tustison et al., IEEE TMI 2010, doi 10.1109/TMI.2010.2046908",
}
N4_MM = 4.0  # of the grid that the bias field is estimated on


def harmonise(context: Context) -> Made:
    """RAS orientation, even slices, N4, voxel size; SynthSR's image beside it where that is asked for.

    What is evaluated on later is always the scan's own contrast: SynthSR paints a brain of its own.
    """
    o = context.unit.settings
    source = read_volume(context.case.t1)
    if source.data.min() == source.data.max():
        raise Excluded(f"{context.case.t1.name} has one intensity everywhere")
    if source.codes == (0, 0):  # a mirrored result would look like any other
        raise Excluded(
            f"{context.case.t1.name}: the header says nothing of orientation (qform and sform codes are 0); set a code if "
            f"its axes go to {', '.join(nib.orientations.aff2axcodes(source.affine))}, else the affine too"
        )
    data, affine = geometry.to_ras(source.data.astype(np.float32), source.affine)
    spacing = geometry.spacing(affine)
    corrected = o["method"] != "none"
    if o["even_slices"] and corrected:
        data = even_slices(data, spacing)
    if o["n4"] and corrected:
        data = n4(data, spacing)
    wanted = [mm or own for mm, own in zip(o["spacing"], spacing, strict=True)]
    shape, target = geometry.regrid(data.shape, affine, wanted)
    grid = Volume(geometry.resample(data, affine, shape, target), target)
    write_volume(context.folder / "image.nii.gz", grid.data, target, np.float32)
    outputs = {"image": "image.nii.gz"} | _given_maps(context, source, grid)
    tool = {"name": "n4", **N4} if o["n4"] and corrected else {}
    if o["method"] == "synthsr":
        outputs["synthsr"], tool = _synthsr(context, grid)
    facts = {
        key: {"shape": list(volume.data.shape), "affine": affine_rows(volume.affine)}
        for key, volume in (("source", source), ("grid", grid))
    }
    facts["source"]["file"] = context.case.t1.name
    return Made(outputs, facts, tool)


def n4(data: NDArray[np.float32], mm: NDArray) -> NDArray[np.float32]:
    """N4 bias field correction (Tustison et al., IEEE TMI 2010) of a head, estimated at 4 mm within Otsu's mask."""
    import SimpleITK as sitk  # noqa: N813 (its usual name; slow to import)

    from dataloaders.registration import bias_field

    turned = np.ascontiguousarray(data.T)
    head = sitk.GetArrayFromImage(sitk.OtsuThreshold(sitk.GetImageFromArray(turned), 0, 1, 200)) > 0
    shrink = [max(1, int(N4_MM // size)) for size in mm]
    return (data / bias_field(turned, head, shrink[::-1], mm[::-1].tolist()).T).astype(np.float32)


def _given_maps(context: Context, source: Volume, grid: Volume) -> dict[str, str]:
    """Brain mask and, where the study uses them, labels that came with the case, on the grid."""
    outputs = {}
    drawn = context.case.reference if context.unit.settings.get("labels") else None
    for name, path in {"brain": context.case.brain, "reference": drawn}.items():
        if path is None:
            continue
        given = read_volume(path)
        moved, affine = geometry.onto_axes(given.data, given.affine, source.affine)
        if fault := geometry.off_grid(moved.shape, affine, source.data.shape, source.affine, context.case.t1.name):
            raise Excluded(f"{path.name}: {fault}")
        ids = on_grid(whole_numbers(path, given.data), given.affine, grid, labels=True)
        write_volume(context.folder / f"{name}.nii.gz", ids, grid.affine, np.uint8 if name == "brain" else np.int32)
        outputs[name] = f"{name}.nii.gz"
    return outputs


def _synthsr(context: Context, grid: Volume) -> tuple[str, dict[str, str]]:
    made = _run(context, "synthsr", context.folder / "image.nii.gz", context.unit.settings["tool"])
    found = read_volume(context.folder / made.outputs["output"])
    image = on_grid(found.data.astype(np.float32), found.affine, grid, labels=False)
    write_volume(context.folder / "harmonised.nii.gz", image, grid.affine, np.float32)
    return "harmonised.nii.gz", made.tool


def _run(context: Context, tool: str, image: Path, settings: dict[str, Any]) -> Made:
    """Call a tool; its log and its output stay in the unit's folder."""
    call = ToolCall(image, context.folder, settings, context.study.threads, context.study.time_limit)
    output, about = TOOLS[tool].run(call)
    log = {"log": LOG} if call.log.is_file() else {}
    return Made({"output": str(output.relative_to(context.folder)), **log}, tool=about)


def _working_image(context: Context) -> Path:
    """The image that tools see: SynthSR's where there is one."""
    unit = context.needed("harmonise")
    return context.path(unit, "synthsr" if "synthsr" in context.records[unit].outputs else "image")


def strip(context: Context) -> Made:
    """Brain mask on the grid: given, or by a stripper. Excluded where it is empty."""
    harmonised = context.needed("harmonise")
    image = context.volume(harmonised, "image")
    made = Made({}, tool={"name": "given"})
    if not context.case.given_brain:
        o = context.unit.settings
        made = _run(context, o["tool"], _working_image(context), o["options"])
        mask = read_labels(context.folder / made.outputs["output"], image) > 0
    elif "brain" in context.records[harmonised].outputs:
        mask = context.volume(harmonised, "brain").data > 0
    else:
        try:
            mask = brain_mask(image.data, geometry.spacing(image.affine))
        except TissueError as error:
            raise Excluded(f"said to be stripped, but {error}") from None
    write_volume(context.folder / "brain_mask.nii.gz", mask.astype(np.uint8), image.affine)
    litres = float(mask.sum() * np.prod(geometry.spacing(image.affine)) / 1e6)
    made = Made({**made.outputs, "mask": "brain_mask.nii.gz"}, {"litres": litres}, made.tool)
    if not mask.any():
        raise Excluded("the brain mask is empty", made)
    return made


def crop(context: Context) -> Made:
    """The brain alone, in its box with a margin. The box is kept: `tissue` undoes it."""
    image = read_volume(_working_image(context))
    mask = context.volume(context.needed("strip"), "mask").data > 0
    margin = np.ceil(context.unit.settings["margin_mm"] / geometry.spacing(image.affine))
    box = geometry.bounding_box(mask, margin)
    # Zero is background to segmenters, so brain voxels must be above it.
    floor = 1e-3 * float(np.percentile(image.data[mask], HIGH_PERCENTILE))
    brain = np.where(mask, np.maximum(image.data, floor), 0)[box]
    start = np.array([s.start for s in box], float)
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ start
    write_volume(context.folder / "brain.nii.gz", brain, affine, np.float32)
    facts = {"start": [int(s.start) for s in box], "shape": list(brain.shape)}
    return Made({"brain": "brain.nii.gz"}, facts)


def segment(context: Context) -> Made:
    """Labels of a segmenter as it writes them, in its own ids and on its own grid; or those that came with the scan."""
    o = context.unit.settings
    if TOOLS[o["tool"]].given:
        harmonised = context.needed("harmonise")
        if "reference" not in context.records[harmonised].outputs:
            raise Excluded("no labels came with this scan")
        shutil.copyfile(context.path(harmonised, "reference"), context.folder / "labels.nii.gz")
        return Made({"labels": "labels.nii.gz"}, tool={"name": "given"})
    image = context.path(context.needed("crop"), "brain") if o["wants"] == "brain" else _working_image(context)
    made = _run(context, o["tool"], image, o["options"])
    return Made({**made.outputs, "labels": made.outputs["output"]}, tool=made.tool)


def tissue(context: Context) -> Made:
    """GM 1, WM 2, CSF 3 within the brain mask, by the tool's table; then the gate. Excluded with the gate's reasons.

    fluid_is_rest: brain that the tool gives no label is CSF.
    """
    image = context.volume(context.needed("harmonise"), "image")
    mask = context.volume(context.needed("strip"), "mask").data > 0
    labels = read_labels(context.path(context.needed("segment"), "labels"), image)
    (file,) = context.unit.files
    table = read_table(file)
    tissues = np.where(mask, table.apply(labels), 0).astype(np.uint8)
    if context.unit.settings.get("fluid_is_rest"):
        tissues[mask & (tissues == 0)] = TISSUES["CSF"]
    voxel_ml = float(np.prod(geometry.spacing(image.affine)) / 1000)
    write_volume(context.folder / "tissue.nii.gz", tissues, image.affine)
    facts = tissue_facts(tissues, image.data, voxel_ml)
    facts["unknown_ml"] = {str(i): n * voxel_ml for i, n in table.unknown(count_labels(labels)).items()}
    facts["outside_ml"] = float((mask & (tissues == 0)).sum()) * voxel_ml
    facts["window"] = [0.0, float(np.percentile(image.data[mask], HIGH_PERCENTILE))]
    made = Made({"tissue": "tissue.nii.gz"}, facts, {"table": file.name})
    faults = gate(facts, context.study.quality)
    if faults:
        raise Excluded("; ".join(faults), made)
    return made
