"""The page and the files beside it: complete, self-contained, with the right numbers in them, and harmless."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from evaluation.compare import Entrant, load_entrants, metric_rows
from evaluation.report.kit import Heading, latex
from evaluation.report.names import group_of, grouped, name_of
from evaluation.report.page import gather_content, render_page, write_report
from evaluation.report.tables import csv_tables, latex_tables, marks, metric_table
from evaluation.report.words import winners
from tests.evaluation.helpers import scored
from tests.toy_results import good_and_bad, noisy, write_results

pytestmark = [pytest.mark.usefixtures("no_weights"), pytest.mark.slow]


@pytest.fixture(scope="module")
def written(no_weights: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Entrant], Path]:
    """Six patients, two methods, one channel, and what compare.py writes of them."""
    root = tmp_path_factory.mktemp("written")
    entrants = load_entrants(good_and_bad(root, patients=6, slices=2, channels=("CT",)))
    write_report(entrants, root / "out")
    return entrants, root / "out"


class _Page(HTMLParser):
    """Every address that a browser would fetch, every id, and whether elements are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.feed(page)

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
    parsed = _Page(page)
    assert parsed.open == []
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert len([r for r in parsed.found if r.startswith("data:image/")]) >= 40
    assert all(r.startswith("data:") for r in parsed.found)
    assert "default-src 'none'" in page
    assert "url(" not in page
    assert "@import" not in page
    sections = "methods metrics distance-to-the-real-set patient-by-patient the-same-slices case-browser worst-and-best"
    sections += " intensities-by-label spectrum training what-this-does-not-show settings"
    assert set(sections.split()) <= set(parsed.ids)
    for part in ("good", "bad", "grey matter", "HU", "floor", "p = 0.031", "patients"):
        assert part in page, part
    assert str(out.parent) not in page + (out / "compare.json").read_text()


def test_figures_and_tables_are_beside_the_report(written: tuple[list[Entrant], Path]) -> None:
    _, out = written
    files = json.loads((out / "compare.json").read_text())["files"]
    there = {str(path.relative_to(out)) for folder in ("figures", "tables") for path in (out / folder).iterdir()}
    assert set(files) == there
    stems = {Path(name).stem for name in files if name.startswith("figures/")}
    expected = "intensities_CT patients_CT slices_CT spectrum training worst_best_CT"
    sets = {"distribution_CT_EfficientNet-Lite0", "distribution_CT_radiomics"}
    assert stems == sets | set(expected.split())
    for stem in stems:
        with Image.open(out / "figures" / f"{stem}.png") as image:
            assert min(image.size) > 200
            assert np.ptp(np.asarray(image.convert("L"))) > 50  # not blank
        svg = (out / "figures" / f"{stem}.svg").read_text()
        assert svg.rstrip().endswith("</svg>")
        assert "<text" in svg
        assert "<dc:date>" not in svg
        assert 'href="http' not in svg


# -- tables -------------------------------------------------------------------------------------------------------


def test_best_values_are_marked_and_ratios_never(written: tuple[list[Entrant], Path]) -> None:
    """A metric without a direction has no best, and the legend says what 1 means."""
    entrants, _ = written
    rows = [row for row in metric_rows(entrants) if row.measured]
    table = metric_table(entrants, rows, [])
    lines = {head.text: cells for head, *cells in table.rows}
    assert [cell.kind for cell in lines["MAE"][:2]] == ["best", ""]
    assert lines["MAE"][0].clear
    assert [cell.kind for cell in lines["Slice jump relative to real"][:2]] == ["", ""]
    assert marks(rows)["ratios"]
    across = table.transposed(Heading("method"), feet=len(table.columns) - 3)
    assert across.columns[1:] == [row[0] for row in table.rows]
    assert [row[0].text for row in across.rows] == ["good", "bad"]
    assert [row[0] for row in across.foot] == ["n", "floor", "best − next"]
    assert across.rows[0][1] is table.rows[0][1]


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


def test_latex_is_escaped_balanced_and_bold_where_best(written: tuple[list[Entrant], Path]) -> None:
    entrants = [replace(written[0][0], name=r"a_b & 50% #1 {x} \y ~^$"), written[0][1]]
    ((name, text),) = latex_tables(entrants, metric_rows(entrants)).items()
    assert name == "metrics_CT.tex"
    assert r"a\_b \& 50\% \#1 \{x\} \textbackslash{}y \textasciitilde{}\textasciicircum{}\$" in text
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")
    for command in ("toprule", "bottomrule", "begin{table}", "end{table}", "caption", "label{tab:metrics-ct}"):
        assert text.count(f"\\{command}") == 1
    assert "12 test slices of 6 patients" in text
    lines = [line for line in text.splitlines() if line.endswith(r"\\") and not line.startswith((r"\midrule", " &"))]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {3}  # two methods and the floor
    (mae,) = (line for line in lines if line.startswith("MAE (HU)"))
    assert mae.split("&")[1].strip().startswith(r"\textbf{")
    assert r"\textbf" not in mae.split("&")[2]
    assert r"\downarrow" in mae
    assert "−" not in text  # only characters that LaTeX prints
    assert latex("2.1×10⁻³") == r"2.1$\times$10$^{-}$$^{3}$"


def test_floors_stand_beside_the_metrics_and_passing_one_is_said(tmp_path: Path) -> None:
    """Second scans for what is paired, other people for what is of sets; a metric that is used up says so."""
    folders = good_and_bad(tmp_path, patients=6, slices=2, channels=("CT",))
    paired = {"of": "second scan", "value": 150.0, "ci95": None, "n_patients": 2}
    sets = {"of": "other people", "value": 0.25, "n": [6, 6], "matched": 0.75, "range": [0.125, 0.5], "splits": 7}
    entrants = scored(folders, "mae_body,radiomics_kid")
    for entrant, passed in zip(entrants, (True, False), strict=True):
        entrant.metrics["settings"]["repeats"] = "2 people: a = b, c = d"
        entrant.metrics["metrics"]["mae_body/CT"] |= {"floor": paired, "floor_passed": passed}
        entrant.metrics["metrics"]["radiomics_kid/CT"] |= {"floor": sets, "floor_passed": False}
    rows = [row for row in metric_rows(entrants) if row.key in ("mae_body/CT", "radiomics_kid/CT")]
    table = metric_table(entrants, rows, [])
    assert [getattr(column, "text", column) for column in table.columns[-2:]] == ["floor", "best − next"]
    good, bad, _, floor, _ = table.rows[[row.metric for row in rows].index("mae_body")][1:]
    assert good.small[-1] == "can no longer tell"
    assert "can no longer tell" not in bad.small
    assert floor.small == ("second scan of 2 patients",)
    good, _, _, floor, _ = table.rows[[row.metric for row in rows].index("radiomics_kid")][1:]
    assert good.small[-1] == "0.75 at the floor's n"
    assert floor.small == ("[0.125, 0.5] in 7 splits", "other people")
    assert winners(entrants, rows).endswith("; 1 can no longer tell the best from real images")
    page = render_page(gather_content(entrants))
    for part in ("Can no longer tell: ", "Second scans: 2 people: a = b, c = d.", "second scan of 2 patients"):
        assert part in page
    lines = csv.DictReader(io.StringIO(csv_tables(entrants, rows)["metrics.csv"]))
    assert [line["floor_passed"] for line in lines if line["metric"] == "mae_body"] == ["True", "False"]


# -- what names may do: nothing -----------------------------------------------------------------------------------


def test_names_are_neither_markup_nor_formulas_nor_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    r"""=HYPERLINK would be run by a spreadsheet, \input by LaTeX; $\frac$ would end the report, $x$ be set as a formula.

    And the same results give the same files, byte for byte.
    """
    names = (r'=HYPERLINK("x")$\frac$', "</script><b>'\"&<script>a</script>")
    small = {"patients": 1, "slices": 1, "channels": ("CT",), "size": (16, 16)}
    folders = [write_results(tmp_path / str(i), noisy(0.1), name=name, **small) for i, name in enumerate(names)]
    entrants = scored(folders, "mae,spectrum_distance")
    formulas: list[bool] = []
    before = Text.__init__

    def spied(self: Text, *arguments: object, **named: object) -> None:
        before(self, *arguments, **named)
        formulas.append(self.get_parse_math())

    monkeypatch.setattr(Text, "__init__", spied)
    trees = []
    for out in (tmp_path / "a", tmp_path / "b"):
        write_report(entrants, out)
        trees.append({str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert trees[0] == trees[1]
    assert len(trees[0]) > 10
    assert set(formulas) == {False}
    assert r"$\frac$" in trees[0]["figures/slices_CT.svg"].decode()
    rows = csv.DictReader(io.StringIO(trees[0]["tables/metrics.csv"].decode()))
    assert {row["method"] for row in rows} == {f"'{names[0]}", names[1]}
    assert latex("a\n\\input{x}\x1b") == r"a \textbackslash{}input\{x\} "
    page = trees[0]["report.html"].decode()
    assert _Page(page).open == []
    assert "<script>a" not in page
    assert "<b>'" not in page
    assert "&lt;script&gt;a" in page


# -- other results ------------------------------------------------------------------------------------------------


def test_unknown_metrics_are_shown(tmp_path: Path) -> None:
    """A metric of a later version: a column of its own, best marked, nothing lost; an unknown channel too."""
    folders = [write_results(tmp_path / n, noisy(0.1), name=n, channels=("CT",)) for n in ("a", "b")]
    scored(folders, "mae")
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
    for part in ("Novel thing", "Lesion-wise F1", "ceiling", "0.9000", "Other", "b is best on 1 measure"):
        assert part in page
    assert "Novel thing" in latex_tables(entrants, rows)["metrics_CT.tex"]
    assert "novel_thing" in csv_tables(entrants, rows)["metrics.csv"]


def test_one_method_alone_without_labels(tmp_path: Path) -> None:
    """No best, no differences; no label map, no spectrum, no training log: what cannot be drawn is left out."""
    folder = write_results(tmp_path / "a", noisy(0.1), name="a", channels=("T1w",), size=(48, 40))
    manifest = json.loads((folder / "manifest.json").read_text())
    for item in (item for case in manifest["cases"] for item in case["slices"]):
        item |= {"label": "", "histogram": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    page = render_page(gather_content(scored([folder], "mae,ssim")))
    assert _Page(page).open == []
    for there in ("whole image", "The method was trained once"):
        assert there in page
    for absent in ('class="best"', "best − next", 'id="training"'):
        assert absent not in page


# -- names and numbers as text ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "name", "group"),
    [
        ("mae_body", "MAE in the body", "Agreement with the real image"),
        ("oasis_fid", "FID of 8-bit files", "Protocol oasis"),
        ("radiomics_kid", "Radiomics kernel distance", "Distribution: radiomics features"),
        ("diversity_dice", "Diversity dice", "Other"),
    ],
)
def test_every_key_has_a_name_and_a_group(metric: str, name: str, group: str) -> None:
    """As it is declared (test_catalog.py), or, of an extractor or a later version, as its words are."""
    assert (name_of(metric), group_of(metric)) == (name, group)


def test_of_many_measures_the_number_is_told() -> None:
    entrants = [SimpleNamespace(name=name) for name in ("a", "b")]

    def row(metric: str, best: int) -> SimpleNamespace:
        return SimpleNamespace(metric=metric, best=best, channel="CT", passed=lambda i: False)

    mine = [row(metric, 0) for metric in ("mae", "rmse", "psnr")]
    others = [row(metric, 1) for metric in ("ssim", "ms_ssim", "ssim_3d")]
    assert winners(entrants, mine + others) == "a is best on 3 of 6 measures; b on 3"  # type: ignore[arg-type]
    assert winners(entrants, mine + others[:2]).endswith("; b on SSIM, MS-SSIM")  # type: ignore[arg-type]
