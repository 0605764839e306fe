"""The page of a report in a browser: what moves, with mouse and keys."""

import numpy as np
import pytest
from helpers import browser

import keras_simclr as simclr
from keras_simclr import report

pytestmark = [
    pytest.mark.usefixtures("eagerly"),
    pytest.mark.skipif(
        browser.found() is None,
        reason="No browser: `apt-get install chromium` brings one.",
    ),
]
NAME = '<b>&"it\'s".png'


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A report of 60 images in two classes, one with an odd name."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    images = rng.integers(0, 90, (60, 8, 8, 3), "uint8")
    images += (150 * labels[:, None, None, None]).astype("uint8")
    encoder = simclr.ResNet(
        10, width_multiplier=0.25, stem="cifar", input_shape=(8, 8, 3)
    )
    output_dir = tmp_path_factory.mktemp("page") / "out"
    report.write(
        output_dir,
        simclr.SimCLRModel(encoder, views=4),
        (images, np.where(labels, "light", "dark").tolist()),
        names=[NAME, *(f"photo-{x}.png" for x in range(1, 60))],
    )
    return output_dir / report.PAGE


@pytest.fixture(scope="module")
def chromium():
    with browser.browsing() as page:
        yield page


@pytest.fixture
def page(chromium, path):
    chromium.open(path)
    chromium.wait("document.getElementById('map').dataset.ready")
    chromium.run("document.getElementById('map').scrollIntoView()")
    return chromium


def zoom(page):
    page.run("new Promise(requestAnimationFrame)")
    return float(page.run("document.getElementById('map').dataset.zoom"))


def box(page):
    return page.run(
        "(() => { const box = document.getElementById('map')"
        ".getBoundingClientRect();"
        "return [box.x, box.y, box.width, box.height]; })()"
    )


def place_of(page, number):
    """Where an image is in the window, while the whole map is shown."""
    left, top, width, height = box(page)
    x, y = (
        float(page.run(f"document.getElementById('i{number}').dataset.{axis}"))
        for axis in "xy"
    )
    return (
        left + width / 2 + x * (width / 2 - 24),
        top + height / 2 - y * (height / 2 - 24),
    )


def tip(page):
    page.run("new Promise(requestAnimationFrame)")
    return page.run(
        "(() => { const tip = document.getElementById('tip');"
        "return tip.hidden ? null : tip.textContent; })()"
    )


def test_nothing_is_fetched_and_nothing_goes_wrong(page, path):
    others = [
        x
        for x in page.requests
        if not x.startswith("data:image/webp;") and x != path.as_uri()
    ]
    assert not others
    # Pictures are there, and the map is drawn.
    assert page.run(
        "[...document.querySelectorAll('image')].every("
        "(x) => x.href.baseVal.startsWith('data:image/webp'))"
    )
    assert page.run(
        "(() => { const map = document.getElementById('map');"
        "const pixels = map.getContext('2d').getImageData("
        "0, 0, map.width, map.height).data;"
        "return new Set(pixels).size > 20; })()"
    )


def test_mouse_over_an_image_shows_its_name(page):
    page.mouse("mouseMoved", *place_of(page, 0))
    found = tip(page)
    assert found is not None
    names = [NAME, *(f"photo-{x}.png" for x in range(1, 60))]
    assert found.startswith(tuple(names))
    assert "likeness" in found
    page.mouse("mouseMoved", 5, 5)
    assert tip(page) is None


@pytest.mark.fault(76)
def test_odd_name_is_text_wherever_it_is_shown(page):
    page.run(
        "(() => { const search = document.getElementById('search');"
        "search.value = '<b>';"
        "search.dispatchEvent(new Event('input')); })()"
    )
    status = page.run("document.getElementById('status').textContent")
    assert status.startswith("1 of 60 names")
    page.run("document.getElementById('search').focus()")
    page.key("Enter")
    assert tip(page).startswith(NAME)
    assert page.run("document.querySelectorAll('main b').length") == 0


def test_wheel_keys_and_buttons_zoom(page):
    left, top, width, height = box(page)
    middle = left + width / 2, top + height / 2
    assert zoom(page) == 1
    page.mouse("mouseWheel", *middle, deltaX=0, deltaY=-400)
    page.wait("document.getElementById('map').dataset.zoom > 2")
    page.run("document.getElementById('map').focus()")
    page.key("0", "0")
    assert zoom(page) == 1
    page.key("+", "+")
    assert zoom(page) == 1.5
    page.key("-", "-")
    assert zoom(page) == 1
    page.run("document.getElementById('closer').click()")
    assert zoom(page) == 1.5
    page.run("document.getElementById('whole').click()")
    assert zoom(page) == 1


def test_two_fingers_zoom(page):
    left, top, width, height = box(page)
    x, y = left + width / 2, top + height / 2
    for kind, distance in (
        ("touchStart", 40),
        ("touchMove", 60),
        ("touchMove", 120),
    ):
        points = [{"x": x - distance, "y": y}, {"x": x + distance, "y": y}]
        points = [{**point, "id": n} for n, point in enumerate(points)]
        page.send("Input.dispatchTouchEvent", type=kind, touchPoints=points)
    page.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    page.wait("document.getElementById('map').dataset.zoom > 2")


def test_keys_go_from_image_to_image_and_to_the_table(page):
    page.run("document.getElementById('map').focus()")
    page.key("ArrowRight")
    first = tip(page)
    assert first is not None
    seen = {first}
    for key in ("ArrowRight", "ArrowUp", "ArrowLeft", "ArrowDown"):
        page.key(key)
        seen.add(tip(page))
    assert len(seen) > 1
    status = page.run("document.getElementById('status').textContent")
    name = status.split(",")[0]
    page.key("Enter")
    assert page.run("document.getElementById('images').open")
    assert name in page.run("document.activeElement.textContent")


def test_a_class_is_shown_alone(page):
    page.run(
        "(() => { const choice = document.getElementById('of-class');"
        "choice.value = '1';"
        "choice.dispatchEvent(new Event('change')); })()"
    )
    page.run("document.getElementById('map').focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "ArrowLeft"):
        page.key(key)
        assert "light" in tip(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_in_both_schemes(chromium, path, scheme):
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    chromium.open(path, 390, 844, media=media, touch=True)
    chromium.wait("document.getElementById('map').dataset.ready")
    assert chromium.run("document.documentElement.scrollWidth") == 390
    colour = chromium.run("getComputedStyle(document.body).backgroundColor")
    assert (colour == "rgb(255, 255, 255)") == (scheme == "light")
    # An image and its views stand beside each other.
    assert chromium.run(
        "[...document.querySelectorAll('.views')].every((row) => new Set("
        "[...row.children].map((x) => x.getBoundingClientRect().top)"
        ").size === 1)"
    )


def test_printed_map_keeps_its_proportions(page):
    page.send("Emulation.setEmulatedMedia", media="print")
    assert page.run(
        "(() => { const map = document.getElementById('map');"
        "[map.width, map.height] = [900, 300];"
        "const box = map.getBoundingClientRect();"
        "return Math.abs(box.width / box.height - 3) < 0.05; })()"
    )
