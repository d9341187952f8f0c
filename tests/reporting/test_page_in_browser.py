"""The pages in a real browser: nothing on the console, no request, sorting works."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from featcache.reporting.comparison import write_comparison
from featcache.reporting.run_page import QUICK, write_run_page

from .pages import HOSTILE, make_odd_run, toy_images

pytestmark = pytest.mark.slow
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run
--disable-background-networking --disable-component-update --disable-sync""".split()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    reports = tmp_path_factory.mktemp("reports")
    run, features = make_odd_run(reports, "mlp", folds=3, right_rate=0.9)
    for head, rate in (("svm", 0.5), ("knn", 0.7)):
        make_odd_run(reports, head, folds=3, right_rate=rate, backbones=("big",))
    images = toy_images(features)
    write_run_page(run.folder, features=features, images=images, depth=QUICK)
    write_comparison(reports)
    return reports


@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs: pip install selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.chrome.service.Service(driver)
    opened = webdriver.Chrome(options=options, service=service)
    yield opened
    opened.quit()


def find(reports: Path, name: str) -> Path:
    return next(reports.rglob(name))


def look(browser, width: int, mode: str) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": mode}]},
    )
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )


@pytest.mark.parametrize("name", ["report.html", "comparison.html"])
def test_opens_quietly_and_asks_for_nothing(browser, pages, name):
    browser.get_log("performance")  # what came before this page
    browser.get(find(pages, name).as_uri())
    assert browser.get_log("browser") == []
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    addresses = [
        one["params"]["request"]["url"]
        for one in asked
        if one["method"] == "Network.requestWillBeSent"
        and one["params"].get("documentURL", "").startswith("file:")
    ]
    outside = [a for a in addresses if not a.startswith("data:") and not a.endswith(name)]
    assert outside == []
    assert HOSTILE in browser.execute_script("return document.body.innerText")
    assert browser.execute_script("return document.scripts.length") == 1


@pytest.mark.parametrize("name", ["report.html", "comparison.html"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_hangs_over_the_edge(browser, pages, name, width):
    look(browser, width, "light")
    browser.get(find(pages, name).as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    broken = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert browser.execute_script(broken) == 0


def test_dark_is_dark(browser, pages):
    colours = []
    for mode in ("light", "dark"):
        look(browser, 1280, mode)
        browser.get(find(pages, "report.html").as_uri())
        colours.append(
            browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        )
    assert colours[0] == "rgb(255, 255, 255)"
    assert max(int(c) for c in colours[1].strip("rgb()").split(",")) < 60


def test_sorting(browser, pages):
    browser.get(find(pages, "comparison.html").as_uri())
    state = """
      const table = document.querySelector('table.sortable');
      const heads = [...table.tHead.rows[0].cells];
      const column = heads.findIndex(h => h.textContent.includes(arguments[0]));
      if (arguments[1]) heads[column].querySelector('button').click();
      return [heads.map(h => h.getAttribute('aria-sort')).filter(Boolean),
              heads[column].getAttribute('aria-sort'),
              [...table.tBodies[0].rows].map(r => r.cells[column].dataset.value
                                                   ?? r.cells[column].textContent.trim())];
    """
    for column, kind in (("accuracy", float), ("one fit", float), ("run", str)):
        _, first, one = browser.execute_script(state, column, True)
        all_, second, two = browser.execute_script(state, column, True)
        assert len(all_) == 1
        assert {first, second} == {"ascending", "descending"}
        assert first == ("ascending" if kind is str else "descending")
        values = [kind(value) for value in one]
        assert values == [kind(value) for value in two][::-1]
        if kind is float:
            assert values == sorted(values, reverse=True)
    _, _, places = browser.execute_script(state, "p", False)
    assert len(places) == 3


POINT = """
  const svg = document.querySelector('svg.dots');
  const at = svg.getScreenCTM();
  const point = svg.querySelector(arguments[0]);
  svg.dispatchEvent(new PointerEvent('pointermove', {
    clientX: point.x.baseVal.value * at.a + at.e, clientY: point.y.baseVal.value * at.d + at.f}));
  return [point.dataset.id, document.querySelector('.info').innerText,
          document.querySelectorAll('.info img').length];
"""
FILTER = """
  const form = document.querySelectorAll('form.filter')[arguments[0]];
  form.elements[arguments[1]].value = arguments[2];
  form.dispatchEvent(new Event('input', {bubbles: true}));
  return form.querySelector('output').textContent;
"""


def test_pointing_at_an_image_shows_it(browser, pages):
    browser.get(find(pages, "report.html").as_uri())
    id_, said, pictures = browser.execute_script(POINT, "use.wrong")
    assert pictures == 1
    assert id_ in said
    assert "wrong" in said
    id_, said, _ = browser.execute_script(POINT, "use[data-id]:not(.wrong)")
    assert id_ in said
    assert "wrong" not in said
    assert browser.get_log("browser") == []  # the policy refuses none of it


def test_arrow_keys_go_from_point_to_point(browser, pages):
    browser.get(find(pages, "report.html").as_uri())
    key = """
      const svg = document.querySelector('svg.dots');
      svg.focus();
      svg.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], cancelable: true}));
      const ring = svg.querySelector('.here');
      return [document.activeElement === svg, ring.cx.baseVal.value];
    """
    x = browser.execute_script(key, "ArrowLeft")[1]
    focused, left = browser.execute_script(key, "ArrowLeft")
    assert focused
    assert left < x
    assert browser.execute_script(key, "ArrowRight")[1] > left
    assert browser.execute_script("return document.querySelector('.info').innerText") != ""
    browser.execute_script(key, "Escape")
    assert browser.execute_script("return document.querySelector('.info').innerText") == ""


def test_filters_leave_what_fits(browser, pages):
    browser.get(find(pages, "report.html").as_uri())
    count = "return document.querySelectorAll(arguments[0]).length"
    for number, items in enumerate(("li[data-id]", "use[data-id]")):
        every = browser.execute_script(count, items)
        assert browser.execute_script(FILTER, number, "kind", "") == f"{every} of {every} shown"
        said = browser.execute_script(FILTER, number, "kind", "wrong")
        assert said == f"{browser.execute_script(count, f'{items}:not([hidden])')} of {every} shown"
        assert 0 < int(said.split()[0]) < every
        browser.execute_script(FILTER, number, "kind", "")
        first = f"return document.querySelector('{items}').dataset.id"
        id_ = browser.execute_script(first).upper()
        assert browser.execute_script(FILTER, number, "part", id_) == f"1 of {every} shown"
        assert browser.execute_script(FILTER, number, "part", "no such") == f"0 of {every} shown"


def test_without_scripts_it_is_a_picture(browser, pages):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(find(pages, "report.html").as_uri())
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    shown = "return getComputedStyle(document.querySelector(arguments[0])).display"
    assert browser.execute_script(shown, "form.filter") == "none"
    assert browser.execute_script("return document.querySelector('svg.dots').getBBox().width") > 300
