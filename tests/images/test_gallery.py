"""The page to review a scan: what is in it, and how it works in a real browser."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ftkit import DuplicateGroup, Finding, ScanReport, scan_images
from ftkit._images.choice import choose
from ftkit._images.gallery import write_gallery
from ftkit._images.quarantine import move_away

from .browser import CHROMIUM, Browser

HOSTILE = [
    "<script>document.title='hacked'</script>&.jpg", "<img src=x onerror=document.title='hacked'>.jpg",
    "</script><script>document.title='hacked'.jpg", "{{data}} {{thumbnails}} {{title}}.jpg", "a 'b' \"c\" #1?%20.jpg",
    "two\nlines\t.jpg", " spaces around .jpg", '"quoted.jpg', "back\\slash.jpg", "사진 é\u202egpj.jpg",
    os.fsdecode(b"\xb0\xb3.jpg"),
]  # fmt: skip


@pytest.fixture
def dirty(pets: Path, jpegs: list[bytes], photo: Callable[..., Image.Image], encode: Callable[..., bytes]) -> Path:
    """Return the data set with hostile names, cut files, a leak, a near copy, an empty folder and litter."""
    for number, name in enumerate(HOSTILE):
        place = pets / "train/cat" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(jpegs[10][: len(jpegs[10]) // 2 + number])
    (pets / "train/dog/copy.jpg").write_bytes((pets / "val/dog/0.jpg").read_bytes())
    (pets / "train/cat/small.jpg").write_bytes(encode(photo(1).resize((240, 195)), quality=80))
    (pets / "train/empty").mkdir()
    (pets / "train/cat/Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    return pets


def content(page: Path) -> tuple[dict[str, Any], list[str], str]:
    """Return the data of a page, its thumbnails, and all else."""
    text = page.read_text(encoding="utf-8")
    scripts = '(<script type="application/json".*?>)(.*?)(</script>.*?"thumbnails">)(.*?)(</script>.*)'
    match = re.search(scripts, text, re.DOTALL)
    assert match
    return json.loads(match[2]), match[4].splitlines(), text[: match.start()] + match[1] + match[3] + match[5]


def test_the_page_holds_every_finding_and_stands_alone(dirty: Path, tmp_path: Path) -> None:
    """Each finding under its kind, a thumbnail for each image, copies in groups; and nothing is fetched."""
    report = scan_images(dirty, workers=1)
    report.to_html(tmp_path / "page.html")
    data, thumbnails, rest = content(tmp_path / "page.html")
    paths = [file["path"] for file in data["files"]]
    there = {(kind, paths[file]) for kind, *_, files in data["kinds"] for file in files}
    assert there == {(f.kind, os.path.relpath(f.path, dirty)) for f in report.findings}
    assert {path for path, thumbnail in zip(paths, thumbnails, strict=True) if not thumbnail} == {
        "train/empty", "train/cat/Thumbs.db",
    }  # fmt: skip
    assert [title for title, *_ in data["groups"]] == ["exact: 2 copies, in train and val", "near: 2 copies"]
    assert [chart["title"].split(",")[0] for chart in data["charts"]] == [
        "Usable images by class", "Usable images by shorter side",
    ]  # fmt: skip
    assert not re.search(r"https?:|url\(['\"/]|@import| src=", rest)
    assert "hacked" not in rest
    assert rest.count("<script") == 3


def test_an_empty_report_and_one_without_its_data(tmp_path: Path) -> None:
    """Both make a page: what can't be shown is listed all the same."""
    ScanReport("data/pets", []).to_html(tmp_path / "none.html")
    assert content(tmp_path / "none.html")[0]["kinds"] == []
    found = [Finding("data/pets/gone.jpg", "truncated", "unusable", "too short")]
    group = DuplicateGroup(("data/pets/a.jpg", "data/pets/b.jpg"), "near")
    ScanReport("data/pets", found, [group]).to_html(tmp_path / "gone.html")
    data, thumbnails, _ = content(tmp_path / "gone.html")
    assert [file["path"] for file in data["files"]] == ["gone.jpg", "a.jpg", "b.jpg"]
    assert thumbnails == ["", "", ""]


def test_charts_have_the_counts(tmp_path: Path) -> None:
    """The largest classes first, the split with most images first, and how many more there are."""
    counts = {f"train/class {number:02}": number for number in range(30)} | {"val/class 03": 1}
    ScanReport("pets", [], classes=counts).to_html(tmp_path / "page.html")
    (chart,) = content(tmp_path / "page.html")[0]["charts"]
    assert chart["rows"][0] == ["class 29", [29, 0]]
    assert len(chart["rows"]) == 24
    assert chart["more"] == "and 6 more classes"
    assert chart["splits"] == ["train", "val"]


def test_what_was_set_aside_is_shown_from_where_it_is_now(dirty: Path) -> None:
    """The page of a quarantine links to the moved files, and offers no choice."""
    gone = scan_images(dirty, workers=1).quarantine(dirty.parent / "aside")
    assert gone.gallery
    data, _, _ = content(gone.gallery)
    assert data["choose"] is False
    assert not any(file["pick"] for file in data["files"])
    assert all(os.path.lexists(gone.gallery.parent / "files" / path) for path in gone.files)
    assert data["base"] == "files/"


def shown_by(page: Path) -> tuple[list[str], list[bool]]:
    """Return the files that a page shows, and whether each has a thumbnail."""
    data, thumbnails, _ = content(page)
    return [file["path"] for file in data["files"]], list(map(bool, thumbnails))


def test_what_has_gone_already_is_not_shown_as_set_aside(dirty: Path, tmp_path: Path) -> None:
    """Neither what another quarantine took, nor what somebody deleted since the scan."""
    report = scan_images(dirty, workers=1)
    names = [f"train/cat/{name}" for name in HOSTILE[:3]]
    report.quarantine(tmp_path / "aside", only=names[:1])
    (dirty / names[1]).unlink()
    gone = report.quarantine(tmp_path / "aside", only=names)
    assert sorted(gone.left) == sorted((name, "gone already") for name in names[:2])
    assert gone.gallery
    assert shown_by(gone.gallery) == ([names[2]], [True])
    page = content(gone.gallery)[0]
    assert [kind for kind, *_ in page["kinds"]] == ["truncated"]


def test_what_another_process_took_meanwhile_is_not_shown(dirty: Path, tmp_path: Path, jpegs: list[bytes]) -> None:
    """The page is right in the end, with previews of what has moved by then."""
    names = [f"train/cat/{number}.jpg" for number in range(50, 53)]
    for number, name in enumerate(names):
        (dirty / name).write_bytes(jpegs[10][: 3000 + number])
    report = scan_images(dirty, workers=1)

    chosen = choose(str(dirty), report.findings, [], None, names)
    pages: list[list[str]] = []

    def show(page: Path, moved_to: str, paths: Collection[str]) -> None:
        pages.append(sorted(paths))
        (dirty / names[0]).unlink(missing_ok=True)
        kept = [finding for finding in chosen if os.path.relpath(finding.path, dirty) in paths]
        write_gallery(page, str(dirty), "", kept, [], report.table, {}, moved_to)

    gone = move_away(str(dirty), chosen, tmp_path / "aside", {}, show)
    assert pages == [names, names[1:]]
    assert gone.left == [(names[0], "gone already")]
    assert gone.gallery
    assert shown_by(gone.gallery) == (names[1:], [True, True])


# ---------------------------------------------------------------- in Chromium

#: The least contrast of a text with what is behind it (WCAG 2.2, relative luminance).
CONTRAST = """(() => {
  const rgb = color => color.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = color => color.slice(0, 3).reduce((sum, v, i) => sum + linear(v / 255) * [.2126, .7152, .0722][i], 0);
  const behind = e => {
    const color = rgb(getComputedStyle(e).backgroundColor);
    return color.length < 4 || color[3] ? color : behind(e.parentElement);
  };
  const ratio = e => {
    const [low, high] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((a, b) => a - b);
    return (high + .05) / (low + .05);
  };
  const texts = document.querySelectorAll("h1, h2, p, small, b, bdi, .badge, nav a, th, td, code");
  return Math.min(...[...texts].map(ratio));
})()"""

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@pytest.fixture
def browser() -> Iterator[Browser]:
    """Return a browser."""
    with Browser() as browser:
        yield browser


@pytest.mark.slow
@needs_browser
def test_a_choice_made_with_the_keyboard_is_what_moves(dirty: Path, tmp_path: Path, browser: Browser) -> None:
    """Arrows, space, enter and ? work; the list that is saved goes into a quarantine, whatever the names."""
    report = scan_images(dirty, workers=1)
    report.to_html(tmp_path / "page.html")
    downloads = tmp_path / "downloads"
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
    browser.open(tmp_path / "page.html")
    assert browser.run("document.title") == "pets: scan results"
    browser.press("?")
    assert browser.run("document.querySelector('#help').open")
    browser.press("ArrowRight", "Escape")
    browser.wait("document.activeElement === document.body")
    browser.press("ArrowRight")  # nothing needs to be clicked first
    assert browser.run("document.activeElement === document.querySelector('.card input')")
    browser.run("document.activeElement.blur(), document.querySelector('#truncated').scrollIntoView()")
    browser.press("ArrowLeft")
    assert browser.run("document.activeElement === document.querySelector('#truncated .card input')")
    tops = browser.run("[...document.querySelectorAll('#truncated .card')].map(card => card.offsetTop)")
    columns = tops.count(tops[0])
    focused = "+document.activeElement.closest('.card').dataset.f"
    first = browser.run(focused)
    for key, to in (("ArrowRight", 1), ("ArrowDown", 1 + columns), ("ArrowLeft", columns), ("ArrowUp", 0)):
        browser.press(key)
        assert browser.run(focused) == first + to
    assert browser.run("getComputedStyle(document.activeElement.closest('.card')).outlineStyle") == "solid"
    browser.press("Enter")
    assert browser.run("document.querySelector('#full').open")
    browser.press("ArrowRight", " ", "ArrowLeft", "Escape")
    assert browser.run(focused) == first
    assert browser.run("document.querySelector('#count').textContent") == "1 file chosen"
    for _ in range(len(HOSTILE) - 1):
        browser.press("ArrowRight")
    assert browser.run(focused) == first + len(HOSTILE) - 1
    browser.run("document.querySelector('#truncated label input').click()")
    browser.press(" ")  # no longer
    browser.press(" ")
    browser.run("document.querySelector('#copies .card:nth-child(2) input').click()")  # the copy that stays by default
    assert browser.run("document.querySelector('#count').textContent") == f"{len(HOSTILE) + 1} files chosen"
    browser.run("document.querySelector('#save').click()")
    saved = downloads / "pets-chosen.txt"
    browser.wait(f"document.querySelector('#count').textContent.includes('saved to {saved.name}')")
    for _ in range(100):
        if saved.is_file():
            break
        browser.run("new Promise(done => setTimeout(done, 50))")
    assert browser.complaints() == []
    assert browser.run("document.title") == "pets: scan results"
    gone = report.quarantine(tmp_path / "aside", only=saved)
    assert set(gone.files) == {f"train/cat/{name}" for name in HOSTILE} | {"val/dog/0.jpg"}
    assert gone.left == []


@pytest.mark.slow
@needs_browser
def test_full_size_comes_from_the_disk_and_nothing_else_is_asked_for(
    dirty: Path, tmp_path: Path, browser: Browser
) -> None:
    """Images open by any name from beside the page; where they are gone, their preview is shown."""
    (tmp_path / "pages").mkdir()
    report = scan_images(dirty, workers=1)
    report.to_html(tmp_path / "pages/page.html")
    browser.open(tmp_path / "pages/page.html")
    assert browser.requests() == [(tmp_path / "pages/page.html").as_uri()]
    full = "document.querySelector('#full > img')"
    for name in ("copy.jpg", HOSTILE[4], HOSTILE[5], HOSTILE[9], HOSTILE[10]):
        files = content(tmp_path / "pages/page.html")[0]["files"]
        at = next(number for number, file in enumerate(files) if file["path"].endswith(name))
        browser.run(f"document.querySelector('li[data-f=\"{at}\"] .picture').click()")
        browser.wait(f"{full}.complete && {full}.naturalWidth === 320")  # a cut file is shown as far as it goes
        browser.press("Escape")
    assert all(url.startswith("file:///") for url in browser.requests())
    assert browser.complaints() == []
    dirty.rename(tmp_path / "elsewhere")
    browser.open(tmp_path / "pages/page.html")
    browser.run("document.querySelector('#leak .picture').click()")
    browser.wait(f"{full}.src.startsWith('data:') && {full}.naturalWidth === 160")
    assert "this is its preview" in browser.run("document.querySelector('#fulltext').textContent")


@pytest.mark.slow
@needs_browser
def test_copies_are_side_by_side_with_what_differs(dirty: Path, tmp_path: Path, browser: Browser) -> None:
    """Size and bytes of a smaller copy are marked, and the difference of the pictures is shown."""
    scan_images(dirty, workers=1).to_html(tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    exact, near = browser.run(
        "[...document.querySelectorAll('.group')].map(g => [...g.querySelectorAll('b')].map(b => b.textContent))"
    )
    assert exact == ["train/dog", "val/dog"]
    assert {"320 \u00d7 260", "240 \u00d7 195"} <= set(near)
    assert browser.run("document.querySelectorAll('.difference').length") == 1
    assert "similarity 0.9" in browser.run("document.querySelectorAll('.group')[1].textContent")


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("colors", ["light", "dark"])
def test_it_fits_narrow_screens_and_can_be_read(dirty: Path, tmp_path: Path, browser: Browser, colors: str) -> None:
    """Nothing sticks out at 320 pixels, text stands out from what is behind it, and every control has a name."""
    scan_images(dirty, workers=1).to_html(tmp_path / "page.html")
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": colors}])
    browser.call("Emulation.setDeviceMetricsOverride", width=320, height=700, deviceScaleFactor=1, mobile=True)
    browser.open(tmp_path / "page.html")
    assert browser.run("document.documentElement.scrollWidth") == 320
    assert browser.run(CONTRAST) >= 4.5
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    controls = [node for node in tree if node.get("role", {}).get("value") in ("button", "checkbox", "link", "image")]
    assert len(controls) > 40
    assert [node for node in controls if not node["ignored"] and not node["name"]["value"]] == []
    roles = {node["role"]["value"] for node in tree if "role" in node}
    assert {"banner", "navigation", "main", "region", "list", "listitem", "status", "heading"} <= roles


@pytest.mark.slow
@needs_browser
def test_five_thousand_findings_are_there_in_two_seconds(tmp_path: Path, jpegs: list[bytes], browser: Browser) -> None:
    """Each with its thumbnail: cards are made as they are asked for, down to the last one."""
    (tmp_path / "many").mkdir()
    for number in range(5000):
        (tmp_path / f"many/{number:04}.jpg").write_bytes(jpegs[number % 12])
    found = [Finding(f"{tmp_path}/many/{number:04}.jpg", "tiny", "odd", "small") for number in range(5000)]
    ScanReport(f"{tmp_path}/many", found).to_html(tmp_path / "page.html")
    assert sum(map(bool, content(tmp_path / "page.html")[1])) == 5000
    browser.open(tmp_path / "page.html")
    assert int(browser.run("document.documentElement.dataset.ready")) < 2000
    cards = "document.querySelectorAll('#tiny .card').length"
    assert browser.run(cards) == 24
    browser.run("document.querySelector('#tiny label input').click()")
    assert browser.run("document.querySelector('#count').textContent") == "5,000 files chosen"
    browser.run("while (!document.querySelector('#tiny .more').hidden) document.querySelector('#tiny .more').click()")
    assert browser.run(cards) == 5000
    assert browser.run("document.querySelectorAll('#tiny .card :checked').length") == 5000


@pytest.mark.slow
@needs_browser
def test_pages_of_nothing_of_one_and_of_odd_names(
    pets: Path, jpegs: list[bytes], tmp_path: Path, browser: Browser
) -> None:
    """Zero, one and a few findings; a list from each is what a quarantine takes, and it moves what was chosen."""
    longest = "\U0001f431" * 50 + "x" * 46 + ".jpg"  # 250 bytes
    names = [
        "50% off.jpg",
        "%2e%2e%2f.jpg",
        "\u2066left\u2069.jpg",
        "\U0001f469\u200d\U0001f52c \ufe0f.jpg",
        longest,
        "'.jpg",
    ]
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "downloads"))
    for count in (0, 1, len(names)):
        for number, name in enumerate(names[:count]):
            (pets / "train/cat" / name).write_bytes(jpegs[10][: 3000 + number])
        report = scan_images(pets, workers=1)
        page = tmp_path / f"{count}.html"
        report.to_html(page)
        browser.open(page)
        assert browser.run("document.querySelectorAll('section').length") == bool(count)
        assert browser.run("document.querySelector('#save').disabled")
        assert browser.run("document.querySelector('#tools').hidden") == (not count)  # there is nothing to choose
        assert ("moves the files that you have chosen" in browser.run("document.body.innerText")) == bool(count)
        assert ("No problems found." in browser.run("document.body.innerText")) == (not count)
        if count:
            words = browser.run("document.querySelector('#truncated label').textContent")
            assert words == ("Choose it" if count == 1 else f"Choose all {count}")
            browser.run("document.querySelector('#truncated label input').click()")
            browser.run("document.querySelector('#save').click()")
            saved = tmp_path / "downloads/pets-chosen.txt"
            browser.wait("document.querySelector('#count').textContent.includes('saved to')")
            for _ in range(100):
                if saved.is_file():
                    break
                browser.run("new Promise(done => setTimeout(done, 50))")
            gone = report.quarantine(tmp_path / "aside", only=saved)
            saved.unlink()
            assert set(gone.files) == {f"train/cat/{name}" for name in names[:count]}
            assert gone.left == []
        assert browser.complaints() == []
