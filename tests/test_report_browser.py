"""The page that `dotkd report` writes, in a headless Chromium; skipped where chromium and chromedriver are not on PATH.

The contract, at the width of a phone and of a desk, in the light and in the dark:
- nothing is said on the console, every plot shows something, its texts neither overlap nor leave it;
- the page never scrolls sideways; text has a contrast of at least 4.5 : 1, what is drawn of 3 : 1;
- legends, scales, sorting, the choice of a setting and single points can be reached and used by the keyboard;
- without JavaScript the tables and the sentences are there; on paper no legend and no table is cut.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from dotkd.report import write_report
from report_folders import comparison, full_run, tuning
from report_page import Page

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(None in (CHROMIUM, DRIVER), reason="chromium or chromedriver is not installed")

OPTIONS = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
OPTIONS += " disable-component-update disable-sync hide-scrollbars"
PHONE, DESK = 320, 1280

IN_THE_PLOTS = """
return [...document.querySelectorAll(".canvas > svg")].map((svg) => {
  const box = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")].map((text) => {
    const { left, right, top, bottom } = text.getBoundingClientRect();
    // Lines of type are taller than their letters.
    const room = text.hasAttribute("transform") ? 0 : 3;
    return { words: text.textContent, left, right, top: top + room, bottom: bottom - room };
  });
  const out = texts.filter((t) => t.left < box.left - 1 || t.right > box.right + 1 || t.top < box.top - 1
    || t.bottom > box.bottom + 1);
  const over = [];
  texts.forEach((a, place) => texts.slice(place + 1).forEach((b) => {
    if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1) over.push([a.words, b.words]);
  }));
  const drawn = svg.querySelectorAll(".point, circle, .cell").length;
  return { id: svg.closest("[data-figure]").dataset.figure, width: box.width, drawn, out, over };
});
"""

CONTRAST = """
const parts = (colour) => {
  const found = colour.match(/[\\d.]+/g).map(Number);
  return found.length === 4 ? found : [...found, 1];
};
const light = (rgb) => {
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const [r, g, b] = rgb.slice(0, 3).map((v) => linear(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
const behind = (element) => {
  for (let one = element; one; one = one.parentElement) {
    const colour = parts(getComputedStyle(one).backgroundColor);
    if (colour[3] > 0) return colour;
  }
  return [255, 255, 255, 1];
};
const poor = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!own || !element.getClientRects().length || ["SCRIPT", "STYLE", "title"].includes(element.tagName)) continue;
  const style = getComputedStyle(element), drawn = element.tagName === "text";
  const cell = drawn && element.previousElementSibling && element.previousElementSibling.matches(".cell")
    && !element.matches(".tick, .title") ? parts(getComputedStyle(element.previousElementSibling).fill) : null;
  const found = contrast(parts(drawn ? style.fill : style.color), cell || behind(element));
  if (found < 4.5) poor.push([element.tagName, element.textContent.slice(0, 30), found]);
}
for (const element of document.querySelectorAll(".curve, .interval, .point, .bar")) {
  const style = getComputedStyle(element);
  const found = contrast(parts(element.matches(".point") ? style.fill : style.stroke), behind(element));
  if (found < 3) poor.push([element.getAttribute("class"), element.outerHTML.slice(0, 200), found]);
}
return poor;
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything on it, and with names that are long, or mean to be markup."""
    home = tmp_path_factory.mktemp("browser")
    comparison(home / "study", deltas=(0.025, 0.075), faults=True)
    tuning(home / "tuned")
    for lr in (0.01, 0.1):
        full_run(home / f"a-run-with-a-very-long-name-indeed-lr-{lr}", "kd", 0, lr=lr)
    full_run(home / "<img src=x onerror=alert(1)>", "kd+dot", 0, lr=0.1)
    return write_report([home], home / "report.html").path


@pytest.fixture(scope="module")
def browser(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for option in [*OPTIONS.split(), f"user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


def opened(browser: Any, path: Path, *, width: int = DESK, scheme: str = "light") -> Any:
    """The page at `width`, drawn: plots follow the width when the browser next lays the page out."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    wait = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done(true)));"
    browser.execute_async_script(wait)
    return browser


def test_nothing_is_said_on_the_console_and_no_name_runs(browser: Any, path: Path):
    browser.get_log("browser")
    opened(browser, path)
    browser.set_window_size(700, 700)
    assert browser.get_log("browser") == []
    assert not browser.find_elements(By.TAG_NAME, "img")
    assert "<img src=x onerror=alert(1)>" in browser.find_element(By.TAG_NAME, "main").text


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_plots_are_full_and_legible(browser: Any, path: Path, width: int):
    plots = opened(browser, path, width=width).execute_script(IN_THE_PLOTS)
    figures = {figure["id"]: figure["title"] for figure in Page(path).all_figures}
    assert sorted(figures) == sorted(plot["id"] for plot in plots)
    for plot in plots:
        told = (figures[plot["id"]], width, plot)
        assert plot["width"] > 0.8 * min(width, 500), told
        assert plot["drawn"], told
        assert not plot["out"], told
        assert not plot["over"], told


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_the_page_never_scrolls_sideways(browser: Any, path: Path, width: int):
    opened(browser, path, width=width)
    for details in (False, True):
        browser.execute_script(
            "document.querySelectorAll('details').forEach((d) => { d.open = arguments[0]; })", details
        )
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')]"
        ".map((b) => [b.clientWidth, b.tabIndex, getComputedStyle(b).overflowX])"
    )
    assert boxes
    assert all(wide <= width and index == 0 and overflow == "auto" for wide, index, overflow in boxes)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(browser: Any, path: Path, scheme: str):
    opened(browser, path, scheme=scheme)
    dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor") != "rgb(253, 253, 252)"
    assert dark == (scheme == "dark")
    assert browser.execute_script(CONTRAST) == []


def curves(plot: Any) -> int:
    return len(plot.find_elements(By.CSS_SELECTOR, ".curve"))


def plot_of(browser: Any, path: Path, title: str) -> Any:
    place = next(figure["id"] for figure in Page(path).all_figures if figure["title"] == title)
    return browser.find_element(By.CSS_SELECTOR, f'[data-figure="{place}"]')


def test_series_and_scales_are_toggled_by_the_keyboard(browser: Any, path: Path):
    plot = plot_of(opened(browser, path), path, "Task loss (delta=0.025)")
    before = curves(plot)
    button = next(b for b in plot.find_elements(By.CSS_SELECTOR, ".legend button") if b.text == "kd")
    for pressed, count in (("false", before - 1), ("true", before)):
        button.send_keys(Keys.SPACE)
        assert (button.get_attribute("aria-pressed"), curves(plot)) == (pressed, count)
    assert browser.execute_script("return getComputedStyle(arguments[0]).outlineStyle", button) == "solid"
    scale = plot.find_element(By.CSS_SELECTOR, ".scales button")
    assert "log scale" not in plot.find_element(By.CSS_SELECTOR, "svg .title").text
    scale.send_keys(Keys.ENTER)
    assert "log scale" in plot.find_element(By.CSS_SELECTOR, ".canvas .title").text


def test_points_are_read_by_pointer_and_keys(browser: Any, path: Path):
    plot = plot_of(opened(browser, path), path, "Test accuracy (delta=0.025)")
    data = next(f for f in Page(path).all_figures if f["title"] == "Test accuracy (delta=0.025)")["series"][0]
    canvas, said = plot.find_element(By.CSS_SELECTOR, ".canvas"), plot.find_element(By.CSS_SELECTOR, ".readout")
    assert said.get_attribute("aria-live") == "polite"
    canvas.send_keys(Keys.ARROW_RIGHT)
    assert said.text.startswith(f"{data['name']}: epoch 1, accuracy {data['y'][0]:.4g}")
    canvas.send_keys(Keys.END)
    assert "epoch 12," in said.text
    canvas.send_keys(Keys.ARROW_DOWN)
    assert not said.text.startswith(f"{data['name']}:")
    canvas.send_keys(Keys.ESCAPE)
    assert said.text == ""
    webdriver.ActionChains(browser).move_to_element(canvas).perform()
    assert "epoch" in said.text


def test_tables_are_sorted_by_their_headers(browser: Any, path: Path):
    opened(browser, path)
    table = next(
        t
        for t in browser.find_elements(By.CSS_SELECTOR, "table")
        if "delta=0.025: test accuracy" in t.text.split("\n")[0]
    )
    head = table.find_elements(By.CSS_SELECTOR, "thead th")[1]
    button = head.find_element(By.TAG_NAME, "button")

    def values() -> list[float]:
        cells = table.find_elements(By.CSS_SELECTOR, "tbody td:nth-child(2)")
        return [float(cell.get_attribute("data-value")) for cell in cells]

    button.send_keys(Keys.ENTER)
    assert values() == sorted(values())
    assert head.get_attribute("aria-sort") == "ascending"
    button.send_keys(Keys.ENTER)
    assert values() == sorted(values(), reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    gain = table.find_elements(By.CSS_SELECTOR, "thead th")[4].find_element(By.TAG_NAME, "button")
    for _ in range(2):  # what does not exist comes last either way
        gain.send_keys(Keys.ENTER)
        assert table.find_elements(By.CSS_SELECTOR, "tbody tr")[-1].text.startswith("kd ")


def test_one_setting_can_be_chosen(browser: Any, path: Path):
    opened(browser, path)
    choice = browser.find_element(By.CSS_SELECTOR, "[data-subject] select")
    choice.send_keys("delta=0.075")
    shown = [s for s in browser.find_elements(By.CSS_SELECTOR, "[data-setting]") if s.is_displayed()]
    assert [section.get_attribute("data-setting") for section in shown] == ["delta=0.075"]


def test_on_paper_nothing_is_cut(browser: Any, path: Path):
    opened(browser, path)
    heights = "return [...document.querySelectorAll('.legend, .tall')].map((e) => getComputedStyle(e).maxHeight)"
    assert "none" not in browser.execute_script(heights)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert set(browser.execute_script(heights)) == {"none"}
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_without_javascript_tables_and_sentences_are_there(browser: Any, path: Path):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(path.as_uri())
        text = browser.find_element(By.TAG_NAME, "body").text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert "kd+dot was shown to beat kd" in text
    assert "delta=0.025: test accuracy and cost" in text
    assert "Plots need JavaScript" in text


def test_everything_has_a_name_for_those_who_listen(browser: Any, path: Path):
    opened(browser, path)
    assert browser.execute_script("return document.documentElement.lang") == "en"
    for landmark in ("header", "main", "footer", "nav"):
        assert len(browser.find_elements(By.TAG_NAME, landmark)) == 1
    nameless = browser.execute_script(
        "return [...document.querySelectorAll('button, select, [role=application], [role=region], [role=group]')]"
        ".filter((e) => !(e.getAttribute('aria-label') || e.textContent || '').trim()).length"
    )
    assert nameless == 0
    unlabelled = "return [...document.querySelectorAll('th')].filter((h) => !h.scope).length"
    assert browser.execute_script(unlabelled) == 0
    tables, captions = (len(browser.find_elements(By.TAG_NAME, name)) for name in ("table", "caption"))
    assert tables == captions
    ids = json.loads(
        browser.execute_script("return JSON.stringify([...document.querySelectorAll('[id]')].map((e) => e.id))")
    )
    assert len(ids) == len(set(ids))
