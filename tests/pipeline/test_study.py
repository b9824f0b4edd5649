from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cases import StudyCase, find_cases
from pipeline.plan import make_plan
from pipeline.project import Project
from pipeline.records import Unit
from pipeline.study import read_study
from tests.pipeline.heads import affine, bids, head, study
from tests.toy import save_nifti

REPOSITORY = Path(__file__).resolve().parents[2]
INPUT = 'name = "x"\n[input]\nsource = "bids"\n'
BET = "[strip]\ntools = ['bet']\n[tools.bet]\n"


def planned(path: Path) -> list[Unit]:
    options = read_study(path)
    return make_plan(options, find_cases(options))


def found(path: Path, text: str) -> list[StudyCase]:
    path.write_text(text)
    return find_cases(read_study(path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"study\.toml: no such study file"),
        ("name = ", r"study\.toml: not a TOML file"),
        ("", r"study\.toml: name missing"),
        ('name = "x"', r"study\.toml: give \[\[input\]\] with a BIDS folder"),
        ("nonsense = 1\n" + INPUT, r"study\.toml: unknown 'nonsense'; there are name, work, "),
        ("[strip]\ntools = []", r"strip\.tools: found \[\], must be one or more tools"),
        ("[crop]\nmargin_mm = true", r"crop\.margin_mm: found True, must be a valid number"),
        ("[nnunet]\npatch = 100", r"nnunet: patch = 100: must be a multiple of 8, for 4 stages"),
        ('[slurm.stages]\ntrain = ["--mem=4G\\r"]', r"train\[0\]: found '--mem=4G\\r', must be one line"),
        ("[strip]\ntools = ['bett']", r'"bett": must be one of deepbet, bet, synthstrip, hdbet, or a variant'),
        ("[segment]\ntools = ['median-otsu']", r'"median-otsu": must be one of atlas, hmrf, fast'),
        ("[evaluate]\nreference = 'hmrf'", r"reference = 'hmrf': must be consensus, labels, or one of atlas_deepbet"),
        (BET + "fraction = 2.0", r"tools\.bet: fraction = 2\.0: must lie between 0 and 1"),
        (BET + "frction = 0.5", r"tools\.bet: frction: no such setting of bet; there are fraction, iter"),
        (BET + "trim = 1", r"trim = 1: must be of the kind of True"),
        ("[tools.hdbet]\ntta = true", r"tools\.hdbet: is in neither strip\.tools nor segment\.tools"),
        ("[synthesise.gmm]\nblur_range = 0.1", r"synthesise\.gmm.*blur_range.* 0\.1.* must be "),
        (
            "[synthesise]\nmethods = ['gan']\ngan = ['--preset', 'demo']",
            r"synthesise: gan: neighbours must be 0, since",
        ),
        ("[tissue.tables]\nfast = 'x.toml'", r"tissue\.tables\.fast: is not in segment\.tools, which has atlas"),
        ("[split]\ntest = ['sub-09']", r"split\.val/split\.test name \['sub-09'\], the patients are"),
        ("[split]\nval = ['sub-01']", r"split\.val = \['sub-01'\]: name the patients of split\.test too"),
    ],
)
def test_errors_name_file_key_value_and_choice(text: str | None, message: str, tmp_path: Path) -> None:
    bids(tmp_path / "bids", 2)
    path = tmp_path / "study.toml"
    if text is not None:
        path.write_text(INPUT + text if text.startswith("[") else text)
    with pytest.raises(ValueError, match=message) as caught:
        Project.load(path)
    assert "\n" not in str(caught.value)
    assert "study.toml" in str(caught.value)


def test_splits_are_by_patient(tmp_path: Path) -> None:
    """Two sessions of one patient are on one side, drawn or named."""
    image, _ = head(0)
    for name in (f"sub-0{subject}_ses-{session}" for subject in (1, 2, 3) for session in (1, 2)):
        folder = tmp_path / "bids" / name.replace("_", "/") / "anat"
        save_nifti(folder / f"{name}_T1w.nii.gz", image, affine())
    path = tmp_path / "study.toml"
    cases = found(path, INPUT)
    assert len(cases) == 6
    assert {case.split for case in cases} == {"train", "test"}
    assert len({(case.patient, case.split) for case in cases}) == 3
    cases = found(path, INPUT + '[split]\ntest = ["sub-02"]\n')
    assert {case.patient for case in cases if case.split == "test"} == {"sub-02"}
    with pytest.raises(ValueError, match="two patients at least"):
        found(path, INPUT + 'subjects = ["sub-01"]\n')


def test_cases_by_their_files(tmp_path: Path) -> None:
    image, tissue = head(0)
    save_nifti(tmp_path / "a.nii.gz", image, affine())
    save_nifti(tmp_path / "mask.nii.gz", (tissue > 0).astype("uint8"), affine())
    path = tmp_path / "study.toml"

    def entry(name: str, more: str = "") -> str:
        return f'[[case]]\nid = "{name}"\nt1 = "a.nii.gz"\n{more}\n'

    one, two = found(path, 'name = "x"\n' + entry("one", 'brain = "mask.nii.gz"') + entry("two", 'patient = "p2"'))
    assert (one.given_brain, two.given_brain) == (True, False)
    assert (one.patient, two.patient) == ("one", "p2")
    for cases, message in {
        entry("one", 'brain = "no.nii.gz"'): r"case one: brain = .*no\.nii\.gz: no such file",
        entry("../one"): r"case\[0\]\.id: found '\.\./one', must be 1-100 letters",
        2 * entry("one"): "cases one occur more than once",
    }.items():
        with pytest.raises(ValueError, match=message):
            found(path, 'name = "x"\n' + cases)


def test_a_plan_has_every_combination_and_only_what_it_needs(tmp_path: Path) -> None:
    units = planned(study(tmp_path, '[strip]\ntools = ["bet", "hdbet"]\n[segment]\ntools = ["hmrf", "fastsurfer"]\n'))
    place = {unit.id: i for i, unit in enumerate(units)}
    # FastSurfer sees the whole head: once a scan, not once a stripper. Slices: of the one test case, by stripper.
    for start, count in {"train/": 4, "segment/fastsurfer/": 3, "segment/hmrf_": 6, "slices/": 2}.items():
        assert sum(name.startswith(start) for name in place) == count
    for unit in units:
        assert all(place[other] < place[unit.id] for other in unit.upstream)
    # In the original data sets follow the listing of a folder, which has no order.
    numbers = {unit.name: unit.settings["number"] for unit in units if unit.stage == "dataset"}
    assert numbers == {"fastsurfer_bet": 101, "fastsurfer_hdbet": 102, "hmrf_bet": 103, "hmrf_hdbet": 104}


def test_variants_and_weights_of_tools(tmp_path: Path) -> None:
    """Paths of weights start from the study's folder; other weights make another unit."""
    extra = '[strip]\ntools = ["bet", "bet-wide"]\n[tools.bet-wide]\ntool = "bet"\nfraction = 0.5\n'
    extra += '[segment]\ntools = ["own"]\n[tools.own]\ncheckpoint = "run"\ninput = "head"\n'
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "weights-best.safetensors").write_text("w")
    units = {unit.id: unit for unit in planned(study(tmp_path, extra))}
    fractions = [units[f"strip/{name}/sub-01"].settings["options"]["fraction"] for name in ("bet", "bet-wide")]
    assert fractions == [0.65, 0.5]
    assert units["segment/own/sub-01"].files == (tmp_path / "run" / "weights-best.safetensors",)
    assert units["segment/own/sub-01"].needs == ("harmonise/sub-01",)


@pytest.mark.parametrize(("file", "networks"), [("ds002330", 8), ("ds002330-builtin", 2)])
def test_the_original_study(tmp_path: Path, file: str, networks: int) -> None:
    """Toy heads in the place of its data: two strippers, four segmenters, eight data sets; or what comes with medsis."""
    text = (REPOSITORY / "studies" / f"{file}.toml").read_text()
    bids(tmp_path / "bids", 6)
    assert 'source = "../data/ds002330"' in text
    path = tmp_path / "study.toml"
    path.write_text(text.replace("../data/ds002330", "bids"))
    units = planned(path)
    assert sum(unit.stage == "train" for unit in units) == networks
    counts = {unit.case: unit.settings["total"] for unit in units if unit.stage == "synthesise"}
    assert counts == {"sub-01": 600, "sub-02": 600, "sub-03": 600, "sub-04": 60, "sub-05": 60}  # five of them


def test_the_study_of_the_documentation(shared_data: Path) -> None:
    assert shared_data.is_dir()
    options = read_study(REPOSITORY / "studies" / "ms.toml")
    cases = find_cases(options)
    assert len(cases) == 7
    assert {case.patient for case in cases if case.split == "test"} == {"sub-L04", "sub-19"}
    assert sum(case.stripped for case in cases) == 2
    assert "report" in {unit.id for unit in make_plan(options, cases)}
