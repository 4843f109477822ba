"""The page on which pictures are compared, in a browser: what it shows, and what moves it."""

import shutil

import cv2
import numpy as np
import pytest
from small_browser import CHROMIUM, Browser
from small_data import write_rgb

from hidiff.restore.page import PageEntry, write_page

pytestmark = [
    pytest.mark.slow("starts a browser"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here"),
]

RED, BLUE, GREEN = (200, 40, 40), (40, 40, 200), (40, 160, 40)
DETAIL = np.random.default_rng(0).integers(0, 256, (600, 900, 3), np.uint8)
"""A picture in which no pixel is like its neighbours."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("browser") / "profile")
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A page with four pictures: plain colours, detail, detail without a sharp one, TIFF."""
    folder = tmp_path_factory.mktemp("page")
    for name, colour in (("red", RED), ("blue", BLUE), ("green", GREEN)):
        write_rgb(folder / f"{name}.png", np.full((300, 400, 3), colour, np.uint8))
    write_rgb(folder / "d'étail #1.png", DETAIL)
    write_rgb(folder / "negative.png", 255 - DETAIL)
    write_rgb(folder / "sixteen.tif", np.full((300, 400, 3), RED, np.uint16) * np.uint16(257))
    red, blue, green, detail, negative, sixteen = (
        folder / name
        for name in (
            "red.png", "blue.png", "green.png", "d'étail #1.png", "negative.png", "sixteen.tif",
        )
    )  # fmt: skip
    entries = [
        PageEntry("colours", red, blue, green, {"PSNR": "20.00 → 30.00 dB"}),
        PageEntry("detail", detail, negative, detail),
        PageEntry("no sharp one", detail, negative),
        PageEntry("sixteen", sixteen, blue, steps=[green, blue]),
    ]
    for embed in (False, True):
        name = "embedded" if embed else "page"
        assert not write_page(folder / f"{name}.html", entries, title="Title", embed=embed)
    return folder


@pytest.fixture
def page(browser, folder):
    """The page in a window of 1000×700 pixels."""
    browser.open((folder / "page.html").as_uri(), 1000, 700)
    yield browser
    assert browser.complaints == []


def look(browser):
    """A screenshot, once the pictures are there."""
    browser.js("Promise.all(VERSIONS.map($).filter(i => i.src).map(i => i.decode())).then(() => 0)")
    return browser.screenshot()


def box(browser, element):
    """(left, top, right, bottom) of an element, in CSS pixels."""
    sides = browser.js(f"Object.values({element}.getBoundingClientRect().toJSON())")
    return tuple(sides[index] for index in (7, 4, 5, 6))


def area(browser):
    """(left, top, right, bottom) of the picture, in CSS pixels."""
    return box(browser, "$(state.view[1])")


def now(browser):
    """What the slider says of itself, in percent."""
    return int(browser.js("handle.getAttribute('aria-valuenow')"))


def handle(browser):
    """The middle of the divider."""
    left, top, right, bottom = box(browser, "handle")
    return (left + right) / 2, (top + bottom) / 2


def is_divided(browser, x, left=RED, right=BLUE, *, ratio=1):
    """Whether the picture is of one colour left of x (in CSS pixels) and of another one right."""
    image = look(browser)
    start, top, end, bottom = (round(side * ratio) for side in area(browser))
    row, x = image[(3 * top + bottom) // 4], round(x * ratio)
    band = 8 * ratio  # The divider itself and its shadow.
    return (row[start : max(x - band, start)] == left).all() and (
        row[min(x + band, end) : end] == right
    ).all()


def test_the_slider_is_clicked_and_dragged(page):
    left, _, right, bottom = area(page)
    assert is_divided(page, (left + right) / 2)
    page.mouse((left + 100, bottom - 20))
    assert now(page) == round(100 * 100 / (right - left))
    assert is_divided(page, left + 100)
    x, y = handle(page)
    assert x == pytest.approx(left + 100, abs=1)
    page.mouse((x, y), (x + 40, y + 5), (left + 0.8 * (right - left), y))
    assert now(page) == 80
    assert is_divided(page, left + 0.8 * (right - left))
    # It stays within the picture.
    page.mouse(handle(page), (right + 200, y))
    assert now(page) == 100
    assert is_divided(page, right)
    page.mouse((left + 10, y), (left + 60, y), button="right")
    assert now(page) == 100


def test_the_slider_has_keys(page):
    page.js("handle.focus()")
    assert page.js("handle.getAttribute('role')") == "slider"
    assert (page.js("handle.ariaValueMin"), page.js("handle.ariaValueMax")) == ("0", "100")
    page.keys("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowRight")
    assert now(page) == 52
    left, _, right, _ = area(page)
    assert is_divided(page, left + 0.52 * (right - left))
    page.keys("Home")
    assert now(page) == 0
    assert is_divided(page, left)
    page.keys("End")
    assert now(page) == 100
    assert is_divided(page, right)


def test_zoom_shows_the_pixels_as_they_are(page):
    page.keys("ArrowDown", "Home")
    left, top, right, bottom = map(int, box(page, "stage"))
    for factor, step in ((1, "+"), (2, "+"), (4, "+"), (4, "+"), (2, "-"), (1, "-")):
        page.keys(step)
        x, y, *_ = area(page)
        assert (x, y) == (round(x), round(y))
        image = look(page)[top + 60 : bottom, left + 60 : right]
        whole = cv2.resize(
            255 - DETAIL, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST
        )
        start = top + 60 - round(y), left + 60 - round(x)
        shown = whole[start[0] :, start[1] :][: image.shape[0], : image.shape[1]]
        assert np.array_equal(image[: shown.shape[0], : shown.shape[1]], shown), factor
    page.keys("0")
    assert area(page)[2:] <= (right, bottom)
    assert page.js("getComputedStyle($('after')).imageRendering") == "auto"


def test_both_views_move_together(page):
    page.keys("ArrowDown", "+", "+", "+")
    before = box(page, "$('before')")
    assert before == box(page, "$('after')")
    assert before[2] - before[0] == 4 * 900
    x, y = handle(page)
    page.mouse((x + 100, y), (x + 150, y + 10), (x + 40, y - 30))
    moved = box(page, "$('before')")
    assert moved == tuple(a + b for a, b in zip(before, (-60, -30, -60, -30), strict=True))
    assert moved == box(page, "$('after')")
    assert now(page) == 50
    page.keys("Shift+ArrowLeft", "Shift+ArrowUp")
    assert area(page)[:2] == (moved[0] + 80, moved[1] + 80)
    # The divider is dragged while the picture stays.
    page.mouse(handle(page), (x - 100, y))
    assert area(page)[:2] == (moved[0] + 80, moved[1] + 80)
    assert now(page) < 50
    # No further than to the picture's edge.
    page.mouse((x, y), (x + 5000, y + 5000))
    assert box(page, "$('before')")[:2] == box(page, "$('after')")[:2] == box(page, "stage")[:2]


def test_wheel_and_double_click_zoom_where_they_point(page):
    page.keys("ArrowDown")
    left, top, *_ = box(page, "stage")
    x, y = left + 200, top + 150

    def at():
        start, above, end, below = area(page)
        return (x - start) / (end - start), (y - above) / (below - above)

    page.js("setZoom(1)")
    point = at()
    for turn, zoom in ((-100, 2), (100, 1)):
        page("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=turn)
        assert page.js("state.zoom") == zoom
        assert at() == pytest.approx(point, abs=2 / 900)
    for zoom in ("fit", 1):
        for count in (1, 2):
            page.mouse((x, y), count=count)
        assert page.js("state.zoom") == zoom


def test_the_views_are_chosen(page):
    def names():
        return page.js("[...$('views').children].filter(b => !b.hidden).map(b => b.textContent)")

    assert names() == ["Before | after", "After | sharp", "Before", "After", "Sharp"]
    left, _, right, _ = area(page)
    colours = ((BLUE, GREEN), (RED, RED), (BLUE, BLUE), (GREEN, GREEN), (RED, BLUE))
    for key, (first, second) in zip("23451", colours, strict=True):
        page.keys(key)
        assert (
            page.js("$('views').querySelector('[aria-pressed=true]').textContent")
            == (names()[int(key) - 1])
        )
        assert is_divided(page, (left + right) / 2, first, second)
        assert page.js("handle.hidden") == (first == second)
    x, y, *_ = box(page, "$('views').lastChild")
    page.mouse((x + 5, y + 5))
    assert is_divided(page, left, GREEN, GREEN)
    # Where there is no sharp picture, the view that needs it is left.
    page.keys("ArrowDown", "ArrowDown")
    assert names() == ["Before | after", "Before", "After"]
    page.keys("5")
    assert page.js("state.view.join()") == "before,after"


def test_the_list_leads_through_the_pictures(page):
    count = "$('count').textContent"
    assert page.js(count) == "1 / 4"
    assert "20.00 → 30.00 dB" in page.js("$('about').textContent")
    page.keys("ArrowUp")
    assert page.js(count) == "1 / 4"
    page.keys("ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown")
    assert page.js(count) == "4 / 4"
    assert page.js("$('next').disabled")
    left, _, right, _ = area(page)
    assert is_divided(page, (left + right) / 2)  # The TIFF of 16 bits is red too.
    # Of the reverse process there are two steps, the last of which is the result.
    assert page.js("[...$('steps').children].map(step => step.textContent).join()") == "z 1,z 0"
    page.js("$('steps').firstChild.click()")
    assert is_divided(page, (left + right) / 2, RED, GREEN)
    x, y, *_ = box(page, "$('previous')")
    page.mouse((x + 5, y + 5))
    assert page.js("$('about').firstChild.textContent") == "no sharp one"
    assert page.js("$('steps').hidden")
    x, y, *_ = box(page, "items[1]")
    page.mouse((x + 5, y + 5))
    assert page.js(count) == "2 / 4"


def test_a_phone(browser, folder):
    browser.open((folder / "page.html").as_uri(), 360, 740, touch=True, ratio=3)
    left, _, right, _ = area(browser)
    assert round(3 * (right - left)) == 2 * 400
    assert is_divided(browser, 180, ratio=3)
    goal = left + 0.25 * (right - left)
    browser.touch([handle(browser)], [(150, 300)], [(goal, 310)])
    assert now(browser) == 25
    assert is_divided(browser, goal, ratio=3)
    # Everything is within the window, and large enough for a finger.
    assert browser.js("document.documentElement.scrollWidth") == 360
    for name in ("views", "zooms"):
        for index in range(browser.js(f"$('{name}').children.length")):
            x, y, to_x, to_y = box(browser, f"$('{name}').children[{index}]")
            assert 0 <= x < to_x <= 360
            assert to_y - y >= 30
            assert to_y <= 740
    browser.js("select(1)")
    # Two fingers zoom, one moves the picture.
    browser.touch([(170, 200), (190, 200)], [(140, 200), (220, 200)], [(90, 200), (270, 200)])
    assert browser.js("state.zoom") != "fit"
    browser.js("setZoom(4)")
    before = box(browser, "$('before')")
    browser.touch([(100, 150)], [(130, 160)], [(70, 140)])
    moved = box(browser, "$('before')")
    assert moved == box(browser, "$('after')")
    assert moved[:2] == pytest.approx((before[0] - 30, before[1] - 10), abs=0.34)
    browser.touch([(100, 200), (260, 200)], [(140, 200), (220, 200)], [(175, 200), (185, 200)])
    assert browser.js("shown.factor") < 4 / 3
    assert browser.complaints == []


def test_light_and_dark(page):
    _, top, right, bottom = map(round, box(page, "stage"))
    for scheme in ("light", "dark"):
        page("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": scheme}
        ])  # fmt: skip
        image = look(page)
        for x, y in ((500, 5), (right - 3, top + 3), (300, bottom + 3)):
            assert image[y, x].mean() > 200 if scheme == "light" else image[y, x].mean() < 60
    page("Emulation.setEmulatedMedia", features=[])


def test_nothing_comes_from_elsewhere(page):
    look(page)
    assert {url.split(":")[0] for url in page.requests} == {"file", "data"}
    # And nothing could: neither a request nor a script that got into the page.
    blocked = """new Promise(done => {
        const found = [];
        document.addEventListener("securitypolicyviolation", event => {
            found.push(event.effectiveDirective);
            if (found.length === 3) done(found.sort());
        });
        fetch("https://localhost:1/").catch(() => 0);
        document.body.insertAdjacentHTML("beforeend",
            '<img src="https://localhost:1/x.png"><p onclick="window.run = 1">');
        document.body.lastChild.click();
    })"""
    assert page.js(blocked) == ["connect-src", "img-src", "script-src-attr"]
    assert page.js("window.run") is None
    page.complaints.clear()


def test_an_embedded_page_stands_alone(browser, folder, tmp_path):
    shutil.copy(folder / "embedded.html", tmp_path)
    browser.open((tmp_path / "embedded.html").as_uri(), 1000, 700)
    left, _, right, _ = area(browser)
    assert is_divided(browser, (left + right) / 2)
    browser.keys("End", "5")
    assert is_divided(browser, right, GREEN, GREEN)
    browser.js("select(3)")
    assert is_divided(browser, right)
    assert {url.split(":")[0] for url in browser.requests} == {"file", "data"}
    assert browser.complaints == []


def test_a_picture_that_is_gone_is_named(browser, folder, tmp_path):
    for name in ("page.html", "red.png", "green.png"):
        shutil.copy(folder / name, tmp_path)
    browser.open((tmp_path / "page.html").as_uri(), 1000, 700)
    assert not browser.js("$('problem').hidden")
    assert "blue.png" in browser.js("$('problem').textContent")
