"""Parts of the report that compute: stacks of the case browser, ranking, distributions, spectra, tiles."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dataloaders.io.intensity import Window
from dataloaders.io.png import read_png
from evaluation.compare import Entrant, Row
from evaluation.report import gather, pictures, plots, ranked, tables, volumes
from evaluation.report.gather import BINS
from tests.evaluation.helpers import scored
from tests.toy_results import WINDOWS, identity, noisy, write_results

pytestmark = pytest.mark.usefixtures("no_weights")
METRICS = "mae_body,ssim,wasserstein,spectrum_distance"


@pytest.fixture(scope="module")
def entrants(no_weights: None, tmp_path_factory: pytest.TempPathFactory) -> list[Entrant]:
    """Two methods on five cases of six slices: noise that grows with the slice, and the real images themselves."""
    root = tmp_path_factory.mktemp("parts")
    options = {"patients": 5, "slices": 6, "channels": ("CT",)}
    fakes = {"noisy": noisy(0.05, 0.1), "same": identity}
    return scored([write_results(root / name, fake, name=name, **options) for name, fake in fakes.items()], METRICS)


# -- stacks of the case browser -----------------------------------------------------------------------------------


def decode(text: str) -> np.ndarray:
    """What page.js does."""
    lines = [Image.open(io.BytesIO(base64.b64decode(line))).convert("RGB") for line in text.split("\n")]
    return np.stack([np.asarray(line)[..., 0] for line in lines])


@pytest.mark.parametrize("values", [np.arange(256), [255], [0, 255]])
def test_stacks_come_back_bit_for_bit(values: np.ndarray) -> None:
    stack = np.random.default_rng(0).choice(values, (3, 17, 9)).astype(np.uint8)
    assert np.array_equal(decode(volumes.encode(stack)), stack)


def test_codes_of_hu_are_fine_in_soft_tissue() -> None:
    """Half a step: 1.25 HU in soft tissue, about 10 in lung and bone; ends are clipped; other units linear."""
    knots = [[float(code), value] for code, value in volumes.HU_KNOTS]
    values = np.linspace(-1100, 3200, 40001)
    codes, ends = zip(*knots, strict=True)
    back = np.interp(volumes.to_codes(values, knots), codes, ends)
    error = np.abs(back - np.clip(values, -1024, 3071))
    assert error[(values > -160) & (values < 240)].max() <= 1.25 + 1e-6
    assert error[values < 1200].max() <= 10.5
    assert list(volumes.to_codes(np.array([-3000.0, 9000.0]), knots)) == [0, 255]


def test_a_small_budget_is_kept_and_told(entrants: list[Entrant]) -> None:
    """Fewer cases and slices, evenly spaced; what the page points at is always there."""
    whole = sum(len(text) for text in volumes.pack(entrants, [(1.0, "HU")], []).stacks.values())
    wanted = [("sub-03", 5), ("sub-03", 0)]
    found = volumes.pack(entrants, [(1.0, "HU")], wanted, budget=whole // 3)
    assert sum(len(text) for text in found.stacks.values()) < 1.2 * whole / 3
    assert set(wanted) <= found.shown
    assert len(found.shown) >= 6
    assert found.note.startswith(f"{len(found.shown)} of 30 slices of ")
    assert len(volumes.pack(entrants, [(1.0, "HU")], [], budget=1).shown) == 1


# -- worst and best -----------------------------------------------------------------------------------------------


def test_cases_are_ranked_by_their_mean(entrants: list[Entrant]) -> None:
    found = ranked.rank(entrants, 0)
    assert (found.metric, found.what, found.unit) == ("mae_body", "cases", "HU")
    per_patient = entrants[0].metrics["per_patient"]
    order = sorted(per_patient, key=lambda p: -per_patient[p]["mae_body/CT"])
    assert [(one.case.id, one.worst) for one in found.of_method(0)] == [
        *((case, True) for case in order[:2]),
        *((case, False) for case in order[::-1][:2]),
    ]
    for one in found.of_method(0):
        assert one.value == pytest.approx(per_patient[one.case.id]["mae_body/CT"])
    values = [one.value for one in ranked.rank(entrants, 0, "ssim").of_method(0)]
    assert max(values[:2]) < min(values[2:])  # higher is better, worst first


def test_windows_of_their_own_make_it_relative(tmp_path: Path) -> None:
    """A case whose scanner counts ten times as high is not ten times as wrong; MR is shown in its case's window."""
    folder = write_results(tmp_path / "a", noisy(0.1), name="a", patients=4, channels=("T1w",))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["cases"][1]["windows"] = [{"low": 0.0, "high": 10 * WINDOWS["T1w"].high}]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (entrant,) = scored([folder], METRICS)
    found = ranked.rank([entrant], 0)
    assert found.unit == "% of window"
    values = [one.value for one in found.found]
    assert max(values) < 1.2 * min(values)
    assert pictures.display_window(entrant, 0, entrant.manifest.cases[1]) == Window(0.0, 10000.0)


# -- tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "entry", "said"),
    [
        ("oasis_fid", {"n": 578}, "578 slices"),
        ("radiomics_kid", {"n": 1}, "1 slice"),
        ("lesion_volume_correlation", {"n": 12}, "12 cases"),
        ("lesion_f1", {"n_patients": 12}, "12 patients"),
        ("efficientnet_lite0_distance", {"n_patients": 3}, "3 patients"),
    ],
)
def test_numbers_say_what_they_are_of(entrants: list[Entrant], key: str, entry: dict[str, int], said: str) -> None:
    row = Row(key, (None, {"value": 0.5} | entry), None, "", None, None, None, (None, None))
    (line,) = tables.metric_table(entrants, [row], []).rows
    assert line[3].text == said


# -- intensities and spectra --------------------------------------------------------------------------------------


def test_histograms_count_every_pixel(entrants: list[Entrant]) -> None:
    ((found, _),) = gather.gather(entrants)
    items = [item for case in entrants[0].manifest.cases for item in case.slices]
    sizes = [sum(item.histogram.get(label, 0) for item in items) for label in range(5)]
    real = found.real
    assert real.sum(axis=1).tolist() == sizes
    assert np.array_equal(real, found.generated[1])  # the identity
    pixels = [
        WINDOWS["CT"].decode(read_png(entrants[0].folder / item.images[0]))[
            read_png(entrants[0].folder / item.label) == 2
        ]
        for item in items
    ]
    mean = float(np.average(found.values, weights=real[2]))
    assert mean == pytest.approx(float(np.concatenate(pixels).mean()), abs=4095 / BINS)


def test_spectra_agree_with_the_metric(entrants: list[Entrant]) -> None:
    """The plotted curves are those that `spectrum_distance` compares, and equal images lie on each other."""
    ((_, found),) = gather.gather(entrants)
    assert found.real.shape == (5, len(found.frequencies))
    assert np.array_equal(found.real, found.generated[1], equal_nan=True)
    ratio = np.log10(found.generated[0]) - np.log10(found.real)
    distance = np.nanmean(np.abs(ratio), axis=1).mean()
    assert distance == pytest.approx(entrants[0].metrics["metrics"]["spectrum_distance/CT"]["value"], rel=1e-6)


def test_cases_of_other_sizes_have_spectra_in_one_plot() -> None:
    """A small field of view leaves bins empty that a large one fills: no curve may get lost for that."""
    power = np.array([[4.0, np.nan, 1.0, np.nan], [4.0, 2.0, 1.0, 0.5]])
    figure = Figure()
    plots.spectrum(figure, gather.Spectra(np.linspace(0, 0.3, 4), power, (power * 2,)), "a.u.")
    curves = [line.get_ydata() for axes in figure.axes for line in axes.lines if len(line.get_ydata()) == 4]
    assert len(curves) == 3
    assert np.isfinite(curves).all()
    np.testing.assert_allclose(curves[-1], 10 * np.log10(2))
