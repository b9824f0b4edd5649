"""Finding files: what counts, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

from dataloaders.io.files import files_below, files_in, listed, not_read, write_text


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_hidden_files_and_folders_never_count(tmp_path: Path) -> None:
    touch(tmp_path, "b.nii.gz", "a.nii", "._a.nii", "x/c.nii", "x/._c.nii", ".git/annex/objects/k.nii", "a.txt")
    names = ("a.nii", "b.nii.gz", "x/c.nii")
    assert files_below(tmp_path, (".nii", ".nii.gz")) == [tmp_path / name for name in names]
    assert files_in(tmp_path, (".nii", ".nii.gz")) == [tmp_path / name for name in names[:2]]


def test_images_that_are_not_read_are_counted_and_named(tmp_path: Path) -> None:
    touch(
        tmp_path, "a.png", "._a.png", "b.PNG", "c.jpg", "d.jpg", "v.NII.GZ", "v.hdr", "v.img", "README.txt", "old/e.png"
    )
    (tmp_path / "lost.png").symlink_to(".git/annex/objects/lost")
    line = not_read(tmp_path, ".png")
    assert line.startswith(f"{tmp_path}: not read, since only .png files are: ")
    for part in (
        "1 .PNG (b.PNG)",
        "2 .jpg (c.jpg, …)",
        "1 .NII.GZ (v.NII.GZ)",
        "1 .hdr",
        "1 .img",
        "1 sub-folders (old/)",
    ):
        assert part in line
    assert "1 links to files that are not there (git annex get fetches them) (lost.png)" in line
    assert "README" not in line
    assert "a.png" not in line.replace("a.png)", "")
    below = not_read(tmp_path, ".png", below=True)
    assert "old" not in below
    assert "2 .jpg" in below
    assert not_read(tmp_path / "old", ".png") == ""


def test_names_that_are_no_text_are_written_as_escapes(tmp_path: Path) -> None:
    write_text(tmp_path / "a.csv", "scan\udcff.nii.gz")
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == "scan\\udcff.nii.gz"


def test_long_lists_are_cut() -> None:
    assert listed(["a", "b"]) == ["a", "b"]
    assert listed([str(i) for i in range(23)]) == [*map(str, range(20)), "and 3 more"]
