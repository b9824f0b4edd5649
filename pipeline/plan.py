"""A study cut into units: each stage of each case, or of each combination of segmenter, stripper and generator."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dataloaders.labelmaps.label_tables import TABLES
from pipeline.cases import StudyCase
from pipeline.records import Unit
from pipeline.rules import RULES
from pipeline.study import PATH_SETTINGS, Study, gmm_options
from pipeline.tissue import read_table
from pipeline.tools import TOOLS, configured
from pipeline.tools.base import Kind, Tool

Configured = tuple[Tool, dict[str, Any]]  # with its settings


def find_tools(study: Study) -> dict[Kind, dict[str, Configured]]:
    """The tools of a study by kind and name; ValueError for what does not fit, and for settings that nobody uses."""
    names: dict[Kind, Sequence[str]] = {
        "strip": study.strip.tools,
        "segment": study.segment.tools,
        "harmonise": ["synthsr"] if study.harmonise.method == "synthsr" else [],
    }
    for name in (*study.strip.tools, *study.segment.tools, *study.tools):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,39}", name):
            raise ValueError(f"tools: {name!r}: a tool's name has letters, digits and '-' only")
    tools = {kind: {name: configured(study, name, kind) for name in of_kind} for kind, of_kind in names.items()}
    segmenters = tools["segment"]
    for name in sorted(set(study.tools).difference(*tools.values())):
        raise ValueError(f"tools.{name}: is in neither strip.tools nor segment.tools")
    drawn = {"labels"} if study.evaluate.reference == "labels" else set()
    strange = [f"tissue.tables.{name}:" for name in sorted(set(study.tissue.tables) - set(segmenters) - drawn)]
    strange += [f"tissue.fluid_is_rest: {n!r}" for n in sorted(set(study.tissue.fluid_is_rest) - set(segmenters))]
    if strange:
        raise ValueError(f"{strange[0]} is not in segment.tools, which has {', '.join(segmenters)}")
    for path in study.tissue.tables.values():
        read_table(path)
    return tools


def make_plan(study: Study, cases: Sequence[StudyCase]) -> list[Unit]:
    """All units in an order in which each comes after those that it names; the same for every run of a study."""
    tools = find_tools(study)
    gmm_options(study.synthesise.contrast, study.synthesise.gmm)  # refuses what does not fit
    maps = [f"{segmenter}_{stripper}" for segmenter in tools["segment"] for stripper in tools["strip"]]
    kind = study.evaluate.reference
    if kind not in ("consensus", "labels", *maps):
        raise ValueError(f"evaluate.reference = {kind!r}: must be consensus, labels, or one of {', '.join(maps)}")
    plan = _StudyPlan(study, tools, cases, maps)
    for case in cases:
        plan.scan(case)
    for name in maps:
        plan.synthesis(name)
    plan.networks()
    plan.evaluation()
    return sorted(plan.units, key=lambda unit: (RULES[unit.stage].rank, unit.id))


class _StudyPlan:
    """Collects units."""

    def __init__(
        self, study: Study, tools: dict[Kind, dict[str, Configured]], cases: Sequence[StudyCase], maps: Sequence[str]
    ) -> None:
        self.study, self.tools, self.cases, self.maps = study, tools, cases, maps
        self.learn = [case.id for case in cases if case.split != "test"]
        self.test = [case.id for case in cases if case.split == "test"]
        self.labels_used = study.evaluate.reference == "labels" or any(t.given for t, _ in tools["segment"].values())
        self.units: list[Unit] = []

    def add(self, stage: str, name: str = "", case: str = "", **of: Any) -> str:
        """A unit more; its id."""
        unit = Unit(stage, name, case, **of)
        self.units.append(unit)
        return unit.id

    def scan(self, case: StudyCase) -> None:
        """Stages 1 to 5 of a case, and its real slices where it is tested on."""
        study, tools = self.study, self.tools
        (synthsr,) = [options for _, options in tools["harmonise"].values()] or [{}]
        settings = {**asdict(study.harmonise), "tool": synthsr, "stripped": case.stripped}
        given = [case.brain, case.reference if self.labels_used else None]
        settings |= {"labels": True} if self.labels_used else {}
        files = (case.t1, *(path for path in given if path is not None))
        harmonise = self.add("harmonise", case=case.id, settings=settings, files=files)
        strips = {}
        for name, (tool, options) in tools["strip"].items():
            settings = {"given": True} if case.given_brain else {"tool": tool.name, "options": options}
            strips[name] = self.add("strip", name, case.id, needs=(harmonise,), settings=settings)
            needs = (harmonise, strips[name])
            self.add("crop", name, case.id, needs=needs, settings=asdict(study.crop))
            if case.split == "test":
                self.add("slices", name, case.id, needs=needs, settings=asdict(study.slices))
        for name, (tool, options) in tools["segment"].items():
            wants = tool.gets(options)
            settings = {"tool": tool.name, "options": options, "wants": wants}
            of: dict[str, Any] = {"settings": settings, "files": weight_files(options)}
            if wants == "head":
                labels = self.add("segment", name, case.id, needs=(harmonise,), **of)
            table = _table(study, name, tool)
            settings = {"table": table.name, "quality": asdict(study.quality)}
            settings |= {"fluid_is_rest": True} if name in study.tissue.fluid_is_rest else {}
            for stripper, strip in strips.items():
                both, crop = f"{name}_{stripper}", f"crop/{stripper}/{case.id}"
                if wants == "brain":
                    labels = self.add("segment", both, case.id, needs=(crop,), **of)
                seen = (harmonise, strip, labels)
                self.add("tissue", both, case.id, needs=seen, settings=settings, files=(table,))

    def synthesis(self, name: str) -> None:
        """Priors and synthetic slices of a combination, and those that a GAN paints."""
        study, o = self.study, self.study.synthesise
        look = {"contrast": o.contrast, "subclasses": o.subclasses if o.contrast == "t1" else 1}
        trained = tuple(f"tissue/{name}/{case}" for case in self.learn)
        scans = (*trained, *(f"harmonise/{case}" for case in self.learn))
        # Other contrasts are of tissues, not of places.
        prior = (self.add("priors", name, gathers=scans, settings=look),) if o.contrast == "t1" else ()
        painting = {"options": o.gan, "seed": study.seed}
        if "gan" in o.methods:
            real = self.add("real", name, gathers=scans, settings=asdict(study.slices))
            gan = self.add("gan", name, needs=(real,), settings=painting)
        for case in [case for case in self.cases if case.split != "test" or o.test]:
            is_test = case.split == "test"
            peers = tuple(f"tissue/{name}/{other}" for other in self.test) if is_test else trained
            settings: dict[str, Any] = {
                **look,
                "gmm": o.gmm,
                "total": o.test if is_test else o.train,
                "seed": study.seed,
            }
            settings |= {"slices": asdict(study.slices), "split": case.split}
            needs = (f"tissue/{name}/{case.id}", f"harmonise/{case.id}", *prior)
            made = self.add("synthesise", name, case.id, needs=needs, gathers=peers, settings=settings)
            if "gan" in o.methods:
                self.add("paint", f"{name}_gan", case.id, needs=(made, gan), settings=painting)

    def networks(self) -> None:
        """Data set, plan, training and prediction of every combination of segmenter, stripper and generator."""
        study, o = self.study, asdict(self.study.nnunet)
        painters = {"gmm": ("synthesise", ""), "gan": ("paint", "_gan")}
        synthetic = {
            f"{name}{painters[method][1]}": painters[method][0]
            for method in study.synthesise.methods
            for name in self.maps
        }
        shown = sorted(synthetic) if study.evaluate.synthetic and study.synthesise.test else ()
        tests = tuple(f"{synthetic[name]}/{name}/{case}" for name in shown for case in self.test)
        for number, (name, stage) in enumerate(sorted(synthetic.items()), study.nnunet.first_id):
            images = tuple(f"{stage}/{name}/{case}" for case in self.learn)
            dataset = self.add("dataset", name, gathers=images, settings={"number": number, "fold": o["fold"]})
            shape = {key: o[key] for key in ("plan", "patch", "batch", "features")}
            plan = self.add("plan", name, needs=(dataset,), settings=shape)
            length = {key: o[key] for key in ("epochs", "iterations", "val_iterations", "trainer", "device", "fold")}
            train = self.add("train", name, needs=(plan, dataset), settings=shape | length)
            tasks = (*(f"slices/{name.split('_')[1]}/{case}" for case in self.test), *tests)
            settings = {key: o[key] for key in ("tta", "checkpoint", "fold", "device")}
            self.add("predict", name, needs=(train, dataset), gathers=tasks, settings=settings)

    def evaluation(self) -> None:
        """The references, Dice, and the report, which speaks of every unit, so that no failure goes unsaid."""
        kind = self.study.evaluate.reference
        sources = [name for name in self.maps if kind in ("consensus", name)]
        for case in self.test:
            gathers = tuple(f"tissue/{name}/{case}" for name in sources)
            needs = (f"harmonise/{case}",)
            files = (_table(self.study, "labels", TOOLS["labels"]),) if kind == "labels" else ()
            self.add("reference", case=case, needs=needs, gathers=gathers, settings={"reference": kind}, files=files)
        of_all, of_test = ("tissue", "strip"), ("predict", "reference", "slices", "synthesise", "paint")
        over = tuple(u.id for u in self.units if u.stage in of_all or (u.stage in of_test and u.case not in self.learn))
        self.add("evaluate", gathers=over, settings=asdict(self.study.evaluate))
        self.add("report", gathers=tuple(unit.id for unit in self.units), settings={"name": self.study.name})


def _table(study: Study, name: str, tool: Tool) -> Path:
    """What says which tissue a segmenter's ids are."""
    return study.tissue.tables.get(name) or TABLES / tool.table


def weight_files(options: dict[str, Any]) -> tuple[Path, ...]:
    """Weight files that a tool's settings name: with other weights the unit is another."""
    paths = [Path(options[key]) for key in PATH_SETTINGS if options.get(key)]
    found = [file for path in paths for file in (sorted(path.glob("weights-*")) if path.is_dir() else [path])]
    return tuple(file for file in found if file.is_file())
