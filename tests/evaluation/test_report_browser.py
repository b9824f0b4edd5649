"""The report in a browser: it opens from disk without a complaint, sorts, scrolls through volumes, fits a telephone."""

from __future__ import annotations

import itertools
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataloaders.io.files import write_text
from dataloaders.io.pictures import label_colors
from dataloaders.io.png import read_png
from dataloaders.io.spec import Label
from evaluation.compare import load_entrants
from evaluation.report import pdf as pdf_module
from evaluation.report.page import gather_content, render_page
from evaluation.report.pdf import print_pdf
from evaluation.report.pictures import body_box
from tests import chromium
from tests.toy_results import WINDOWS, noisy, write_results

pytestmark = pytest.mark.slow

OPEN = "for (const fold of document.querySelectorAll('details')) fold.open = true;"
READY = f"""{OPEN} await wait(() => document.documentElement.dataset.ready);
const browser = document.getElementById('browser'), viewer = browser.querySelector('.viewer');
const pixels = (what) => {{
  const canvas = browser.querySelector(`canvas[data-what=${{what}}]`);
  return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data].filter((_, i) => i % 4 < 3);
}};
const set = (name, value) => {{
  const field = browser.querySelector(`[name=${{name}}]`);
  if (field.type === 'checkbox') field.checked = value; else field.value = value;
  field.dispatchEvent(new Event(field.tagName === 'SELECT' ? 'change' : 'input', {{ bubbles: true }}));
}};
const position = () => browser.querySelector('[name=position]').value;
const channel = async (number) => {{
  set('channel', number);
  await wait(() => browser.querySelector('[data-what=high]').textContent.includes('HU') === (number === 1));
}};
"""
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def results(no_weights: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods on two cases of four slices and a report; the second method has no SSIM of CT."""
    chromium.find()  # before any work
    root = tmp_path_factory.mktemp("report")
    folders = [write_results(root / n, noisy(of, 0.1), name=n, slices=4) for n, of in (("good", 0.02), ("bad", 0.1))]
    load_entrants(folders)  # writes metrics.json
    metrics = json.loads((root / "bad" / "metrics.json").read_text())
    metrics["metrics"]["ssim/CT"] |= {"value": None, "reason": "not this one"}
    (root / "bad" / "metrics.json").write_text(json.dumps(metrics))
    write_text(root / "out" / "report.html", render_page(gather_content(load_entrants(folders))))
    return root


@pytest.fixture(scope="module")
def ask(results: Path) -> Ask:
    """A question to the report as it opens."""
    return lambda script, **size: chromium.ask(results / "out" / "report.html", script, **size)


@pytest.fixture(scope="module")
def look(ask: Ask) -> Ask:
    """The same when all is unfolded and the case browser is ready, with the functions above."""
    return lambda script, **size: ask(READY + script, **size)


def test_headings_sort_the_rows(look: Ask) -> None:
    """Best first, worst first, one heading at a time, and what is missing stays last; the long table by name."""
    found = look("""
        const table = [...document.querySelectorAll('table.sortable')].filter((t) => t.textContent.includes('SSIM'))[1];
        const button = (name) => [...table.querySelectorAll('thead button')].find((b) => b.textContent.startsWith(name));
        const look = () => [[...table.tBodies[0].rows].map((row) => row.cells[0].textContent).join(' '),
          [...table.querySelectorAll('th[aria-sort]')].map((h) => h.getAttribute('aria-sort')).filter((s) => s !== 'none')];
        const seen = [look()];
        for (const name of ['MAE', 'MAE', 'PSNR', 'SSIM', 'SSIM', 'method']) { button(name).click(); seen.push(look()); }
        button('MAE').focus();
        const long = document.querySelector('table.long');
        long.querySelector('thead button').click();
        return { seen, focused: document.activeElement === button('MAE'),
          names: [...long.tBodies[0].rows].map((row) => row.cells[0].dataset.v) };
        """)
    assert found["seen"] == [
        ["good bad", []],
        ["good bad", ["ascending"]],  # MAE: lower is better
        ["bad good", ["descending"]],
        ["good bad", ["descending"]],  # PSNR: the highest first
        ["good bad", ["descending"]],  # SSIM: bad has none
        ["good bad", ["ascending"]],
        ["bad good", ["ascending"]],  # by name
    ]
    assert found["focused"]
    assert len(found["names"]) > 20
    assert found["names"] == sorted(found["names"], key=str.lower)


def test_slider_and_keys_go_through_the_volume(look: Ask) -> None:
    found = look("""
        const seen = [position()], first = pixels('real').join();
        const press = (key) => viewer.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true }));
        set('slice', 3); seen.push(position());
        const other = pixels('real').join() !== first;
        for (const key of ['ArrowLeft', 'ArrowDown', 'ArrowRight', 'Home', 'ArrowLeft', 'End', 'ArrowUp']) {
          press(key); seen.push(position());
        }
        for (const name of ['previous', 'next']) { browser.querySelector(`[name=${name}]`).click(); seen.push(position()); }
        return { seen, other, hidden: browser.hidden, slider: browser.querySelector('[name=slice]').value };
        """)
    assert (found["other"], found["hidden"], found["slider"]) == (True, False, "3")
    assert [int(text.split()[1]) for text in found["seen"]] == [2, 3, 2, 1, 2, 0, 0, 3, 3, 2, 3]


def test_pixels_are_those_of_the_files(look: Ask, results: Path) -> None:
    """Case, channel and window are chosen; images agree with the 16-bit files, differences have the right sign."""
    found = look("""
        const seen = {}, title = (name) => [...browser.querySelector(`[name=${name}]`).options].map((o) => o.text);
        seen.cases = title('case'); seen.channels = title('channel');
        set('case', 1); await wait(() => position().includes('/4)') && browser.querySelector('[name=case]').value === '1');
        await channel(1);
        seen.windows = title('window');
        set('slice', 1);
        for (const what of ['label', 'real', 'generated-1', 'difference-0']) seen[what] = pixels(what);
        set('window', 2);
        seen.bone = pixels('real');
        seen.scale = browser.querySelector('[data-what=low]').textContent;
        return seen;
        """)
    assert (found["cases"], found["channels"], found["scale"]) == (["sub-00", "sub-01"], ["T1w", "CT"], "−500")
    assert [name.split(" (")[0] for name in found["windows"]] == ["soft tissue", "lung", "bone", "brain"]
    labels = [read_png(results / f"good/label/sub-01_z{z:04d}.png") for z in range(4)]
    box = body_box(labels)
    cut = labels[1][box]
    for key, file, low, high in (
        ("real", "good/groundtruth", -160, 240),
        ("generated-1", "bad/generated", -160, 240),
        ("bone", "good/groundtruth", -500, 1300),
    ):
        values = WINDOWS["CT"].decode(read_png(results / file / "sub-01_z0001_0001.png"))[box]
        grey = np.clip((values - low) / (high - low), 0, 1) * 255
        assert np.abs(np.reshape(found[key], (*cut.shape, 3)) - grey[..., None]).max() <= 2, key  # rounded twice
    colours = label_colors([Label(i, f"class_{i}") for i in range(5)])
    assert np.array_equal(np.reshape(found["label"], (*cut.shape, 3)), colours[cut])
    red, _, blue = np.moveaxis(np.reshape(found["difference-0"], (*cut.shape, 3)).astype(float), -1, 0)
    assert (red - blue)[cut > 0].mean() > 20  # too bright in the body: red
    assert np.abs(red - blue)[cut == 0].max() <= 6  # equal outside: white


def test_overlay_colours_the_body_only(look: Ask) -> None:
    found = look("""
        await channel(1);
        set('window', 1); // lung, where air is not black
        set('slice', 1);
        const plain = pixels('real'), difference = pixels('difference-0').join();
        set('overlay', true); set('opacity', 50);
        const half = pixels('real');
        set('opacity', 100);
        const full = pixels('generated-0'), same = pixels('difference-0').join() === difference;
        set('overlay', false);
        return { plain, half, full, label: pixels('label'), same: same && pixels('real').join() === plain.join() };
        """)
    plain, half, full, label = (np.reshape(found[key], (-1, 3)) * 1.0 for key in ("plain", "half", "full", "label"))
    body = label.any(axis=1)
    assert 0.3 < body.mean() < 1
    assert plain[~body].min() > 30
    assert np.array_equal(half[~body], plain[~body])
    assert np.abs(half - (plain + label) / 2)[body].max() <= 1
    assert np.array_equal(full[body], label[body])
    assert found["same"]


def test_browse_opens_the_ranked_slice_and_the_pointer_reads_values(look: Ask) -> None:
    found = look("""
        const canvas = browser.querySelector('canvas[data-what=real]');
        const { left, top, width, height } = canvas.getBoundingClientRect();
        const at = { clientX: left + width / 2, clientY: top + height / 2, bubbles: true };
        canvas.dispatchEvent(new PointerEvent('pointermove', at));
        const text = browser.querySelector('.readout').textContent;
        const button = [...document.querySelectorAll('button.show')].at(-1);
        button.click();
        await wait(() => browser.querySelector('[data-what=high]').textContent.includes('HU'));
        const select = browser.querySelector('[name=case]');
        return { text, wanted: { ...button.dataset }, case: select.options[select.selectedIndex].text, position: position(),
          channel: browser.querySelector('[name=channel]').value, focused: document.activeElement === viewer };
        """)
    assert found["text"].startswith("csf: real 2")  # 250 a.u. in the middle
    assert "good" in found["text"]
    assert "bad" in found["text"]
    assert found["case"] == found["wanted"]["case"]
    assert found["channel"] == found["wanted"]["channel"] == "1"
    assert found["position"].startswith(f"slice {found['wanted']['slice']} ")
    assert found["focused"]


@pytest.mark.parametrize("width", [400, 1300])
def test_nothing_sticks_out(look: Ask, width: int) -> None:
    """No sideways scrolling of the page; what is wide scrolls in its own box."""
    script = """
        const root = document.documentElement;
        const tables = [...document.querySelectorAll('.scroll')].map((b) => b.getBoundingClientRect().right);
        return { inner: innerWidth, right: Math.max(root.scrollWidth, document.body.scrollWidth, ...tables) };
        """
    found = look(script, width=width)
    assert found["right"] <= found["inner"] == width


def test_without_scripts_the_page_is_readable(results: Path) -> None:
    """The case browser gives way to a sentence; tables, pictures and plots are there."""
    found = chromium.ask_without_scripts(
        results / "out" / "report.html",
        """
        for (const fold of page.querySelectorAll('details')) fold.open = true;
        const seen = (element) => element.getBoundingClientRect().height > 0;
        const images = [...page.images];
        return { ready: page.documentElement.dataset.ready ?? null, browser: seen(page.getElementById('browser')),
          instead: seen(page.querySelector('noscript p')), images: images.length,
          decoded: images.filter((i) => i.complete && i.naturalWidth > 0).length,
          tables: [...page.querySelectorAll('table.metrics:not(.long)')].filter(seen).length,
          buttons: [...page.querySelectorAll('button')].filter(seen).length };
        """,
    )
    assert found["ready"] is None  # or scripts were on after all
    assert not found["browser"]
    assert found["instead"]
    assert found["images"] == found["decoded"] > 60
    assert found["tables"] >= 6
    assert found["buttons"] == 0


# -- what Lighthouse asks for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out(look: Ask, dark: bool) -> None:
    """WCAG AA: 4.5 to 1, and 3 to 1 for large print, of every text on what lies behind it."""
    found = look(
        """
        const parse = (color) => color.match(/[\\d.]+/g).map(Number);
        const light = (rgb) => rgb.slice(0, 3).map((c) => c / 255)
          .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
          .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
        const behind = (element) => {
          for (let e = element; e; e = e.parentElement) {
            const color = parse(getComputedStyle(e).backgroundColor);
            if (color.length < 4 || color[3] === 1) return color;
          }
          return [255, 255, 255];
        };
        const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        const low = [];
        let seen = 0;
        while (walker.nextNode()) {
          const element = walker.currentNode.parentElement;
          if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
          const style = getComputedStyle(element);
          const [a, b] = [light(parse(style.color)), light(behind(element))].sort((x, y) => y - x);
          const size = parseFloat(style.fontSize);
          const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
          seen += 1;
          if ((a + 0.05) / (b + 0.05) < (large ? 3 : 4.5)) low.push(walker.currentNode.data.trim());
        }
        return { low: [...new Set(low)], seen, paper: light(behind(document.body)) };
        """,
        dark=dark,
    )
    assert found["low"] == []
    assert found["seen"] > 300
    assert (found["paper"] < 0.1) == dark


def test_everything_has_a_name_a_place_and_a_key(ask: Ask) -> None:
    """Pictures have texts and sizes, fields have labels, nothing shifts as it loads or opens, folds open by keyboard."""
    found = ask("""
        const shifts = [];
        new PerformanceObserver((list) => shifts.push(...list.getEntries().map((e) => e.value)))
          .observe({ type: 'layout-shift', buffered: true });
        await new Promise((done) => setTimeout(done, 500));
        const first = document.querySelector('details.part > summary');
        first.focus();
        const reached = document.activeElement === first;
        const folds = [...document.querySelectorAll('details')];
        const shut = folds.filter((fold) => !fold.open).length;
        const named = (e) => e.getAttribute('aria-label') || e.closest('label')?.textContent.trim() || e.textContent.trim();
        const controls = [...document.querySelectorAll('button, select, input, canvas')];
        location.hash = '#spectrum';
        await wait(() => document.querySelector('#spectrum').parentElement.open);
        const followed = folds.filter((fold) => fold.open).length;
        dispatchEvent(new Event('beforeprint'));
        const shift = shifts.reduce((sum, v) => sum + v, 0);
        scrollTo(0, 0);
        const block = document.createElement('p');
        block.style.height = '300px';
        document.body.prepend(block);
        await wait(() => shifts.reduce((sum, v) => sum + v, 0) > shift);
        return { shift, noticed: shifts.reduce((sum, v) => sum + v, 0), reached, shut, folds: folds.length, followed,
          images: document.images.length,
          bare: [...document.images].filter((i) => !i.alt || !(i.getAttribute('width') > 0 && i.getAttribute('height') > 0))
            .map((i) => i.alt),
          wrong: [...document.images].filter((i) => Math.abs(i.naturalWidth / i.naturalHeight
            - i.getAttribute('width') / i.getAttribute('height')) > 0.02).map((i) => i.alt),
          nameless: controls.filter((e) => !named(e)).map((e) => e.outerHTML), printed: folds.every((fold) => fold.open),
          heads: [...document.querySelectorAll('h1, h2, h3, h4')].map((h) => Number(h.tagName[1])),
          language: document.documentElement.lang, loaded: performance.getEntriesByType('resource').length };
        """)
    assert found["shift"] < 0.01 < found["noticed"]  # what does move is noticed
    assert found["reached"]
    assert found["shut"] == found["folds"] > 10
    assert found["followed"] == 1
    assert found["images"] > 60
    assert found["bare"] == found["wrong"] == found["nameless"] == []
    assert found["printed"]
    assert found["heads"].count(1) == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(found["heads"]))
    assert found["language"] == "en"
    assert found["loaded"] == 0


def test_everything_is_printed_but_what_cannot_be(results: Path) -> None:
    """`--pdf`: all that is folded is printed, so the file has as many pictures as the page less the case browser's."""
    page = results / "out" / "report.html"
    assert print_pdf(page) == f"PDF: {page.with_suffix('.pdf').resolve()}"
    pdf = page.with_suffix(".pdf").read_bytes()
    streams = [inflated(part) for part in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL)]
    drawn = sum(len(re.findall(rb"/\w+ Do\b", stream)) for stream in streams)
    pictures = len(re.findall('src="data:image/webp', page.read_text()))
    assert drawn >= pictures > 40
    assert pdf.count(b"/Type /Page\n") > 3


def inflated(stream: bytes) -> bytes:
    """A stream of a PDF, empty where it is no deflated one."""
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return b""


def test_without_chromium_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf_module, "BROWSERS", ("no-such-browser",))
    write_text(tmp_path / "report.html", "<p>x</p>")
    said = print_pdf(tmp_path / "report.html")
    assert said.startswith("no PDF: none of no-such-browser is installed; open ")
    assert len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_first_screen_holds_the_answer(ask: Ask) -> None:
    """Who is best, an interval or spread, and a row of pictures, all above the fold of a laptop."""
    found = ask(
        """
        const pictures = [...document.querySelectorAll('.strip')][0];
        const table = document.querySelector('table.first');
        return { lines: [...table.tBodies[0].rows].map((row) => row.innerText), end: pictures.getBoundingClientRect().bottom,
          pictures: pictures.querySelectorAll('img').length, open: document.documentElement.scrollHeight };
        """,
        height=900,
    )
    assert 2 <= len(found["lines"]) <= 5
    assert all("good is best" in line for line in found["lines"])
    assert found["pictures"] == 4
    assert found["end"] < 900
    assert found["open"] < 2000
