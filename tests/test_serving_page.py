"""The upload page in headless Chromium: what a person drops, sees, filters and takes away."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.service_clients import running_service
from data import Splits
from labelling.uploads import Uploads

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"
)
SECONDS = 60
Browser = Any
# Clicks Cancel as soon as the first files are answered: a driver may be too slow for that.
CANCEL_EARLY = """
const done = document.getElementById("done");
new MutationObserver((_, observer) => {
  if (parseInt(done.textContent) < 32) return;
  observer.disconnect();
  document.getElementById("cancel").click();
}).observe(done, { childList: true, characterData: true, subtree: true });
"""


@pytest.fixture(scope="module")
def corrected_run(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run that people label would have of a run folder."""
    folder = tmp_path_factory.mktemp("corrected")
    content = json.loads((small_run / "run.json").read_text(encoding="utf-8"))
    content["settings"]["oracle"] = "people"
    (folder / "run.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def address(exported: Path, corrected_run: Path) -> Iterator[str]:
    with running_service(exported, "--corrections", str(corrected_run)) as (_, port):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def chromium(downloads: Path) -> Iterator[Browser]:
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1300,1000")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium: Browser, address: str) -> Iterator[Browser]:
    """The page, fresh; in the end nothing may have gone wrong in it."""
    chromium.get(address)
    wait(lambda: "Loading" not in text(chromium, "#model"))
    yield chromium
    assert [line for line in chromium.get_log("browser") if line["level"] == "SEVERE"] == []


@pytest.fixture(scope="module")
def files(digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """30 images in files, one of whose names is a formula and HTML."""
    folder = tmp_path_factory.mktemp("dropped")
    names = ["=1+2<b>.png", *(f"digit_{number:02d}.png" for number in range(1, 30))]
    for name, image in zip(names, digits.test.images.numpy(), strict=False):
        Image.fromarray(image[0]).save(folder / name)
    return [folder / name for name in names]


def wait(true: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def all_of(browser: Browser, selector: str) -> list[Any]:
    return list(browser.find_elements("css selector", selector))


def text(browser: Browser, selector: str) -> str:
    return str(browser.find_element("css selector", selector).text)


def click(browser: Browser, selector: str) -> None:
    browser.find_element("css selector", selector).click()


def choose(browser: Browser, selector: str, value: str) -> None:
    click(browser, f"{selector} option[value='{value}']")


def upload(browser: Browser, files: list[Path]) -> None:
    browser.find_element("id", "files").send_keys("\n".join(map(str, files)))
    wait(lambda: text(browser, "#done") == f"{len(files)} of {len(files)} files")
    wait(lambda: all_of(browser, ".card"))


def uncertainties(browser: Browser) -> list[float]:
    return [float(one.text.split()[1]) for one in all_of(browser, ".uncertainty")]


def test_results_come_most_uncertain_first(browser: Browser, files: list[Path]) -> None:
    upload(browser, files)
    values = uncertainties(browser)
    assert len(values) == 30
    assert values == sorted(values, reverse=True)
    assert "=1+2<b>.png" in [one.text for one in all_of(browser, ".file")]
    choose(browser, "#sort", "confidence")
    assert uncertainties(browser) == sorted(values)
    sizes = [one.get_property("naturalWidth") for one in all_of(browser, ".image")]
    assert set(sizes) == {8}


def test_filter_by_class_and_table(browser: Browser, files: list[Path]) -> None:
    upload(browser, files)
    counts = [one.text.rsplit(" ", 1) for one in all_of(browser, "#counts button")]
    assert counts[0] == ["all", "30"]
    assert sum(int(count) for _, count in counts[1:]) == 30
    position = next(n for n, (_, count) in enumerate(counts) if n and int(count))
    all_of(browser, "#counts button")[position].click()
    shown = [one.text for one in all_of(browser, ".class")]
    assert set(shown) == {counts[position][0]}
    assert len(shown) == int(counts[position][1])
    choose(browser, "#view", "table")
    assert len(all_of(browser, "#cards.table .card")) == len(shown)


def test_csv_has_the_names_and_no_formulas(
    browser: Browser, files: list[Path], downloads: Path
) -> None:
    upload(browser, files)
    click(browser, "#csv")
    wait(lambda: list(downloads.glob("*.csv")))
    (path,) = downloads.glob("*.csv")
    wait(lambda: path.stat().st_size)
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    path.unlink()
    assert len(rows) == 30
    assert {row["file"] for row in rows} == {"'=1+2<b>.png", *(one.name for one in files[1:])}
    for row in rows:
        total = sum(float(value) for name, value in row.items() if name.startswith("p("))
        assert total == pytest.approx(1, abs=1e-4)


def test_arrays_maps_outliers_and_damaged_files(
    browser: Browser, files: list[Path], tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "noise.npy", noise)
    (tmp_path / "broken.png").write_bytes(files[1].read_bytes()[:50])
    upload(browser, [tmp_path / "noise.npy", tmp_path / "broken.png", files[2]])
    assert text(browser, "#problem-count") == "1 file was not read"
    flagged = [one for one in all_of(browser, ".outlier") if one.is_displayed()]
    assert len(flagged) >= 36
    click(browser, "#outliers")
    assert len(all_of(browser, ".card")) == len(flagged)
    click(browser, ".show-map")
    wait(lambda: all_of(browser, ".map:not([hidden])"))
    assert all_of(browser, ".map:not([hidden])")[0].get_property("naturalWidth") == 256
    click(browser, ".show-map")
    assert not all_of(browser, ".map:not([hidden])")


def test_corrections_are_saved_under_the_annotators_name(
    browser: Browser, files: list[Path], corrected_run: Path
) -> None:
    upload(browser, files[:2])
    choose(browser, ".correction", "7")
    wait(lambda: text(browser, ".answer").startswith("Give your name first"))
    assert Uploads(corrected_run).labelled() == []
    browser.find_element("id", "annotator").send_keys("Ana")
    choose(browser, ".correction", "7")
    wait(lambda: text(browser, ".answer").startswith("Saved as 7"))
    (saved,) = Uploads(corrected_run).labelled()
    assert (saved.class_name, saved.annotator) == ("7", "Ana")
    assert saved.source == text(browser, ".file")


def test_a_thousand_images_and_cancelling(browser: Browser, tmp_path: Path) -> None:
    for number in range(1000):
        Image.new("L", (8, 8), number % 256).save(tmp_path / f"{number:04d}.png")
    many = sorted(tmp_path.iterdir())
    browser.execute_script(CANCEL_EARLY)
    browser.find_element("id", "files").send_keys("\n".join(map(str, many)))
    wait(lambda: text(browser, "#done").startswith("Cancelled after"))
    read = int(text(browser, "#done").split()[2])
    assert 32 <= read < 1000
    click(browser, "#clear")
    start = time.monotonic()
    upload(browser, many)
    assert time.monotonic() - start < 30
    wait(lambda: text(browser, "#shown").startswith("1000 images"))
    assert len(all_of(browser, ".card")) == 120
    choose(browser, "#sort", "file")
    assert text(browser, ".file") == "0000.png"
    click(browser, "#more")
    assert len(all_of(browser, ".card")) == 240
