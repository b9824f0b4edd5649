"""The page that paints: strokes and their way back, who may ask, what a browser sees of it."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from dataloaders.io.manifest import Case, Manifest
from dataloaders.io.png import read_png
from engine.paint.canvas import Canvas, Fill, Start, Stroke, brushed
from engine.paint.maps import MapStudio, PaintedRun
from engine.paint.server import MAX_REQUEST, POLICY, PaintServer
from engine.paint.session import Session
from engine.paint.studio import Studio
from engine.trained import TrainedRun
from tests import chromium
from tests.launch import PERIODS, TINY, call, start
from tests.painting import PAINT, opened, post, serving, stroke
from tests.toy import LAS, prepared_folder, published

pytestmark = pytest.mark.slow
SIDE = 32
CASE = Case("a", "a", "test", (), ())
RUNS = ("gmm", "oasis", "thick")  # the last of several slices


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared phantoms, a GMM fitted to them and tiny OASIS, the second of three slices at once."""
    home = tmp_path_factory.mktemp("paint")
    prepared_folder(home / "data", size=SIDE)
    where = ["--dataroot", home / "data", "--checkpoints_dir", home / "runs", "--metrics", "none", *PERIODS]
    call("train.py", "--name", "gmm", "--model", "gmm", *where)
    for name, more in {"oasis": [], "thick": ["--oasis.neighbours", 1]}.items():
        call("train.py", *published("--name", name, "--model", "oasis", "--num_epochs", 1, *TINY, *more, *where))
    return home


@pytest.fixture(scope="module")
def studio(home: Path) -> MapStudio:
    runs = [PaintedRun(TrainedRun.load(home / "runs", name, "latest"), "-1") for name in RUNS]
    return MapStudio(runs, home / "data")


@pytest.fixture
def session(studio: Studio, tmp_path: Path) -> Session:
    """On the test case of four."""
    session = Session(studio, tmp_path / "s", threading.Lock())
    session.begin({"case": "sub-03"})
    return session


@pytest.fixture
def server(studio: Studio, tmp_path: Path) -> Iterator[PaintServer]:
    with serving(studio, tmp_path) as server:
        yield server


def pixels(session: Session, panel: str, z: int = 2) -> np.ndarray:
    return session.studio.image(panel, z, session.canvas.view())


# -- strokes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_a_brush_takes_what_lies_within_half_its_size(size: int) -> None:
    a, b = np.array([5, 6]), np.array([22, 13])
    mask = brushed((24, 30), [(5, 6), (22, 13)], size)
    for y, x in np.ndindex(24, 30):
        t = np.clip(((x, y) - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        distance = np.linalg.norm((x, y) - (a + t * (b - a)))
        assert abs(distance - size / 2) < 1e-9 or mask[y, x] == (distance < size / 2), (x, y)
    assert not brushed((24, 30), [(-50, -50)], size).any()


def test_undo_and_redo_restore_every_pixel() -> None:
    rng = np.random.default_rng(0)
    start = rng.integers(0, 5, (3, 20, 24)).astype(np.uint8)
    canvas, seen = Canvas(Start(CASE, start), 5), [start.copy()]
    for i in range(12):
        points = tuple((int(x), int(y)) for x, y in rng.integers(-4, 28, (3, 2)))
        x, y = (int(v) for v in rng.integers(0, 20, 2))
        canvas.act(Fill(i % 3, i % 5, x, y) if i % 4 == 3 else Stroke(i % 3, i % 5, 1 + i, points))
        seen.append(canvas.ids.copy())
    assert not np.array_equal(seen[0], seen[-1])
    for before in seen[-2::-1]:
        canvas.undo()
        assert np.array_equal(canvas.ids, before)
    assert canvas.undo() is None
    for after in seen[1:]:
        canvas.redo()
        assert np.array_equal(canvas.ids, after)
    canvas.undo()
    canvas.act(Fill(0, 1, 0, 0))
    assert canvas.redo() is None


def test_a_fill_stops_at_other_labels() -> None:
    ids = np.zeros((1, 5, 5), np.uint8)
    ids[0, :, 2] = 1
    canvas = Canvas(Start(CASE, ids), 3)
    canvas.act(Fill(0, 2, 0, 0))
    assert canvas.ids[0].tolist() == [[2, 2, 1, 0, 0]] * 5


# -- images -----------------------------------------------------------------------------------------------------------


def test_images_are_those_of_test_py(session: Session, home: Path, tmp_path: Path) -> None:
    """With the same seed, and with the same draw of one class."""
    session.act({"kind": "noise", "seed": 3})
    session.act({"kind": "resample", "label": 2, "draw": 2})
    for name in RUNS:
        where = ["--name", name, "--dataroot", home / "data", "--checkpoints_dir", home / "runs", "--gpu_ids", -1]
        how = ["--ckpt_iter", "latest", "--seed", 3, "--resample", "grey_matter", "--draw", 2, "--metrics", "none"]
        call("test.py", *where, *how, "--results_dir", tmp_path)
        folder = tmp_path / name / "latest"
        (case,) = Manifest.load(folder).cases
        assert np.abs(pixels(session, name)[0].astype(int) - read_png(folder / case.slices[2].generated[0])).max() <= 1


def test_strokes_stay_near_and_draws_in_their_region(session: Session) -> None:
    """The GMM has no global statistics: it changes where the label does, and within its blur of it."""
    before, ids, blur = pixels(session, "gmm")[0], session.canvas.ids[2].copy(), np.ones((9, 9))
    session.act(stroke(label=4, size=3))
    changed = pixels(session, "gmm")[0] != before
    painted = session.canvas.ids[2] != ids
    assert painted.sum() > 20
    assert changed[painted].mean() > 0.9
    assert not changed[~ndimage.binary_dilation(painted, blur)].any()
    session.act({"kind": "undo"})
    assert np.array_equal(pixels(session, "gmm")[0], before)
    session.act({"kind": "resample", "label": 3, "draw": 1})
    region = session.canvas.ids[2] == 3
    changed = pixels(session, "gmm")[0] != before
    assert changed[region].mean() > 0.9
    assert not changed[~ndimage.binary_dilation(region, blur)].any()


def test_sliders_of_a_gmm(session: Session) -> None:
    plain = pixels(session, "gmm")[0].astype(float)
    inside = session.canvas.ids[2] == 3
    for name, value in {"noise": 0.2, "resolution": 8.0, "contrast": 1.0, "bias": 1.0}.items():
        session.act({"kind": "slide", "run": "gmm", "name": name, "value": value})
        image = pixels(session, "gmm")[0].astype(float)
        assert not np.array_equal(image, plain), name
        if name == "noise":
            assert image[inside].std() > 1.5 * plain[inside].std()
        if name == "contrast":
            assert image[inside].mean() < 0.9 * plain[inside].mean()
        session.act({"kind": "slide", "run": "gmm", "name": name, "value": None})
        assert np.array_equal(pixels(session, "gmm")[0], plain), name


def test_a_saved_session_plays_again_to_the_same_pixels(session: Session, studio: Studio, tmp_path: Path) -> None:
    for action in (
        stroke(),
        {"kind": "fill", "slice": 2, "label": 1, "x": 0, "y": 0},
        {"kind": "undo"},
        stroke(label=4, z=1),
        {"kind": "noise", "seed": 5},
        {"kind": "slide", "run": "gmm", "name": "noise", "value": 0.1},
    ):
        session.act(action)
    (name,) = session.save({"what": "session", "slice": 2})["files"]
    other = Session(studio, tmp_path / "other", threading.Lock())
    text = session.file(name).read_text()
    assert str(tmp_path) not in text
    place = other.incoming(name)
    place.parent.mkdir(parents=True)
    place.write_text(text)
    answer = other.receive(place)
    assert "pixel by pixel" in answer["notes"][-1]
    assert np.array_equal(other.canvas.ids, session.canvas.ids)
    for panel in RUNS:
        assert np.array_equal(pixels(other, panel), pixels(session, panel))
    data = json.loads(text)
    data["start"]["ids"] = data["start"]["ids"][:40]
    with pytest.raises(ValueError, match="label map is damaged"):
        other.replay(data)


def test_slices_and_volumes_are_written(session: Session, studio: MapStudio, home: Path) -> None:
    session.act(stroke(label=4))
    files = session.save({"what": "slice", "slice": 2})["files"]
    assert np.array_equal(read_png(session.file(files[0])), session.canvas.ids[2])
    assert np.array_equal(read_png(session.file(files[1])), pixels(session, "gmm")[0])
    with pytest.raises(ValueError, match="no saved file"):
        session.file("../" + files[0])
    with pytest.raises(ValueError, match="save them as PNG"):  # the phantoms have no geometry
        session.save({"what": "volumes"})
    session.begin({})
    session.act(stroke(label=4, z=0))
    files = session.save({"what": "volumes"})["files"]
    label, image = (nib.load(session.file(name)) for name in (files[0], files[2]))
    assert label.shape == image.shape == (SIDE, SIDE, 1)
    assert np.array_equal(np.asarray(label.dataobj)[::-1, ::-1, 0].T, session.canvas.ids[0])
    assert "4\tlesion" in session.file(files[1]).read_text()
    low, high = studio.windows["gmm"][0].low, studio.windows["gmm"][0].high
    levels = (np.asarray(image.dataobj)[::-1, ::-1, 0].T - low) / (high - low) * 65535
    assert np.abs(levels - pixels(session, "gmm", 0)[0]).max() < 1


# -- who asks, and what ------------------------------------------------------------------------------------------------


def test_others_get_no_answer(server: PaintServer) -> None:
    """Other names (DNS rebinding), other sites (CSRF), no token, no session."""
    own = opened(server)
    port = server.server_port
    assert post(server, "/api/slice", {}, own | {"Origin": f"http://127.0.0.1:{port}"})[0] == 200
    assert post(server, "/api/slice", {}, own | {"Host": f"localhost:{port}"})[0] == 200
    foreign = [{"Host": host} for host in (f"evil.example:{port}", "127.0.0.1.evil.example", "[::")]
    foreign += [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
    for headers in foreign:
        assert post(server, "/api/slice", {}, own | headers)[0] == 403, headers
    for token in ("guess", "\u00e9"):
        assert post(server, "/api/open", {}, {"X-Token": token})[0] == 403
    assert post(server, "/api/slice", {}, {})[0] == 410
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for path in ("/../../config.py", "/page/../../config.py", "/%2e%2e/config.py", "/session.py"):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert (answer.status, b"import" in answer.read()) == (404, False)
        connection.close()
    connection.request("GET", "/")
    assert "default-src 'none'" in connection.getresponse().headers["Content-Security-Policy"]
    connection.close()


def test_a_broken_request_never_ends_the_server(server: PaintServer, tmp_path: Path) -> None:
    own = opened(server)
    bomb = bytearray(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_bytes())
    bomb[40:48] = np.array([3, 30000, 30000, 30000], "<i2").tobytes()
    slide = {"kind": "slide", "run": "gmm", "name": "noise", "value": 0.1}
    cases: list[tuple[str, Any, dict[str, str], str]] = [
        ("/api/act", b"{", {}, "a request is a JSON object"),
        ("/api/act", b"[" * 100_000, {}, "a request is a JSON object"),
        ("/api/act", [], {}, "a request is a JSON object"),
        ("/api/act", {"kind": "exec"}, {}, "action 'exec': must be one of"),
        ("/api/act", {"kind": ["stroke"]}, {}, "must be one of"),
        ("/api/act", {"kind": "stroke"}, {}, "stroke"),
        ("/api/act", stroke() | {"label": -1}, {}, "label: found -1"),
        ("/api/act", stroke() | {"size": 1000}, {}, "size: found 1000"),
        ("/api/act", stroke() | {"points": []}, {}, "points: found []"),
        ("/api/act", stroke() | {"points": [[1.5, 2]]}, {}, "found 1.5, must be"),
        ("/api/act", stroke() | {"points": [[10**9, 0]]}, {}, "must be in -1024..3071"),
        ("/api/act", stroke() | {"more": 1}, {}, "unknown 'more'"),
        ("/api/act", slide | {"run": "../x"}, {}, "run: found '../x'"),
        ("/api/act", slide | {"value": 9.0}, {}, "noise 9: must be in [0, 0.2]"),
        ("/api/act", stroke(z=99), {}, "slice 99"),
        ("/api/act", stroke(label=99, z=0), {}, "label 99"),
        ("/api/image", {"panel": "../x", "slice": 0}, {}, "no panel"),
        ("/api/image", {"panel": "gmm", "slice": -1}, {}, "slice -1"),
        ("/api/begin", {"case": "../x"}, {}, "no case"),
        ("/api/save", {"what": "everything"}, {}, "save: must be"),
        ("/api/file", {"name": "/etc/passwd"}, {}, "no saved file"),
        ("/api/__class__", {}, {}, "no such request"),
        ("/api/upload", bytes(bomb), {"X-Name": "a.nii"}, "the limit is"),
        ("/api/upload", b"x", {"X-Name": "a.exe"}, "must be a label map"),
        ("/api/upload", b"{}", {"X-Name": "..%2F..%2Fa.json"}, "not a session"),
        ("/api/upload", b"{}", {"X-Name": "....json"}, "file name"),
    ]
    for path, body, headers, message in cases:
        status, answer = post(server, path, body, own | headers)
        assert status in (400, 404), (path, answer)
        assert message in answer["error"], (path, answer)
        assert len(answer["error"].splitlines()) == 1
    assert post(server, "/api/act", b"", own, length=str(MAX_REQUEST + 1))[0] == 413
    assert post(server, "/api/act", b"", own, length="-1")[0] == 411
    assert post(server, "/api/act", stroke(z=0), own)[1]["undo"] == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_two_tabs_do_not_mix(server: PaintServer) -> None:
    one, two = opened(server), opened(server)
    assert post(server, "/api/act", stroke(z=0), one)[1]["undo"] == 1
    assert post(server, "/api/act", {"kind": "undo"}, two)[1]["revision"] == 0
    assert post(server, "/api/slice", {}, one)[1]["ids"] != post(server, "/api/slice", {}, two)[1]["ids"]


def test_a_label_map_is_begun_with(server: PaintServer) -> None:
    """A volume of source ids; what is saved of it lies where it lay."""
    own = opened(server)
    ids = np.zeros((SIDE, SIDE, 4), np.uint8)
    ids[8:24, 8:24, 1:3] = 3
    content = nib.Nifti1Image(ids, LAS).to_bytes()
    status, answer = post(server, "/api/upload", content, own | {"X-Name": "sub-9_dseg.nii"})
    assert status == 200
    assert answer | {"case": "sub-9_dseg", "slices": 4, "volumes": True} == answer  # of 2 mm, made 1 mm
    assert post(server, "/api/image", {"panel": "gmm", "slice": 1}, own)[0] == 200
    saved = post(server, "/api/save", {"what": "volumes"}, own)[1]
    label, image = (nib.load(Path(saved["folder"]) / saved["files"][i]) for i in (0, 2))
    assert all(np.array_equal(file.affine, LAS) for file in (label, image))
    assert np.array_equal(np.asarray(label.dataobj), ids)
    assert np.corrcoef(ids[:, :, 1].ravel(), np.asarray(image.dataobj)[:, :, 1].ravel())[0, 1] > 0.9


def test_ctrl_c_ends_at_once(home: Path) -> None:
    arguments = ["--name", "gmm", "--checkpoints_dir", home / "runs", "--port", 0, "--out", home / "out"]
    heard: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heard["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    process = start("scripts/paint.py", *arguments, "--ckpt_iter", "latest", **heard)
    assert process.stdout is not None
    address, _, token = process.stdout.readline().removeprefix("open http://127.0.0.1:").strip().partition("/#")
    connection = http.client.HTTPConnection("127.0.0.1", int(address))
    connection.request("POST", "/api/open", b"{}", {"X-Token": token})
    own = {"X-Session": json.loads(connection.getresponse().read())["session"]}
    connection.request("POST", "/api/image", json.dumps({"panel": "gmm"}), own)  # the answer is not waited for
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


# -- a browser --------------------------------------------------------------------------------------------------------


def picture(levels: list[int]) -> np.ndarray:
    return np.array(levels).reshape(SIDE, SIDE, 3)


def rgb(color: str) -> list[int]:
    """Of CSS: rgb(1, 2, 3)."""
    return [int(part) for part in color[4:-1].split(",")]


def test_a_stroke_in_a_browser(server: PaintServer) -> None:
    """Label there, image near it and nothing far away; what is drawn under way is what comes back; undo; nothing leaves."""
    chromium.find()
    found = chromium.ask_server(
        server.address,
        server.pages,
        PAINT
        + """
        const before = [look(map), ...canvases().map(look)];
        $('#classes input[value="4"]').click();
        event("pointerdown", 8, 9); event("pointermove", 15, 12); event("pointermove", 20, 20);
        const under = look(map);
        event("pointerup", 20, 20);
        await drawn(1);
        const after = [look(map), ...canvases().map(look)];
        key("z", { ctrlKey: true });
        await drawn(2);
        const back = [look(map), ...canvases().map(look)];
        map.focus(); key("ArrowRight"); key(" ");
        await drawn(3);
        const typed = look(map);
        const asked = performance.getEntriesByType("resource").map((one) => one.name);
        const color = getComputedStyle($('#classes input[value="4"] + i')).backgroundColor;
        return { before, under, after, back, typed, asked, color,
          wide: document.documentElement.scrollWidth <= innerWidth, message: $("#message").textContent };
        """,
    )
    assert found["message"] == ""
    assert found["wide"]
    mask = brushed((SIDE, SIDE), [(8, 9), (15, 12), (20, 20)], 6)
    before, after = ([picture(one) for one in found[name][:2]] for name in ("before", "after"))
    assert (after[0][mask] == rgb(found["color"])).all()
    assert np.array_equal(after[0][~mask], before[0][~mask])
    assert found["under"] == found["after"][0]
    changed = (after[1] != before[1]).any(axis=-1)
    assert changed[mask].mean() > 0.5
    assert not changed[28:].any()
    assert not changed[:, 28:].any()
    assert found["back"] == found["before"]
    assert found["typed"] != found["back"][0]
    assert all(name.startswith(f"http://127.0.0.1:{server.server_port}/") for name in found["asked"])


def test_fingers_zoom_and_the_dark_on_a_telephone(server: PaintServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """400 pixels wide: one finger paints, two enlarge, buttons and keys too; what is painted lies under the pointer."""
    monkeypatch.setattr("engine.paint.server.POLICY", POLICY.replace("'none';", "'none'; frame-src 'self';", 1))
    found = chromium.ask_server(
        server.address,
        server.pages,
        PAINT
        + """
        const before = look(map);
        $('#classes input[value="4"]').click();
        const finger = (id) => ({ pointerType: "touch", pointerId: id, isPrimary: id === 1 });
        event("pointerdown", 8, 9, finger(1)); event("pointermove", 15, 12, finger(1));
        event("pointerup", 15, 12, finger(1));
        await drawn(1);
        const touched = look(map), width = () => map.getBoundingClientRect().width;
        const stage = $(".stage").getBoundingClientRect(), widths = [width()];
        event("pointerdown", 14, 16, finger(1)); event("pointerdown", 18, 16, finger(2));
        event("pointermove", 26, 16, finger(2));
        event("pointerup", 14, 16, finger(1)); event("pointerup", 26, 16, finger(2));
        await drawn(1);
        await wait(() => look(map).join() === touched.join());
        widths.push(width());
        const pinched = look(map);
        key("+"); widths.push(width()); key("-"); widths.push(width());
        $("#zoom-in").click(); widths.push(width());
        while (!$("#zoom-out").disabled) $("#zoom-out").click();
        widths.push(width());
        const box = map.getBoundingClientRect(), bubbles = true, cancelable = true;
        const middle = { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2 };
        const wheel = { bubbles, cancelable, ctrlKey: true, deltaY: -1, ...middle };
        for (let i = 0; i < 2; i++) map.dispatchEvent(new WheelEvent("wheel", wheel));
        const corner = { bubbles, isPrimary: true, clientX: stage.left + 2, clientY: stage.top + 2 };
        for (const kind of ["pointerdown", "pointerup"]) map.dispatchEvent(new PointerEvent(kind, corner));
        await drawn(2);
        const style = getComputedStyle(document.body);
        return { before, touched, pinched, cornered: look(map), widths, stage: stage.width, wide: innerWidth,
          over: document.documentElement.scrollWidth, colors: [style.backgroundColor, style.color],
          low: Math.min(...[...document.querySelectorAll("button")].map((b) => b.offsetHeight || 99)) };
        """,
        width=400,
        dark=True,
    )
    assert (found["wide"], found["over"]) == (400, 400)
    assert found["low"] >= 36
    ground, ink = (np.mean(rgb(color)) for color in found["colors"])
    assert ground < 60 < 200 < ink
    before, touched, corner = (picture(found[name]) for name in ("before", "touched", "cornered"))
    mask = brushed((SIDE, SIDE), [(8, 9), (15, 12)], 6)
    assert np.array_equal((touched != before).any(axis=-1), mask & (before != touched[9, 8]).any(axis=-1))
    assert found["pinched"] == found["touched"]
    start, pinched, keyed, back, button, out = found["widths"]
    assert start == out == pytest.approx(found["stage"], abs=1)
    assert pinched > 1.5 * start
    assert keyed == button == pytest.approx(1.25 * pinched)
    assert back == pytest.approx(pinched)
    spot = np.argwhere((corner != touched).any(axis=-1)).mean(axis=0)
    assert (abs(spot - SIDE / 2 * (1 - 1 / 1.25**2)) < 1.5).all()  # the corner of what is seen


def test_saving_opening_and_new_draws_in_a_browser(server: PaintServer) -> None:
    """Files and links, a session that is opened again on the page, and a class drawn anew that changes nothing else."""
    found = chromium.ask_server(
        server.address,
        server.pages,
        PAINT
        + """
        const blobs = [];
        URL.createObjectURL = (blob) => { blobs.push(blob); return "#"; };
        const save = async (what) => {
          $(`[data-save=${what}]`).click();
          await wait(() => $("#message").textContent.startsWith("saved") && !$(`[data-save=${what}]`).disabled);
          return [...document.querySelectorAll("#message a")].map((a) => a.textContent);
        };
        $('#classes input[value="3"]').click();
        const first = canvases().map(look), color = getComputedStyle($('#classes input[value="3"] + i')).backgroundColor;
        $("#draw-next").click();
        await drawn(1);
        const map_ = look(map), redrawn = canvases().map(look);
        event("pointerdown", 8, 9); event("pointermove", 15, 12); event("pointerup", 15, 12);
        await drawn(2);
        const painted = [look(map), ...canvases().map(look)];
        const pngs = await save("slice"), [name] = await save("session");
        document.querySelector("#message a").click();
        await wait(() => blobs.length);
        $("#case").value = ""; $("#case").dispatchEvent(new Event("change"));
        await wait(() => $("#undo").disabled && $("#slices").hidden);
        const empty = look(map), files = new DataTransfer();
        files.items.add(new File(blobs, name));
        $("#file").files = files.files; $("#file").dispatchEvent(new Event("change"));
        await wait(() => $("#message").textContent.includes("pixel by pixel") && `${look(map)}` === `${painted[0]}`);
        await drawn(2);
        return { first, map_, redrawn, painted, pngs, color, empty, again: [look(map), ...canvases().map(look)],
          message: $("#message").textContent };
        """,
    )
    assert "images of gmm, oasis, thick are those that were saved" in found["message"]
    assert found["again"] == found["painted"]
    assert not any(found["empty"])
    (folder,) = {path.parent for path in next(iter(server.sessions.values())).folder.parent.rglob("*.png")}
    assert {path.name for path in folder.glob("*.png")} == set(found["pngs"])
    assert len(found["pngs"]) == 4
    region = (picture(found["map_"]) == rgb(found["color"])).all(axis=-1)
    first, redrawn = (picture(found[name][0])[..., 0] for name in ("first", "redrawn"))
    changed = first != redrawn
    assert changed[region].mean() > 0.5
    assert not changed[~ndimage.binary_dilation(region, iterations=5)].any()
