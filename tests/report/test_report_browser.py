"""The report in a browser: no errors and no requests, sorting of the table, opening and closing a network's page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from support.report_runs import make_runs, write_network
from support.tables import NETWORKS, write_table

from transfer_caffe import report
from transfer_caffe.results.table import read_results, to_csv
from transfer_caffe.utils.files import write_text

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (make setup installs it)")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium, or set CHROMIUM")

EVIL = "<img src=x onerror=\"document.title='evil'\"><script>document.title='evil'</script>"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report with spaces")
    runs = make_runs(folder)
    write_network(runs / "random0-A3B-s0")
    (runs / "random0-A3B-s0" / "train.log").write_text(EVIL)
    return report.write_report(runs, folder / "out")


class Opened:
    """The report in a new browser tab; records console errors and requests."""

    def __init__(self, browser, path: Path, fragment: str = "", **options):
        self.tab = browser.new_context(**options).new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda message: self.errors.append(message.text))
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(path.as_uri() + fragment)

    def column(self, index: int) -> list[str]:
        return self.tab.locator(f"#networks tbody tr:visible td:nth-child({index + 1})").all_text_contents()

    def require_clean(self) -> None:
        assert self.errors == []
        assert [each for each in self.requests if not each.startswith(("file:", "data:"))] == []
        assert sum(each.startswith("file:") for each in self.requests) == 1


def test_the_page_opens_without_errors_and_asks_for_nothing(browser, page_file):
    opened = Opened(browser, page_file)
    assert opened.tab.locator("h1").text_content() == "How transferable are the features? Recipe demo"
    assert opened.tab.evaluate("[...document.images].every(image => image.naturalWidth > 100)")
    opened.require_clean()


def test_the_table_sorts_by_number_and_by_name_in_both_directions(browser, page_file):
    opened = Opened(browser, page_file)
    header = opened.tab.locator("#networks th button")
    header.get_by_text("accuracy", exact=True).click()
    values = [float(text) for text in opened.column(5)]
    assert values == sorted(values) and len(values) == len(NETWORKS)
    header.get_by_text("accuracy", exact=True).click()
    assert [float(text) for text in opened.column(5)] == sorted(values, reverse=True)
    header.get_by_text("gain", exact=True).click()  # bases have none: they go last
    gains = opened.column(8)
    assert gains[0].startswith("−") and gains[-1] == ""
    header.get_by_text("network", exact=True).click()
    splits = [name.split("-")[0] for name in opened.column(0)]
    assert splits == sorted(splits) and splits[0] == "natman" and splits[-1] == "whole"
    assert opened.tab.locator("#networks th[aria-sort]").count() == 1
    opened.require_clean()


def test_the_filter_shows_the_networks_that_have_all_its_words(browser, page_file):
    opened = Opened(browser, page_file)
    opened.tab.locator("#filter").fill("random0 a3b")
    assert opened.column(0) == ["random0-A3B-s0", "random0-A3B+-s0"]
    assert opened.tab.locator("#shown").text_content() == f"2 of {len(NETWORKS)} shown"
    opened.tab.locator("#filter").fill("")
    assert len(opened.column(0)) == len(NETWORKS)


def test_a_networks_page_opens_on_its_name_and_closes_by_button_escape_and_back(browser, page_file):
    opened = Opened(browser, page_file)
    dialog = opened.tab.locator("dialog")
    for close in (
        lambda: opened.tab.locator(".close").click(),
        lambda: opened.tab.keyboard.press("Escape"),
        lambda: opened.tab.go_back(),
    ):
        assert not dialog.is_visible()
        opened.tab.get_by_role("link", name="random0-A3B-s0", exact=True).click()
        dialog.locator("h2").wait_for()
        assert dialog.locator("h2").text_content() == "random0-A3B-s0"
        assert dialog.locator("svg path.own").count() == 5 and dialog.locator("svg path.paper").count() >= 2
        close()
        dialog.wait_for(state="hidden")
    opened.require_clean()


def test_a_networks_page_has_an_address(browser, page_file):
    opened = Opened(browser, page_file, f"#network/demo/{quote('random0-A3B+-s0')}")
    opened.tab.locator("dialog h2").wait_for()
    assert opened.tab.locator("dialog h2").text_content() == "random0-A3B+-s0"
    opened.require_clean()


def test_what_files_say_is_shown_as_text_and_never_run(browser, page_file, tmp_path):
    opened = Opened(browser, page_file, "#network/demo/random0-A3B-s0")
    opened.tab.locator("dialog summary", has_text="train.log").click()
    assert EVIL in opened.tab.locator("dialog pre").all_text_contents()
    assert opened.tab.title() != "evil"
    opened.require_clean()


def test_a_table_of_anyone_is_shown_as_text(browser, tmp_path):
    write_table(tmp_path, NETWORKS[:4])
    rows = read_results(tmp_path / "results.csv")
    write_text(tmp_path / "results.csv", to_csv(rows).replace("random0-A3A-s0", '"' + EVIL.replace('"', '""') + '"'))
    opened = Opened(browser, report.write_report(tmp_path, tmp_path / "out"))
    opened.tab.get_by_role("link", name=EVIL, exact=True).click()
    opened.tab.locator("dialog h2").wait_for()
    assert opened.tab.locator("dialog h2").text_content() == EVIL
    assert opened.tab.title() != "evil"
    opened.require_clean()


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_on_a_phone_only_tables_and_pictures_scroll_sideways(browser, page_file, colours):
    phone = {"viewport": {"width": 360, "height": 740}, "color_scheme": colours}
    opened = Opened(browser, page_file, "#network/demo/random0-A3B-s0", **phone)
    opened.tab.locator("dialog h2").wait_for()
    assert (
        opened.tab.evaluate(
            "document.querySelector('dialog').scrollWidth - document.querySelector('dialog').clientWidth"
        )
        <= 0
    )
    opened.tab.keyboard.press("Escape")
    assert opened.tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    page, ink = (
        opened.tab.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color")
    )
    bright = [sum(map(int, each.removeprefix("rgb(").rstrip(")").split(","))) for each in (page, ink)]
    assert (bright[0] > bright[1]) == (colours == "light")
    opened.require_clean()
