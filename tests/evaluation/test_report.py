"""The page and the files beside it: complete, self-contained, and with the right numbers in them."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation.compare import Entrant, load_entrants, metric_rows
from evaluation.report import gather_content, render_page, write_report
from evaluation.report.names import decimals, group_of, grouped, joined, name_of, number, p_text
from evaluation.report.numbers import to_json
from evaluation.report.tables import csv_tables, latex, latex_tables
from evaluation.report.words import limits
from tests.toy_results import noisy, write_results


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.delenv("MEDSIS_WEIGHTS", raising=False)


def make(root: Path, patients: int = 2, **options: Any) -> list[Entrant]:
    """Results of a better and a worse method on the same slices."""
    good = write_results(root / "good", noisy(0.02), name="good", patients=patients, log=True, **options)
    bad = write_results(root / "bad", noisy(0.2), name="bad", method="gmm", patients=patients, **options)
    return load_entrants([good, bad])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Entrant], Path]:
    """Six patients, two methods, one channel, and what compare.py writes of them."""
    root = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(root / "empty"))
        patch.delenv("MEDSIS_WEIGHTS", raising=False)
        entrants = make(root, patients=6, slices=2, channels=("CT",))
    write_report(entrants, root / "out")
    return entrants, root / "out"


class _Page(HTMLParser):
    """Every address that a browser would fetch, every id, and whether elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in ("meta", "link", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_report_is_self_contained_and_complete(written: tuple[list[Entrant], Path]) -> None:
    _, out = written
    page = (out / "report.html").read_text()
    parser = _Page()
    parser.feed(page)
    assert parser.open == []
    assert len(set(parser.ids)) == len(parser.ids)
    assert len([r for r in parser.found if r.startswith("data:image/")]) >= 40
    inside = {r[1:] for r in parser.found if r.startswith("#")}
    assert inside <= set(parser.ids)
    assert all(r.startswith(("data:", "#")) for r in parser.found)
    assert "default-src 'none'" in page
    assert "url(" not in page
    assert "@import" not in page
    sections = "methods metrics distance-to-the-real-set patient-by-patient the-same-slices case-browser worst-and-best"
    sections += " intensities-by-label spectrum training what-this-does-not-show settings"
    assert set(sections.split()) <= inside
    for part in ("good", "bad", "grey matter", "HU", "n/a, weights missing", "floor (real)", "p = 0.031", "patients"):
        assert part in page, part
    assert str(out.parent) not in page


def test_ratios_are_never_shaded(written: tuple[list[Entrant], Path]) -> None:
    """A column without a direction has no best, and the legend says what 1 means."""
    page = (written[1] / "report.html").read_text()
    (table,) = (
        t for t in re.findall(r'<table class="metrics sortable">.*?</table>', page, re.DOTALL) if "Slice jump rel" in t
    )
    heads = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', table)
    column = next(i for i, head in enumerate(heads) if head.startswith("Slice jump relative"))
    rows = re.findall(r"<tr>.*?</tr>", table.split("<tbody>")[1].split("</tbody>")[0], re.DOTALL)
    cells = [re.findall(r"<td[^>]*>", row)[column - 1] for row in rows]
    assert len(cells) == 2
    assert all("best" not in cell for cell in cells)
    assert any('class="best"' in row for row in rows)
    assert "1 is as in the real images" in page


def test_figures_and_tables_are_beside_the_report(written: tuple[list[Entrant], Path]) -> None:
    _, out = written
    files = json.loads((out / "compare.json").read_text())["files"]
    there = {str(path.relative_to(out)) for folder in ("figures", "tables") for path in (out / folder).iterdir()}
    assert set(files) == there
    stems = {Path(name).stem for name in files if name.startswith("figures/")}
    expected = "distribution_CT_radiomics intensities_CT patients_CT slices_CT spectrum training worst_best_CT"
    assert stems == set(expected.split())
    for stem in stems:
        with Image.open(out / "figures" / f"{stem}.png") as image:
            assert min(image.size) > 200
            assert np.ptp(np.asarray(image.convert("L"))) > 50  # not blank
        svg = (out / "figures" / f"{stem}.svg").read_text()
        assert svg.rstrip().endswith("</svg>")
        assert "<text" in svg
        assert "<dc:date>" not in svg
        assert 'href="http' not in svg
    assert str(out.parent) not in (out / "compare.json").read_text()


def test_reports_are_reproducible(tmp_path: Path) -> None:
    """The same results give the same bytes."""
    entrants = load_entrants([write_results(tmp_path / "a", noisy(0.1), patients=1, channels=("CT",))])
    one, two = (write_report(entrants, tmp_path / name).parent for name in ("one", "two"))
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) > 10
    for path in files:
        assert (one / path).read_bytes() == (two / path).read_bytes(), path


def test_numbers_in_compare_json(tmp_path: Path) -> None:
    entrants = make(tmp_path)
    data = to_json(entrants, metric_rows(entrants))
    assert data["schema"] == "medsis-compare/1"
    entry = data["metrics"]["ssim/CT"]
    assert (entry["best"], entry["name"], entry["channel"]) == ("good", "SSIM", "CT")
    assert set(entry["values"]) == {"good", "bad"}
    assert entry["difference"] is None  # two patients
    json.dumps(data, allow_nan=False)


def test_csv_has_every_metric_of_every_method(written: tuple[list[Entrant], Path]) -> None:
    entrants, out = written
    with open(out / "tables" / "metrics.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    by_key = {(line["method"], line["metric"], line["channel"]): line for line in lines}
    assert len(by_key) == len(lines) == sum(len(entrant.metrics["metrics"]) for entrant in entrants)
    entry = entrants[0].metrics["metrics"]["mae/CT"]
    line = by_key["good", "mae", "CT"]
    assert float(line["value"]) == entry["value"]
    assert [float(line["ci95_low"]), float(line["ci95_high"])] == entry["ci95"]
    assert line["best"] == "True"
    other = by_key["bad", "mae", "CT"]
    difference = entry["value"] - entrants[1].metrics["metrics"]["mae/CT"]["value"]
    assert float(other["best_minus_this"]) == pytest.approx(difference)
    assert float(other["p"]) == 2 / 2**6
    missing = by_key["good", "fid", "CT"]
    assert missing["value"] == ""
    assert "weights missing" in missing["reason"]
    floor = by_key["good", "radiomics_frechet", "CT"]["floor"]
    assert float(floor) == entrants[0].metrics["metrics"]["radiomics_frechet/CT"]["floor"]["value"]
    with open(out / "tables" / "per_patient.csv", newline="") as file:
        patients = list(csv.DictReader(file))
    assert len(patients) == 12
    assert float(patients[0]["mae/CT"]) == entrants[0].metrics["per_patient"][patients[0]["patient"]]["mae/CT"]


def test_latex_is_escaped_balanced_and_bold_where_best(tmp_path: Path) -> None:
    entrants = make(tmp_path, patients=5, channels=("CT",))
    entrants[0] = replace(entrants[0], name=r"a_b & 50% #1 {x} \y ~^$")
    (name, text), *others = latex_tables(entrants, metric_rows(entrants)).items()
    assert name == "metrics_CT.tex"
    assert not others
    assert r"a\_b \& 50\% \#1 \{x\} \textbackslash{}y \textasciitilde{}\textasciicircum{}\$" in text
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")
    for command in ("toprule", "bottomrule", "begin{table}", "end{table}", "caption", "label{tab:metrics-ct}"):
        assert text.count(f"\\{command}") == 1
    assert "15 test slices" in text.replace("{", "").replace("}", "") or "test slices of 5 patients" in text
    lines = [line for line in text.splitlines() if line.endswith(r"\\") and not line.startswith((r"\midrule", " &"))]
    columns = {len(re.findall(r"(?<!\\)&", line)) for line in lines}
    assert columns == {3}  # two methods and the floor
    (mae,) = (line for line in lines if line.startswith("MAE (HU)"))
    assert mae.split("&")[1].strip().startswith(r"\textbf{")
    assert r"\textbf" not in mae.split("&")[2]
    assert r"\downarrow" in mae
    assert "−" not in text  # only characters that LaTeX prints
    assert latex("2.1×10⁻³") == r"2.1$\times$10$^{-}$$^{3}$"


def test_every_key_has_a_name_and_a_group() -> None:
    """Also those that this version does not know."""
    assert name_of("mae_body") == "MAE in the body"
    assert name_of("diversity_dice") == "Diversity Dice"
    assert name_of("synthrad2023_psnr") == "SynthRAD2023 PSNR"
    assert name_of("radiomics_kid") == "Radiomics kernel distance"
    assert name_of("something_else") == "Something else"
    groups = {
        "ssim_3d": "Agreement with the real image",
        "lpips_alex_v0.1": "Agreement with the real image",
        "faithfulness_dice": "Label faithfulness",
        "lesion_f1": "Lesions",
        "lesion_precision": "Lesions",
        "oasis_fid": "Protocol oasis",
        "diversity_ms_ssim": "Variety of draws",
        "synthrad2023_mae": "Protocol synthrad2023",
        "kid": "Distribution: Inception features",
        "radimagenet_resnet50_coverage": "Distribution: radimagenet resnet50 features",
        "something_else": "Other",
    }
    assert {metric: group_of(metric) for metric in groups} == groups


def test_unknown_metrics_are_shown(tmp_path: Path) -> None:
    """A metric of a later version: a column of its own, best marked, nothing lost; an unknown channel too."""
    folders = [write_results(tmp_path / n, noisy(0.1), name=n, channels=("CT",)) for n in ("a", "b")]
    load_entrants(folders)
    for folder, value in zip(folders, (0.25, 0.75), strict=True):
        metrics = json.loads((folder / "metrics.json").read_text())
        entry = {"value": value, "ci95": None, "unit": "", "better": "higher", "channel": "CT", "n": 9}
        metrics["metrics"]["novel_thing/CT"] = entry | {"ceiling": 0.9}
        metrics["metrics"]["lesion_f1"] = {"value": value, "better": "higher"}  # as little as can be
        (folder / "metrics.json").write_text(json.dumps(metrics))
    entrants = load_entrants(folders)
    rows = metric_rows(entrants)
    assert {("CT", "Other"), (None, "Lesions")} <= set(grouped(rows))
    page = render_page(gather_content(entrants))
    for part in ("Novel thing", "Lesion-wise F1", "ceiling (real)", "0.9000", "Other"):
        assert part in page
    assert "b is best on 1 measure" in page
    latex_tables(entrants, rows)
    csv_tables(entrants, rows)


def test_names_cannot_inject_markup(tmp_path: Path) -> None:
    names = ("<script>a</script>", "</script><b>'\"&")
    folders = [write_results(tmp_path / str(i), noisy(0.1), name=n, slices=2) for i, n in enumerate(names)]
    page = render_page(gather_content(load_entrants(folders)))
    parser = _Page()
    parser.feed(page)
    assert parser.open == []
    assert "<script>a" not in page
    assert "<b>'" not in page
    assert "&lt;script&gt;a" in page


def test_one_method_alone(tmp_path: Path) -> None:
    """A report of a single method: no best, no differences, the rest as ever."""
    entrants = load_entrants([write_results(tmp_path / "a", noisy(0.1), name="a", channels=("CT",))])
    page = render_page(gather_content(entrants))
    assert 'class="best"' not in page
    assert "best − next" not in page
    assert "The method was trained once" in page


def test_small_slices_without_labels(tmp_path: Path) -> None:
    """No label map, no spectrum, no training log: what cannot be drawn is left out, the page stands."""
    folder = write_results(tmp_path / "a", noisy(0.1), name="a", channels=("T1w",), size=(48, 40))
    manifest = json.loads((folder / "manifest.json").read_text())
    for case in manifest["cases"]:
        for item in case["slices"]:
            item["label"], item["histogram"] = "", {}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    page = render_page(gather_content(load_entrants([folder])))
    assert "whole image" in page
    assert 'id="training"' not in page
    parser = _Page()
    parser.feed(page)
    assert parser.open == []


# -- what it does not show ----------------------------------------------------------------------------------------


def _limits(entrants: list[Entrant]) -> str:
    return " ".join(limits(entrants, metric_rows(entrants)))


def test_limits_of_few_patients_and_missing_metrics(tmp_path: Path) -> None:
    text = _limits(make(tmp_path))
    assert "2 patients: too few" in text
    assert "FID" in text
    assert "weights missing" in text
    assert "correction" not in text  # nothing was tested
    assert "several draws from one label map" in text


def test_limits_of_enough_patients_tell_of_the_tests(written: tuple[list[Entrant], Path]) -> None:
    entrants, _ = written
    text = _limits(entrants)
    assert "too few" not in text
    assert "6 patients from the sources" in text
    tested = sum(row.difference is not None for row in metric_rows(entrants))
    assert f"{tested} tests without correction" in text
    assert "cannot give a p below 0.031" in text
    assert "no floor" not in text


def test_limits_follow_the_provenance(tmp_path: Path) -> None:
    """Split within a scan, label maps of a classifier, unequal training, another device, constant images."""
    entrants = make(tmp_path, patients=1)
    one, two = entrants
    data = {"split": "blocks of slices of the same scan, not patients", "options": {"tissue": "hmrf"}}
    told = one.manifest.provenance | {"data_provenance": data, "split": "val", "environment": {"device": "H200"}}
    one = replace(
        one, manifest=replace(one.manifest, provenance=told), metrics=one.metrics | {"counts": {"constant_images": 3}}
    )
    other = two.manifest.provenance | {"method": "spade", "images_seen": 77}
    two = replace(two, manifest=replace(two.manifest, provenance=other))
    text = _limits([one, two])
    for part in ("same scan", "hmrf", "val slices", "good 1,200 and bad 77", "different devices", "trained once"):
        assert part in text, part
    assert "3 generated images of good have a single value" in text
    assert "have no floor (one patient's slices cannot be halved by patient)" in text
    plain = _limits(entrants)
    for part in ("same scan", "hmrf", "val slices", "different devices", "single value", "77"):
        assert part not in plain, part


# -- numbers as text ----------------------------------------------------------------------------------------------


def test_columns_line_up() -> None:
    assert [decimals(v) for v in ([12.3, 101.0], [0.91], [None], [0.0], [12345.0], [3.2e7], [4e-6])] == [
        1,
        4,
        0,
        0,
        0,
        -1,
        -1,
    ]
    assert number(-0.0004, 2) == "0.00"
    assert number(-1.5, 1) == "−1.5"
    assert number(6.377e12, -1) == "6.38×10¹²"
    assert number(-2.5e-7, -1) == "−2.50×10⁻⁷"
    assert p_text(0.00049) == "p < 0.001"
    assert p_text(0.03125) == "p = 0.031"
    assert p_text(0.625) == "p = 0.62"
    assert joined(["a", "b", "c"]) == "a, b and c"
