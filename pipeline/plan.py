"""A study cut into units: each stage of each case, or of each combination of segmenter, stripper and generator."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dataloaders.labelmaps.labels import TABLES
from pipeline.cases import Case
from pipeline.generator import gmm_options
from pipeline.records import Unit
from pipeline.study import PATH_SETTINGS, StudyOptions
from pipeline.tissue import read_table
from pipeline.tools import TOOLS, Tool, configured

# Of the work, in order; those of one group do not wait for each other, and a Slurm array holds one group.
ORDER = (
    ("harmonise",),
    ("strip",),
    ("crop", "slices"),
    ("segment",),
    ("tissue",),
    ("priors", "reference", "real"),
    ("synthesise", "gan"),
    ("paint",),
    ("dataset",),
    ("plan",),
    ("train",),
    ("predict",),
    ("evaluate",),
    ("report",),
)


@dataclass(frozen=True)
class Tools:
    """Names as the study uses them -> the tool and its settings."""

    strippers: dict[str, tuple[Tool, dict[str, Any]]]
    segmenters: dict[str, tuple[Tool, dict[str, Any]]]
    synthsr: dict[str, Any]

    @property
    def all(self) -> dict[str, tuple[Tool, dict[str, Any]]]:
        """Every tool that the study needs."""
        return {**self.strippers, **self.segmenters}


def find_tools(study: StudyOptions) -> Tools:
    """The tools of a study with their settings; ValueError for what does not fit, and for settings that nobody uses."""
    for name in (*study.strip.tools, *study.segment.tools, *study.tools):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,39}", name):
            raise ValueError(f"tools: {name!r}: a tool's name has letters, digits and '-' only")
    strippers = {name: configured(study, name, "strip") for name in study.strip.tools}
    segmenters = {name: configured(study, name, "segment") for name in study.segment.tools}
    synthsr = configured(study, "synthsr", "harmonise")[1] if study.harmonise.method == "synthsr" else {}
    used = {*strippers, *segmenters} | ({"synthsr"} if synthsr else set())
    idle = sorted(set(study.tools) - used)
    if idle:
        raise ValueError(f"tools.{idle[0]}: is in neither strip.tools nor segment.tools")
    unused = sorted(set(study.tissue.tables) - set(segmenters))
    if unused:
        raise ValueError(f"tissue.tables.{unused[0]}: is not in segment.tools, which has {', '.join(segmenters)}")
    for path in study.tissue.tables.values():
        read_table(path)
    return Tools(strippers, segmenters, synthsr)


def make_plan(study: StudyOptions, cases: Sequence[Case]) -> list[Unit]:
    """All units in an order in which each comes after those that it names; the same for every run of a study."""
    tools = find_tools(study)
    gmm_options(study.synthesise.contrast, study.synthesise.gmm)  # refuses what does not fit
    maps = [f"{segmenter}_{stripper}" for segmenter in tools.segmenters for stripper in tools.strippers]
    kind = study.evaluate.reference
    if kind not in ("consensus", "labels", *maps):
        raise ValueError(f"evaluate.reference = {kind!r}: must be consensus, labels, or one of {', '.join(maps)}")
    units = [unit for case in cases for unit in _scan_units(study, tools, case)]
    units += _study_units(study, cases, maps)
    # The report speaks of every unit, so that no failure goes unsaid.
    everything = tuple(unit.id for unit in units)
    units.append(Unit("report", "", "", gathers=everything, settings={"name": study.name}))
    rank = {stage: i for i, group in enumerate(ORDER) for stage in group}
    return sorted(units, key=lambda unit: (rank[unit.stage], unit.id))


def _scan_units(study: StudyOptions, tools: Tools, case: Case) -> list[Unit]:
    """Stages 1 to 5 of a case, and its real slices where it is tested on."""
    files = tuple(path for path in (case.t1, case.brain, case.reference) if path is not None)
    harmonise = Unit(
        "harmonise",
        "",
        case.id,
        settings={**asdict(study.harmonise), "tool": tools.synthsr, "stripped": case.stripped},
        files=files,
    )
    units = [harmonise]
    for name, (tool, options) in tools.strippers.items():
        settings = {"given": True} if case.given_brain else {"tool": tool.name, "options": options}
        strip = Unit("strip", name, case.id, (harmonise.id,), settings=settings)
        crop = Unit("crop", name, case.id, (harmonise.id, strip.id), settings=asdict(study.crop))
        units += [strip, crop]
        if case.split == "test":
            units.append(Unit("slices", name, case.id, (harmonise.id, strip.id), settings=asdict(study.slices)))
    for name, (tool, options) in tools.segmenters.items():
        wants, weights = tool.gets(options), weight_files(options)
        settings = {"tool": tool.name, "options": options, "wants": wants}
        if wants == "head":
            units.append(Unit("segment", name, case.id, (harmonise.id,), settings=settings, files=weights))
        for stripper in tools.strippers:
            segment = f"segment/{name}/{case.id}"
            if wants == "brain":
                needs = (f"crop/{stripper}/{case.id}",)
                unit = Unit("segment", f"{name}_{stripper}", case.id, needs, settings=settings, files=weights)
                units.append(unit)
                segment = unit.id
            units.append(_tissue_unit(study, case, name, stripper, segment))
    return units


def weight_files(options: dict[str, Any]) -> tuple[Path, ...]:
    """Weight files that a tool's settings name: with other weights the unit is another."""
    paths = [Path(options[key]) for key in PATH_SETTINGS if options.get(key)]
    found = [file for path in paths for file in (sorted(path.glob("weights-*")) if path.is_dir() else [path])]
    return tuple(file for file in found if file.is_file())


def _tissue_unit(study: StudyOptions, case: Case, segmenter: str, stripper: str, segment: str) -> Unit:
    given = study.tissue.tables.get(segmenter)
    table = TOOLS[study.tools.get(segmenter, {}).get("tool", segmenter)].table
    needs = (f"harmonise/{case.id}", f"strip/{stripper}/{case.id}", segment)
    path = given or TABLES / table
    settings = {"table": path.name, "quality": asdict(study.quality)}
    return Unit("tissue", f"{segmenter}_{stripper}", case.id, needs, settings=settings, files=(path,))


def _study_units(study: StudyOptions, cases: Sequence[Case], maps: Sequence[str]) -> list[Unit]:
    """Stages 6 to 8 but for the report."""
    learn = [case for case in cases if case.split != "test"]
    test = [case for case in cases if case.split == "test"]
    units: list[Unit] = []
    for name in maps:
        units += _synthesis_units(study, learn, test, name)
    names = [f"{name}{'' if method == 'gmm' else f'_{method}'}" for method in study.synthesise.methods for name in maps]
    synthetic = {name: "paint" if name.count("_") > 1 else "synthesise" for name in names}
    for i, name in enumerate(sorted(names)):
        units += _network_units(study, learn, test, name, study.nnunet.first_id + i, synthetic)
    kind = study.evaluate.reference
    sources = [name for name in maps if kind in ("consensus", name)]
    for case in test:
        gathers = tuple(f"tissue/{name}/{case.id}" for name in sources)
        settings = {"reference": kind}
        units.append(Unit("reference", "", case.id, (f"harmonise/{case.id}",), gathers, settings))
    over = [unit.id for unit in units if unit.stage in ("predict", "reference")]
    over += [f"tissue/{name}/{case.id}" for name in maps for case in cases]
    over += [f"strip/{name}/{case.id}" for name in study.strip.tools for case in cases]
    over += [f"slices/{name}/{case.id}" for name in study.strip.tools for case in test]
    over += [f"{stage}/{name}/{case.id}" for name, stage in synthetic.items() for case in test]
    evaluate = Unit("evaluate", "", "", gathers=tuple(over), settings=asdict(study.evaluate))
    return [*units, evaluate]


def _synthesis_units(study: StudyOptions, learn: list[Case], test: list[Case], name: str) -> list[Unit]:
    o = study.synthesise
    subclasses = o.subclasses if o.contrast == "t1" else 1  # other contrasts are of tissues, not of places
    tissue = {case.id: f"tissue/{name}/{case.id}" for case in [*learn, *test]}
    trained = tuple(tissue[case.id] for case in learn)
    scans = tuple(f"harmonise/{case.id}" for case in learn)
    prior = Unit(
        "priors", name, "", gathers=(*trained, *scans), settings={"contrast": o.contrast, "subclasses": subclasses}
    )
    units = [prior] if o.contrast == "t1" else []
    for case in [*learn, *(test if o.test else [])]:
        peers = trained if case.split != "test" else tuple(tissue[other.id] for other in test)
        settings = {
            "contrast": o.contrast,
            "subclasses": subclasses,
            "gmm": o.gmm,
            "total": o.test if case.split == "test" else o.train,
            "seed": study.seed,
            "slices": asdict(study.slices),
            "split": case.split,
        }
        needs = (tissue[case.id], f"harmonise/{case.id}", *((prior.id,) if o.contrast == "t1" else ()))
        units.append(Unit("synthesise", name, case.id, needs, peers, settings))
    if "gan" in o.methods:
        real = Unit("real", name, "", gathers=(*trained, *scans), settings=asdict(study.slices))
        painting: dict[str, Any] = {"options": o.gan, "seed": study.seed}
        gan = Unit("gan", name, "", (real.id,), settings=painting)
        units += [real, gan]
        for unit in [unit for unit in units if unit.stage == "synthesise"]:
            units.append(Unit("paint", f"{name}_gan", unit.case, (unit.id, gan.id), settings=painting))
    return units


def _network_units(
    study: StudyOptions, learn: list[Case], test: list[Case], name: str, number: int, synthetic: dict[str, str]
) -> list[Unit]:
    """Data set, plan, training and prediction of one combination."""
    o = asdict(study.nnunet)
    images = tuple(f"{synthetic[name]}/{name}/{case.id}" for case in learn)
    dataset = Unit("dataset", name, "", gathers=images, settings={"number": number, "fold": o["fold"]})
    shape = {key: o[key] for key in ("plan", "patch", "batch", "features")}
    plan = Unit("plan", name, "", (dataset.id,), settings=shape)
    length = {key: o[key] for key in ("epochs", "iterations", "val_iterations", "trainer", "device", "fold")}
    train = Unit("train", name, "", (plan.id, dataset.id), settings={**shape, **length})
    stripper = name.split("_")[1]
    tasks = [f"slices/{stripper}/{case.id}" for case in test]
    if study.evaluate.synthetic and study.synthesise.test:
        tasks += [f"{stage}/{other}/{case.id}" for other, stage in sorted(synthetic.items()) for case in test]
    settings = {key: o[key] for key in ("tta", "checkpoint", "fold", "device")}
    predict = Unit("predict", name, "", (train.id, dataset.id), tuple(tasks), settings)
    return [dataset, plan, train, predict]
