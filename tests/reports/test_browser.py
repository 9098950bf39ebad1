"""The page in a real browser, opened from disk with the network off. Skipped, with the reason, where there is none."""

import json
import math
import os
import shutil

import pytest

from reports.__main__ import main
from tests.reports.reports_data import compile_table, gpu_like_results, loop_table
from tests.reports.test_sides import document, written

pytestmark = [pytest.mark.cpu, pytest.mark.slow]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PHONE, WIDE = {"width": 375, "height": 800}, {"width": 1600, "height": 1000}


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the PATH")
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # it refuses root otherwise
    with sync.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=sandbox)
        yield started
        started.close()


def smaller(content):
    """One net of it: every kind of row, and axe takes seconds."""

    def kept(row):
        return row.get("extra_info", row)["net"] == "DiracNet-28-10"

    return {
        key: [row for row in part if kept(row)] if isinstance(part, list) else part for key, part in content.items()
    }


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    files = [folder / f"{name}.json" for name in ("results", "compile", "loops")]
    for file, content in zip(files, (gpu_like_results(), compile_table(), loop_table()), strict=True):
        file.write_text(json.dumps(content if file.stem == "loops" else smaller(content)))
    assert main([*map(str, files), "--output", str(folder)]) == 0
    return (folder / "index.html").as_uri()


@pytest.fixture
def opened(browser, address):
    """``opened(**settings)``: the page in a context of these settings. What it complains of fails the test."""
    contexts, complaints = [], []

    def open_page(part="", **settings):
        context = browser.new_context(offline=True, **{"viewport": WIDE} | settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith(address) else complaints.append(asked.url))
        page.goto(address + part)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


def shown(page):
    return page.locator("#layers tr[id]:not([hidden])")


def test_words_and_verdicts_choose_rows(opened):
    page = opened()
    every = shown(page).count()
    page.fill("[name=words]", "wgrad FLOAT16 160x16x16-320")
    names = shown(page).locator("th a").all_inner_texts()
    assert 0 < len(names) < every
    assert set(names) == {"160x16x16-320 3x3"}
    assert shown(page).first.is_visible(), "what has a chosen row is open"
    page.click("text=All rows")
    page.select_option("[name=verdict]", "slower")
    page.select_option("[name=contender]", "triton")
    cells = shown(page).locator("td[data-h=triton]").evaluate_all("cells => cells.map(cell => cell.dataset.w)")
    assert cells
    assert set(cells) == {"slower"}
    assert page.inner_text("form.filter output") == f"{len(cells)} of {every} rows"
    page.click("text=All rows")
    # A locator waits by itself; wait_for_function evaluates a string, which the page's policy forbids.
    page.locator("#layers tr[id][hidden]").first.wait_for(state="detached")


def test_a_click_on_a_header_sorts_by_its_numbers_under_each_heading(opened):
    page = opened()
    table = page.locator("#layers details.net:has(td[data-h=triton]) table").first
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    values = """table => [...table.tBodies[0].rows].map(row => row.className === 'part' ? null
        : Number(row.querySelector('td[data-h=triton]').dataset.v || 'Infinity'))"""
    before = table.evaluate(values)
    for order, sign in (("ascending", 1), ("descending", -1)):
        table.locator("thead th", has_text="triton").first.click()
        after = table.evaluate(values)
        assert [value is None for value in after] == [value is None for value in before], "headings stay"
        group = []
        for value in [*after, None]:
            if value is not None:
                group.append(value)
                continue
            assert group == sorted(group, key=lambda number: number if number == math.inf else sign * number)
            group = []
        assert table.locator(f"thead th[aria-sort={order}]").count() == 1
    assert sorted(map(str, after)) == sorted(map(str, before))


def test_a_link_opens_what_its_row_lies_in(opened):
    page = opened()
    link = page.locator("#verdict .columns a").first
    link.click()
    page.locator("tr:target").wait_for(state="visible")
    assert opened(f"{link.get_attribute('href')}").locator("tr:target").is_visible()


def test_without_javascript_all_is_there_and_no_control_is_dead(opened):
    page = opened(java_script_enabled=False)
    assert page.locator("form.filter").is_hidden()
    assert page.locator("thead button").count() == 0
    for details in page.locator("#layers details.net").all():
        details.locator("> summary").click()
    assert page.locator("#layers tr[id]").first.is_visible()
    assert page.locator("#layers tr[id]").last.is_visible()


@pytest.mark.parametrize("viewport", [PHONE, {"width": 1000, "height": 800}, WIDE], ids=["phone", "middle", "wide"])
def test_the_page_never_scrolls_sideways(opened, viewport):
    page = opened(viewport=viewport)
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]


def test_print_leaves_controls_out_and_shows_what_is_closed(opened):
    page = opened()
    page.emulate_media(media="print")
    assert page.locator("form.filter").is_hidden()
    assert page.locator("#layers tr[id]").first.is_visible()


def test_paper_has_the_tables_and_pictures_of_a_wide_screen(opened):
    """A4 between margins is 700 px, which on a screen would be a phone's: a hundred pages instead of forty."""
    page = opened(viewport={"width": 700, "height": 1000})
    page.emulate_media(media="print")
    assert page.locator("figure .wide").first.is_visible()
    assert page.locator("figure .narrow").first.is_hidden()
    for table in page.locator("#layers table").all()[:3]:
        assert table.evaluate("table => getComputedStyle(table).display") == "table"
    assert page.evaluate("document.documentElement.scrollWidth") <= 700


@pytest.mark.parametrize("viewport", [PHONE, WIDE], ids=["phone", "wide"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened, scheme, viewport):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page = opened(color_scheme=scheme, viewport=viewport)
    for section in ("layers", "tuning", "compiled"):
        page.evaluate(f"document.querySelector('#{section} details').open = true")
    found = axe.Axe().run(page).response["violations"]
    assert not [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("scheme, viewport", [("light", PHONE), ("dark", WIDE)], ids=["light phone", "dark wide"])
def test_a_comparison_fits_its_screen_and_axe_finds_nothing_serious(browser, tmp_path, scheme, viewport):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    files = [written(tmp_path / f"{seed}.json", document(seed, factor=seed / 2)) for seed in (1, 2)]
    assert main(["compare", *map(str, files), "--output", str(tmp_path)]) == 0
    with browser.new_context(offline=True, viewport=viewport, color_scheme=scheme) as context:
        page = context.new_page()
        page.goto((tmp_path / "compare.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
        found = axe.Axe().run(page).response["violations"]
    assert not [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
