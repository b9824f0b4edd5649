"""Prepare -> train -> resume -> test -> add lesions, through the commands that users type."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from dataloaders.io.geometry import plane, to_ras
from dataloaders.lesions.filling import FULL
from engine.add_lesions import profile_level
from engine.paint.canvas import brushed
from engine.paint.lesions import LesionStudio
from engine.paint.session import Session
from models.lesion.conditions import profile_of
from scripts.paint import PaintOptions
from scripts.paint import load as load_page
from tests import chromium
from tests.launch import PERIODS, call, training, weights
from tests.painting import PAINT, serving, stroke
from tests.toy import save_nifti
from tests.toy_lesions import LAS, bids, patient

pytestmark = pytest.mark.slow

TINY = "--model lesion --lesion.width 4 --lesion.patch 16 --batch_size 4 --lesion.branches fused".split()
TINY += "--lr_g 0.004 --lesion.ema_decay 0.8 --metrics mae".split()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BIDS, prepared folders of both fillings, and a run of each kind."""
    home = tmp_path_factory.mktemp("home")
    source = bids(home / "bids")
    for fill in ("lesion", "salem2019"):
        arguments = ["--format", "bids", "--source", source, "--modalities", "T1w", "FLAIR", "--fill", fill]
        arguments += ["--label_map", source / "labels.json", "--test_patients", "sub-3", "--size", 64, "--workers", 1]
        call("scripts/prepare_data.py", *arguments, "--out", home / fill)
    train(home, "lesion", epochs=6)
    return home


def train(home: Path, name: str, *extra: object, data: str = "lesion", epochs: int = 2) -> None:
    where = ["--name", name, "--dataroot", home / data, "--checkpoints_dir", home / "runs", "--num_epochs", epochs]
    call("train.py", *where, *TINY, *PERIODS, *extra)


def add(home: Path, out: Path, *extra: object, name: str = "lesion", code: int = 0) -> str:
    anat = home / "bids" / "sub-3" / "anat"
    arguments = ["--name", name, "--checkpoints_dir", home / "runs", "--gpu_ids", -1]
    arguments += ["--input", anat / "sub-3_T1w.nii.gz", anat / "sub-3_FLAIR.nii.gz"]
    arguments += ["--tissue", home / "bids" / "tissue" / "sub-3.nii.gz", "--output", out]
    done = call("scripts/add_lesions.py", *arguments, *extra, code=code)
    return done.stdout if code == 0 else done.stderr


def from_patient(home: Path, number: int = 1) -> list[object]:
    where = home / "bids" / f"sub-{number}"
    return ["--from_patient", where, "--patient_tissue", home / "bids" / "tissue" / f"sub-{number}.nii.gz"]


def load(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_a_resumed_run_ends_with_the_same_weights(home: Path) -> None:
    train(home, "parts", epochs=3)
    train(home, "parts", epochs=6)
    assert weights(home / "runs", "lesion") == weights(home / "runs", "parts")


def test_test_scores_lesions_and_beats_doing_nothing(home: Path) -> None:
    where = ["--name", "lesion", "--dataroot", home / "lesion", "--checkpoints_dir", home / "runs"]
    printed = call("test.py", *where, "--results_dir", home / "results", "--metrics", "mae", "--gpu_ids", -1).stdout
    assert "lesion PSNR" in printed
    folder = home / "results" / "lesion" / "best"
    rows = {(r["channel"], r["images"]): r for r in json.loads((folder / "lesion_regions.json").read_text())["rows"]}
    assert set(rows) == {(c, i) for c in ("T1w", "FLAIR") for i in ("generated", "no_model", "real")}
    for channel in ("T1w", "FLAIR"):
        generated, nothing = rows[channel, "generated"], rows[channel, "no_model"]
        assert generated["psnr_lesion"] > nothing["psnr_lesion"] + 1
        assert generated["mse_outside"] == nothing["mse_outside"]
    assert rows["FLAIR", "real"]["contrast"] > 0.2
    assert rows["T1w", "real"]["contrast"] < -0.1
    assert list((folder / "filled").glob("*.png"))


def test_lesions_of_a_patient_in_another_head(home: Path, tmp_path: Path) -> None:
    own = home / "bids" / "derivatives" / "marks" / "sub-3" / "anat" / "sub-3_label-lesion_mask.nii.gz"
    printed = add(home, tmp_path / "o", *from_patient(home), "--own_lesions", own, "--registration", "affine")
    assert "ml in" in printed
    mask = load(tmp_path / "o" / "lesion_mask.nii.gz")
    assert mask.dtype == np.uint8
    assert mask.sum() > 20
    p = patient(3)
    assert not (mask[(p.tissue == 1)] > 0).any()
    zone = ndimage.maximum_filter(mask | p.lesion, 5) > 0
    for name, original, sign in (("T1w", p.t1, -1), ("FLAIR", p.flair, 1)):
        image = nib.load(tmp_path / "o" / f"sub-3_{name}.nii.gz")
        after = np.asarray(image.dataobj)
        assert image.get_data_dtype() == np.float32
        assert np.array_equal(image.affine, LAS)
        assert np.array_equal(after[~zone], original[~zone])  # bit for bit
        new = (mask > 0) & ~p.lesion & (p.tissue == 3)
        assert sign * (after[new].mean() - original[new].mean()) > 10
        gone = p.lesion & (ndimage.maximum_filter(mask, 7) == 0)
        if gone.any():
            assert sign * (after[gone].mean() - original[gone].mean()) < -10
    facts = json.loads((tmp_path / "o" / "provenance.json").read_text())
    assert facts["registration"] == "affine"
    assert facts["lesion_ml"] == pytest.approx(mask.sum() / 1000)
    assert sum(item["ml"] for item in facts["lesions"]) == pytest.approx(mask.sum() / 1000)
    assert "bids" not in json.dumps(facts)  # no folders of anybody's machine


def test_a_load_to_order_and_its_seed(home: Path, tmp_path: Path) -> None:
    order = [*from_patient(home), "--load", "0.3ml", "--vary"]
    for name, extra in (("a", []), ("b", []), ("c", ["--seed", 1])):
        add(home, tmp_path / name, *order, *extra)
    a, b, c = (load(tmp_path / name / "lesion_mask.nii.gz") for name in "abc")
    assert a.sum() == 300
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert np.array_equal(*(load(tmp_path / name / "sub-3_FLAIR.nii.gz") for name in "ab"))


def test_a_mask_without_intensities_and_other_grids(home: Path, tmp_path: Path) -> None:
    """Integers with a scale, voxels of other sizes: the file keeps its type, scale, grid, and every voxel outside."""
    p = patient(5, lesions=0, shape=(60, 70, 20))
    affine = np.diag([-0.75, 0.75, 1.5, 1.0])
    raws = {}
    for name, image in (("T1w", p.t1), ("FLAIR", p.flair)):
        raws[name] = np.rint(image * 4).astype(np.int16)
        file = nib.Nifti1Image(raws[name], affine)
        file.header.set_slope_inter(0.25, 0)
        (tmp_path / "in").mkdir(exist_ok=True)
        file.to_filename(tmp_path / "in" / f"x_{name}.nii.gz")
    mask = patient(6, lesions=5, shape=(60, 70, 20)).lesion & (p.tissue == 3)
    given = ["--mask", save_nifti(tmp_path / "mask.nii.gz", mask.astype(np.uint8), affine)]
    given += ["--tissue", save_nifti(tmp_path / "tissue.nii.gz", p.tissue, affine)]
    add(home, tmp_path / "o", *given, "--input", *(tmp_path / "in" / f"x_{name}.nii.gz" for name in raws))
    new = load(tmp_path / "o" / "lesion_mask.nii.gz") > 0
    assert 2 * (new & mask).sum() / (new.sum() + mask.sum()) > 0.75
    near = ndimage.maximum_filter(mask, 13) > 0
    for name, raw in raws.items():
        image = nib.load(tmp_path / "o" / f"x_{name}.nii.gz")
        after = np.asarray(image.dataobj.get_unscaled())
        assert (image.dataobj.slope, after.dtype) == (0.25, np.int16)
        assert np.array_equal(after[~near], raw[~near])
        assert not np.array_equal(after, raw)


def test_an_empty_mask_returns_the_input(home: Path, tmp_path: Path) -> None:
    p = patient(3)
    empty = save_nifti(tmp_path / "empty.nii.gz", np.zeros(p.lesion.shape, np.uint8), LAS)
    assert "the lesion mask is empty: the scan is returned as it is" in add(home, tmp_path / "o", "--mask", empty)
    assert np.array_equal(load(tmp_path / "o" / "sub-3_FLAIR.nii.gz"), p.flair)
    assert load(tmp_path / "o" / "lesion_mask.nii.gz").sum() == 0


def test_bad_input_is_one_line_and_nothing_written(home: Path, tmp_path: Path) -> None:
    p = patient(3)
    outside = np.zeros(p.lesion.shape, np.uint8)
    outside[:3, :3, :3] = 1
    save_nifti(tmp_path / "outside.nii.gz", outside, LAS)
    save_nifti(tmp_path / "small.nii.gz", outside[:-1], LAS)
    cases = {
        "no lesion lies inside the brain": ["--mask", tmp_path / "outside.nii.gz"],
        "shape (43, 52, 30)": ["--mask", tmp_path / "small.nii.gz"],
        "give --mask FILE or --from_patient DIR": [],
        "--load much: must be a volume": [*from_patient(home), "--load", "much"],
        "ml fit into the white matter": [*from_patient(home), "--load", "99ml"],
        "no such file": ["--mask", tmp_path / "absent.nii.gz"],
        "no such run": [*from_patient(home), "--name", "absent"],
        "1 files for 2 modalities": [*from_patient(home), "--input", tmp_path / "small.nii.gz"],
    }
    for message, arguments in cases.items():
        error = add(home, tmp_path / "o", *arguments, code=2)
        assert message in error, (message, error)
        assert len(error.strip().splitlines()) == 1
        assert not (tmp_path / "o").exists()


def test_three_dimensions_and_the_published_preset(home: Path, tmp_path: Path) -> None:
    train(home, "deep", "--lesion.dims", 3, "--lesion.patches", 2, "--lesion.width", 2, epochs=1)
    published = "--preset salem2019 --lesion.width 2 --lesion.stride 16 --lesion.branches all".split()
    train(home, "published", *published, data="salem2019", epochs=1)
    for name, data in (("deep", "lesion"), ("published", "salem2019")):
        where = ["--name", name, "--dataroot", home / data, "--checkpoints_dir", home / "runs", "--ckpt_iter", "latest"]
        call("test.py", *where, "--results_dir", tmp_path, "--metrics", "mae", "--gpu_ids", -1)
        assert (tmp_path / name / "latest" / "lesion_regions.csv").is_file()
        assert "ml in" in add(home, tmp_path / f"o_{name}", *from_patient(home), "--ckpt_iter", "latest", name=name)
    where = ["--name", "x", "--dataroot", home / "lesion", "--checkpoints_dir", home / "runs", *TINY, *PERIODS]
    error = call("train.py", *where, "--preset", "salem2019", "--lesion.stride", 16, code=2).stderr
    assert "--lesion.everywhere needs --fill salem2019" in error


@pytest.mark.parametrize("model", ["gmm", "oasis"])
def test_other_methods_through_the_same_interface(home: Path, tmp_path: Path, model: str) -> None:
    call(*training(home / "lesion", home / "runs", model, "--model", model, *PERIODS, "--num_epochs", 1))
    assert "ml in" in add(home, tmp_path / "o", *from_patient(home), name=model)
    p, mask = patient(3), load(tmp_path / "o" / "lesion_mask.nii.gz")
    near = ndimage.maximum_filter(mask, 5) > 0
    after = load(tmp_path / "o" / "sub-3_FLAIR.nii.gz")
    assert np.array_equal(after[~near], p.flair[~near])
    assert not np.array_equal(after, p.flair)
    if model == "gmm":  # fitted to lesions, so they are bright
        new = (mask > 0) & ~p.lesion
        assert after[new].mean() > p.flair[new].mean() + 10


def test_a_lesion_stays_when_another_comes() -> None:
    mask, profile = np.zeros((20, 20, 20), bool), profile_of([0.0, 0.1, 0.2, 0.3], 0.1, 0.05)
    mask[5:14, 5:14, 5:14] = True
    level = profile_level(mask, profile_of(profile[0].tolist(), 0.0, 0.0), 0)
    assert (level[5, 9, 9], level[9, 9, 9]) == (0, pytest.approx(0.3))
    alone, other = profile_level(mask, profile, 0), profile_level(mask, profile, 1)
    assert not np.array_equal(alone[mask], other[mask])
    both = mask.copy()
    both[16:19, 2:5, 2:5] = True
    assert np.array_equal(profile_level(both, profile, 0)[mask], alone[mask])


# -- painted on the page ----------------------------------------------------------------------------------------------

SPOTS = ((29, 21), (31, 27)), ((11, 25), (12, 29))  # of white matter on both sides, (x, y) in the middle slice


def page(home: Path, folder: Path, turned: bool = False) -> LesionStudio:
    """The page on a head without lesions; `turned` has whole numbers with a scale, thick slices, axes in another order."""
    p, affine = patient(3, lesions=0), LAS
    if turned:
        affine = LAS @ np.array([[0, 0, 1, 0], [-1, 0, 0, 51], [0, 2, 0, 0], [0, 0, 0, 1.0]])
    for name, data in (("T1w", p.t1), ("FLAIR", p.flair), ("tissue", p.tissue)):
        if turned:
            data = np.rint(data * (1 if name == "tissue" else 4)).astype(np.int16).transpose(1, 2, 0)[::-1, ::2]
        image = nib.Nifti1Image(data, affine)
        if turned and name != "tissue":
            image.header.set_slope_inter(0.25, 0)
        image.to_filename(folder / f"x_{name}.nii.gz")
    scan = {"input": (folder / "x_T1w.nii.gz", folder / "x_FLAIR.nii.gz"), "tissue": folder / "x_tissue.nii.gz"}
    return load_page(PaintOptions(name=("lesion",), checkpoints_dir=home / "runs", gpu_ids="-1", **scan))


def test_the_page_refuses_in_one_line(home: Path, tmp_path: Path) -> None:
    page(home, tmp_path)
    t1, flair = tmp_path / "x_T1w.nii.gz", tmp_path / "x_FLAIR.nii.gz"
    cases: dict[str, list[object]] = {
        "--name lesion: makes no images of label maps; with --input T1w FLAIR it paints lesions": [],
        "--input: 1 files for 2 modalities": ["--input", t1],
        "its name says FLAIR, but T1w is expected here": ["--input", flair, t1],
        "--tissue nowhere.nii.gz: only with --input": ["--tissue", "nowhere.nii.gz"],
        "so --dataroot has no use beside it": ["--input", t1, flair, "--dataroot", home / "lesion"],
    }
    for message, more in cases.items():
        error = call("scripts/paint.py", "--name", "lesion", "--checkpoints_dir", home / "runs", *more, code=2).stderr
        assert message in error, (message, error)
        assert len(error.strip().splitlines()) == 1


def painted(session: Session, z: int) -> np.ndarray:
    return session.studio.image("lesion", z, session.canvas.view()).astype(int)


@pytest.mark.parametrize("turned", [False, True])
def test_the_page_writes_what_the_command_writes(home: Path, tmp_path: Path, turned: bool) -> None:
    studio = page(home, tmp_path, turned)
    session = Session(studio, tmp_path / "page", threading.Lock())
    z = session.opened()["slices"] // 2
    before = painted(session, z)
    assert session.act(stroke(1, z - 1, 5, SPOTS[0]))["elsewhere"] == 0
    answer = session.act(stroke(1, z, 5, SPOTS[0]))
    assert answer["elsewhere"] == np.count_nonzero(session.canvas.ids[z - 1]) > 20
    one = painted(session, z)
    session.act(stroke(1, z, 5, SPOTS[1]))
    two = painted(session, z)
    near = ndimage.binary_dilation(brushed(one.shape[1:], SPOTS[1], 5), FULL[1], iterations=4)
    assert (two[1] - before[1])[brushed(one.shape[1:], SPOTS[1], 3)].mean() > 3000  # bright on FLAIR
    session.act({"kind": "noise", "seed": 2})
    drawn_anew = np.abs(painted(session, z) - two)[:, ~near].max()
    assert np.abs(one - two)[:, ~near].max() < 0.5 * drawn_anew  # what the network sees of the other lesion
    image = session.image({"panel": "lesion", "slice": z})
    assert "ml in 2 lesions" in image["note"]

    saved = session.save({"what": "volumes"})
    mask, *files = (session.file(name) for name in saved["files"])
    *scans, tissue = (tmp_path / f"x_{name}.nii.gz" for name in ("T1w", "FLAIR", "tissue"))
    add(home, tmp_path / "o", "--seed", 2, "--mask", mask, "--input", *scans, "--tissue", tissue)
    assert [file.name for file in files] == ["x_T1w.nii.gz", "x_FLAIR.nii.gz", "lesion_mask.nii.gz"]
    for file in [*files, files[0].with_name("provenance.json")]:
        assert file.read_bytes() == (tmp_path / "o" / file.name).read_bytes(), file.name
    spots = load(mask) > 0
    far = ~ndimage.maximum_filter(spots, 13)
    for c, file in enumerate(files[:2]):
        now, was = (nib.load(path) for path in (file, tmp_path / file.name))
        assert np.array_equal(now.affine, was.affine)
        new, old = np.asarray(now.dataobj.get_unscaled()), np.asarray(was.dataobj.get_unscaled())
        assert np.array_equal(new[far], old[far])
        assert not np.array_equal(new, old)
        shown = plane(to_ras(np.asarray(now.dataobj), now.affine)[0], "axial", z)
        assert np.abs(studio.windows[c].encode(shown).astype(int) - painted(session, z)[c]).max() <= 1
    opened = studio.of_file(mask)
    assert np.array_equal(opened.ids, session.canvas.ids)
    with pytest.raises(ValueError, match="shape"):
        studio.of_file(save_nifti(tmp_path / "small.nii.gz", np.zeros((4, 4, 4), np.uint8)))


def test_painted_lesions_are_undone_and_play_again(home: Path, tmp_path: Path) -> None:
    studio = page(home, tmp_path)
    session, other = (Session(studio, tmp_path / name, threading.Lock()) for name in ("one", "other"))
    z = session.opened()["slices"] // 2
    before = painted(session, z)
    session.act(stroke(1, z, 5, SPOTS[0]))
    after = painted(session, z)
    assert not np.array_equal(after, before)
    (name,) = session.save({"what": "session", "slice": z})["files"]
    notes = other.replay(json.loads(session.file(name).read_text()))["notes"]
    assert notes == ["images of before, lesion are those that were saved, pixel by pixel"]
    assert np.array_equal(painted(other, z), after)
    session.act({"kind": "undo"})
    assert np.array_equal(painted(session, z), before)
    session.act(stroke(1, z, 3, [(1, 1)]))
    assert session.image({"panel": "lesion", "slice": z})["note"] == "no lesion lies inside the brain"
    assert np.array_equal(painted(session, z), before)
    with pytest.raises(ValueError, match="no lesion lies inside the brain"):
        session.save({"what": "volumes"})


def test_a_lesion_is_painted_in_a_browser(home: Path, tmp_path: Path) -> None:
    chromium.find()
    with serving(page(home, tmp_path), tmp_path / "page") as server:
        found = chromium.ask_server(
            server.address,
            server.pages,
            PAINT
            + """
            const load = () => $("#load").value, before = [load(), ...canvases().map(look)];
            $("#size").value = 5; $("#size").dispatchEvent(new Event("input"));
            event("pointerdown", 29, 21); event("pointermove", 31, 27);
            const under = load();
            event("pointerup", 31, 27);
            await drawn(1);
            const after = [load(), ...canvases().map(look)], told = $(".told:not([hidden])").textContent;
            $("[data-save=volumes]").click();
            await wait(() => $("#message").textContent.startsWith("saved"));
            const names = [...document.querySelectorAll("#message a")].map((a) => a.textContent);
            key("z", { ctrlKey: true });
            await drawn(2);
            return { before, under, after, told, names, back: [load(), ...canvases().map(look)],
              title: document.title, captions: [...document.querySelectorAll("figcaption b")].map((b) => b.textContent) };
            """,
        )
    mask = brushed((52, 44), SPOTS[0], 5)
    ml = f"{mask.sum() / 1000:.3g} ml"
    assert found["captions"] == ["before · T1w", "before · FLAIR", "lesion · T1w", "lesion · FLAIR"]
    assert (found["title"], found["before"][0]) == ("Paint a lesion, see the scans", "0 ml painted")
    assert found["under"] == found["after"][0] == f"{ml} painted"
    assert found["told"].startswith(f"{ml} in 1 lesions")
    assert found["back"] == found["before"]
    assert found["after"][1:3] == found["before"][1:3]
    far = ~ndimage.binary_dilation(mask, FULL[1], iterations=2)
    for c, sign in ((3, -1), (4, 1)):
        was, now = (np.array(found[when][c]).reshape(52, 44, 3)[..., 0] for when in ("before", "after"))
        assert np.array_equal(was[far], now[far])
        assert sign * (now - was)[mask].mean() > 10
    assert found["names"][0] == "x_painted_mask.nii.gz"
    assert found["names"][1:] == [f"lesion/{name}.nii.gz" for name in ("x_T1w", "x_FLAIR", "lesion_mask")]
