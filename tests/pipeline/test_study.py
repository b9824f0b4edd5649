from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cases import find_cases
from pipeline.plan import make_plan
from pipeline.study import read_study
from tests.pipeline.heads import affine, bids, head, study
from tests.toy import save_nifti

REPOSITORY = Path(__file__).resolve().parents[2]


def planned(path: Path) -> list[str]:
    options = read_study(path)
    return [unit.id for unit in make_plan(options, find_cases(options))]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("nonsense = 1", r"study\.toml: nonsense: no such key; there are case, crop, "),
        ("[strip]\ntool = ['bet']", r"study\.toml: strip tool: no such key; there are tools"),
        ("[strip]\ntools = 'bet'", r"strip tools = 'bet': must be a list"),
        ("[strip]\ntools = ['bett']", r'strip\.tools = "bett": must be one of bet, synthstrip, hdbet, or a variant'),
        ("[strip]\ntools = ['hmrf']", r'strip\.tools = "hmrf": must be one of bet, synthstrip, hdbet'),
        ("[strip]\ntools = []", r"strip\.tools = \[\]: must be one or more tools"),
        ("[segment]\ntools = ['median-otsu']", r'"median-otsu": must be one of hmrf, atlas, fast'),
        ("[crop]\nmargin_mm = -1", r"crop\.margin_mm = -1.0: must be at least 0"),
        ("[crop]\nmargin_mm = true", r"crop margin_mm = True: must be a number"),
        ("[quality]\nlitres = [2.0, 1.0]", r"quality\.litres = \[2\.0, 1\.0\]: must be low and high"),
        ("[quality]\nlitres = [1.0]", r"quality litres = \[1\.0\]: must have 2 entries"),
        (
            "[evaluate]\nreference = 'hmrf'",
            r"evaluate\.reference = 'hmrf': must be consensus, labels, or one of hmrf_bet",
        ),
        ("[tools.bet]\nfraction = 2.0", r"tools\.bet: fraction = 2\.0: must lie between 0 and 1"),
        ("[tools.hdbet]\ntta = true", r"tools\.hdbet: is in neither strip\.tools nor segment\.tools"),
        ("[synthesise.gmm]\nblur_rnge = 1.15", r"synthesise\.gmm blur_rnge: no such option of the generator"),
        ("[synthesise.gmm]\nblur_range = 0.1", r"^synthesise\.gmm\.blur_range 0\.1: must be 1 or more"),
        ("[tissue.tables]\nfast = 'x.toml'", r"tissue\.tables\.fast: is not in segment\.tools, which has hmrf"),
        ("[tissue.tables]\nhmrf = 'x.toml'", r"x\.toml: no such label table"),
        ('[slurm]\noptions = ["--mem=4G\\ntouch x"]', r"slurm\.options = '--mem=4G\\ntouch x': must be one line of"),
        ('[slurm.stages]\ntrain = ["--mem=4G\\r"]', r"slurm\.stages\.train = '--mem=4G\\r': must be one line of"),
        ("[harmonise]\nmethod = 'magic'", r"harmonise method = 'magic': must be one of rescale, synthsr, none"),
    ],
)
def test_errors_name_file_key_value_and_choice(extra: str, message: str, tmp_path: Path) -> None:
    table = extra.partition("\n")[0]
    path = study(tmp_path, patients=2)
    text = path.read_text().replace('test = ["sub-02"]', "")
    # A table may stand in a file once: take the toy's own out, and put keys without a table before all tables.
    if table.strip("[]") in ("harmonise", "synthesise"):
        text = text.replace(f"{table}\n", "[crop]\n" if table == "[harmonise]" else f"{table}\n")
        text = text.replace("n4 = false\nspacing = [0.0, 0.0, 0.0]\n", "") if table == "[harmonise]" else text
    path.write_text(extra + text if not table.startswith("[") else text + extra)
    with pytest.raises(ValueError, match=message) as caught:
        planned(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.toml: no such study file"):
        read_study(tmp_path / "none.toml")
    path = tmp_path / "bad.toml"
    path.write_text("name = ")
    with pytest.raises(ValueError, match=r"bad\.toml: not a TOML file"):
        read_study(path)
    path.write_text("")
    with pytest.raises(ValueError, match=r"bad\.toml:: name is missing|name is missing"):
        read_study(path)
    path.write_text('name = "x"')
    with pytest.raises(ValueError, match=r"give \[\[input\]\] with a BIDS folder"):
        read_study(path)


def test_splits_are_by_patient(tmp_path: Path) -> None:
    """Two sessions of one patient are on one side, drawn or named."""
    image, _ = head(0)
    for session in ("1", "2"):
        for subject in ("01", "02", "03"):
            name = f"sub-{subject}_ses-{session}_T1w.nii.gz"
            save_nifti(tmp_path / "bids" / f"sub-{subject}" / f"ses-{session}" / "anat" / name, image, affine())
    path = tmp_path / "study.toml"
    path.write_text('name = "x"\n[input]\nsource = "bids"\n')
    cases = find_cases(read_study(path))
    assert len(cases) == 6
    assert {case.split for case in cases} == {"train", "test"}
    for patient in {case.patient for case in cases}:
        assert len({case.split for case in cases if case.patient == patient}) == 1
    path.write_text('name = "x"\n[input]\nsource = "bids"\n[split]\ntest = ["sub-02"]\n')
    assert {c.patient for c in find_cases(read_study(path)) if c.split == "test"} == {"sub-02"}
    path.write_text('name = "x"\n[input]\nsource = "bids"\n[split]\ntest = ["sub-09"]\n')
    with pytest.raises(ValueError, match="split: sub-09 not among the patients sub-01, sub-02, sub-03"):
        find_cases(read_study(path))
    path.write_text('name = "x"\n[input]\nsource = "bids"\nsubjects = ["sub-01"]\n')
    with pytest.raises(ValueError, match="two patients at least"):
        find_cases(read_study(path))


def test_cases_by_their_files(tmp_path: Path) -> None:
    image, tissue = head(0)
    save_nifti(tmp_path / "a.nii.gz", image, affine())
    save_nifti(tmp_path / "mask.nii.gz", (tissue > 0).astype("uint8"), affine())
    path = tmp_path / "study.toml"
    entry = '[[case]]\nid = "{0}"\nt1 = "a.nii.gz"\n{1}\n'
    path.write_text(
        'name = "x"\n' + entry.format("one", 'brain = "mask.nii.gz"') + entry.format("two", 'patient = "p2"')
    )
    one, two = find_cases(read_study(path))
    assert (one.given_brain, two.given_brain) == (True, False)
    assert (one.patient, two.patient) == ("one", "p2")
    path.write_text('name = "x"\n' + entry.format("one", 'brain = "no.nii.gz"'))
    with pytest.raises(ValueError, match=r"case one: brain = .*no\.nii\.gz: no such file"):
        find_cases(read_study(path))
    path.write_text('name = "x"\n' + entry.format("../one", ""))
    with pytest.raises(ValueError, match=r"case id '\.\./one' is not allowed"):
        find_cases(read_study(path))
    path.write_text('name = "x"\n' + 2 * entry.format("one", ""))
    with pytest.raises(ValueError, match="cases one occur more than once"):
        find_cases(read_study(path))


def test_a_plan_has_every_combination_and_only_what_it_needs(tmp_path: Path) -> None:
    extra = '[strip]\ntools = ["bet", "hdbet"]\n[segment]\ntools = ["hmrf", "fastsurfer"]\n'
    names = planned(study(tmp_path, extra))
    assert sum(name.startswith("train/") for name in names) == 4
    # FastSurfer sees the whole head: once a scan, not once a stripper.
    assert sum(name.startswith("segment/fastsurfer/") for name in names) == 3
    assert sum(name.startswith("segment/hmrf_") for name in names) == 6
    assert len([name for name in names if name.startswith("slices/")]) == 2  # of the one test case, by stripper
    place = {name: i for i, name in enumerate(names)}
    options = read_study(tmp_path / "study.toml")
    for unit in make_plan(options, find_cases(options)):
        assert all(place[other] < place[unit.id] for other in (*unit.needs, *unit.gathers))


def test_variants_of_a_tool(tmp_path: Path) -> None:
    extra = '[strip]\ntools = ["bet", "bet-wide"]\n[tools.bet-wide]\ntool = "bet"\nfraction = 0.5\n'
    options = read_study(study(tmp_path, extra))
    units = {unit.id: unit for unit in make_plan(options, find_cases(options))}
    assert units["strip/bet/sub-01"].settings["options"]["fraction"] == 0.65
    assert units["strip/bet-wide/sub-01"].settings["options"]["fraction"] == 0.5


def test_weights_of_a_tool_are_inputs(tmp_path: Path) -> None:
    """Their paths start from the study's folder; other weights make another unit."""
    extra = '[segment]\ntools = ["own"]\n[tools.own]\ncheckpoint = "run"\ninput = "head"\n'
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "weights-best.safetensors").write_text("w")
    options = read_study(study(tmp_path, extra))
    units = {unit.id: unit for unit in make_plan(options, find_cases(options))}
    assert units["segment/own/sub-01"].files == (tmp_path / "run" / "weights-best.safetensors",)
    assert units["segment/own/sub-01"].needs == ("harmonise/sub-01",)


def test_data_sets_are_numbered_in_order_of_names(tmp_path: Path) -> None:
    """In the original they follow the listing of a folder, which has no order."""
    extra = '[segment]\ntools = ["hmrf", "atlas"]\n'
    options = read_study(study(tmp_path, extra))
    numbers = {u.name: u.settings["number"] for u in make_plan(options, find_cases(options)) if u.stage == "dataset"}
    assert numbers == {"atlas_bet": 101, "hmrf_bet": 102}


@pytest.mark.parametrize(("file", "networks"), [("ds002330", 8), ("ds002330-builtin", 2)])
def test_the_original_study(tmp_path: Path, file: str, networks: int) -> None:
    """Toy heads in the place of its data: two strippers, four segmenters, eight data sets; or what comes with medsis."""
    text = (REPOSITORY / "studies" / f"{file}.toml").read_text()
    bids(tmp_path / "bids", 6)
    assert 'source = "../data/ds002330"' in text
    path = tmp_path / "study.toml"
    path.write_text(text.replace("../data/ds002330", "bids"))
    options = read_study(path)
    cases = find_cases(options)
    assert [case.id for case in cases] == [f"sub-{i:02d}" for i in range(1, 6)]  # five of them
    units = make_plan(options, cases)
    assert sum(unit.stage == "train" for unit in units) == networks
    counts = {unit.case: unit.settings["total"] for unit in units if unit.stage == "synthesise"}
    assert counts == {"sub-01": 600, "sub-02": 600, "sub-03": 600, "sub-04": 60, "sub-05": 60}


def test_the_study_of_the_documentation(shared_data: Path) -> None:
    options = read_study(REPOSITORY / "studies" / "ms.toml")
    cases = find_cases(options)
    assert len(cases) == 7
    assert {case.patient for case in cases if case.split == "test"} == {"sub-L04", "sub-19"}
    assert sum(case.stripped for case in cases) == 2
    assert "report" in {unit.id for unit in make_plan(options, cases)}
    assert shared_data.is_dir()
