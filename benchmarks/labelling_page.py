"""Measures the labelling page in headless Chromium: loading, keys and scrolling.

    python -m benchmarks.labelling_page [--output results.csv]

A server on this machine offers a batch of 100 and a batch of 10,000 synthetic images of 28x28
pixels. Needs the Debian packages chromium and chromium-driver.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

from reporting.files import csv_text, write_atomically
from tests.labelling_browser import Annotator, Keys, serving, start_browser
from tests.labelling_runs import made_up_run

SMALL, LARGE = 100, 10_000
REPEATS = 5

# Time from a key press to the frame that shows its effect. It waits for two animation frames: the
# first runs before the browser paints the changed page, the second after.
KEY_TO_SCREEN = """
const finish = arguments[arguments.length - 1];
const times = [];
function next(left) {
  if (left === 0) { finish(times); return; }
  const started = performance.now();
  $('grid').dispatchEvent(new KeyboardEvent('keydown', {key: '2', bubbles: true}));
  requestAnimationFrame(() => requestAnimationFrame(() => {
    times.push(performance.now() - started);
    setTimeout(() => next(left - 1), 30);
  }));
}
next(60);
"""
# Scrolls from the top to the bottom of the list in jumps and measures the time until each is drawn.
SCROLL = """
const finish = arguments[arguments.length - 1];
const grid = $('grid'), times = [];
let offset = 0;
function next() {
  if (offset >= grid.scrollHeight) { finish(times); return; }
  const started = performance.now();
  grid.scrollTop = offset;
  offset += grid.scrollHeight / 200;
  requestAnimationFrame(() => requestAnimationFrame(() => {
    times.push(performance.now() - started);
    next();
  }));
}
next();
"""
# True when all visible pictures have loaded and the page accepts keys.
USABLE = (
    "return state.shown.length > 0 && [...document.querySelectorAll('.tile img')]"
    ".every((picture) => picture.complete && picture.naturalWidth > 0)"
)


def measure() -> list[tuple[str, float, str, str]]:
    """Measure the page; returns rows of what, value, unit and detail."""
    rows: list[tuple[str, float, str, str]] = []
    browser = start_browser()
    try:
        with tempfile.TemporaryDirectory() as name:
            run = Path(name)
            made_up_run(run, SMALL, pixels=28)
            with serving(run) as page:
                loads = []
                for _ in range(REPEATS):
                    browser.execute_cdp_cmd("Network.clearBrowserCache", {})
                    started = time.perf_counter()
                    ann = Annotator(browser, page.address, "ann")
                    ann.wait_until(USABLE)
                    loads.append(time.perf_counter() - started)
                rows.append(
                    ("page of 100 images usable", statistics.median(loads), "s", spread(loads))
                )
                started = time.perf_counter()
                ann.keys(*(str(1 + index % 3) for index in range(SMALL)))
                ann.wait_saved()
                rows.append(
                    ("100 labels by keys, saved", time.perf_counter() - started, "s", "once")
                )
                ann.keys(Keys.HOME)
                keys = browser.execute_async_script(KEY_TO_SCREEN)
                rows.append(("key to screen, median", statistics.median(keys), "ms", spread(keys)))
                ann.wait_saved()
        with tempfile.TemporaryDirectory() as name:
            run = Path(name)
            made_up_run(run, LARGE, pixels=28)
            with serving(run) as page:
                started = time.perf_counter()
                ann = Annotator(browser, page.address, "ann")
                ann.wait_until(USABLE)
                rows.append(("batch of 10,000 usable", time.perf_counter() - started, "s", "once"))
                times = browser.execute_async_script(SCROLL)
                rows.append(
                    ("10,000: a jump of 50 images", statistics.median(times), "ms", spread(times))
                )
                tiles = ann.ask("return nodes.size")
                rows.append(
                    ("10,000: tiles in the page", float(str(tiles)), "", "the rest is empty")
                )
                keys = browser.execute_async_script(KEY_TO_SCREEN)
                rows.append(
                    ("10,000: key to screen, median", statistics.median(keys), "ms", spread(keys))
                )
    finally:
        browser.quit()
    return rows


def spread(values: list[float]) -> str:
    """The smallest value, the largest value and the number of values, as text."""
    return f"{min(values):.3g} to {max(values):.3g}, n = {len(values)}"


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.labelling_page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, help="write the rows as CSV")
    options = parser.parse_args()
    rows = measure()
    for what, value, unit, detail in rows:
        print(f"{what:34} {value:8.3g} {unit:3} ({detail})")
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    if options.output:
        write_atomically(options.output, csv_text(("what", "value", "unit", "detail"), rows))


if __name__ == "__main__":
    main()
