"""Takes the screenshots of docs/labelling.md from a real run on the blood cells.

    python -m benchmarks.labelling_screenshots --data-dir data --output-dir images

A simulated annotator labels two rounds of a small run. The script then labels a part of the third
round in a browser. Needs the Debian packages chromium and chromium-driver.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver

from benchmarks.labelling_identity import label, run_rounds
from errors import AWAITING_LABELS
from reporting.files import write_atomically
from tests.labelling_browser import Annotator, By, Keys, serving, start_browser
from training.experiment_config import load
from training.hyperparameters import Hyperparameters
from training.loading import load_data

CONFIG = Path("configs/bloodmnist.yaml")
SETTINGS = (
    "hyperparameters.oracle=people",
    "hyperparameters.batches_per_round=60",
    "hyperparameters.evaluation_size=500",
    "hyperparameters.samples_to_label=60",
    "hyperparameters.candidate_pool_size=1000",
)
COLOURS = 200  # per screenshot; the file has a third of the bytes of one with all colours


def make_run(run: Path, data_dir: Path) -> list[str]:
    """Make a run that waits for the labels of round 3; returns each image's true class."""
    hp = Hyperparameters.from_mapping(load(CONFIG)["hyperparameters"])
    train = load_data(hp, data_dir).train
    truth = [train.class_names[label] for label in train.labels.tolist()]
    data_arguments = ["--data-dir", str(data_dir)]
    status = run_rounds(
        "--config", str(CONFIG), "--output-dir", str(run), *data_arguments, "--set", *SETTINGS
    )
    for _ in range(2):
        assert status == AWAITING_LABELS
        label(run, truth)
        status = run_rounds("--resume", str(run), *data_arguments)
    assert status == AWAITING_LABELS
    return truth


def save_screenshot(browser: webdriver.Chrome, path: Path) -> None:
    """Save a screenshot of the browser, with few colours."""
    time.sleep(0.5)  # until the pictures have loaded
    with Image.open(io.BytesIO(browser.get_screenshot_as_png())) as image:
        buffer = io.BytesIO()
        image.convert("RGB").quantize(COLOURS).save(buffer, "PNG", optimize=True)
    write_atomically(path, buffer.getvalue())


def save_screenshots(run: Path, truth: list[str], folder: Path) -> None:
    """Save all screenshots to `folder`."""
    browser = start_browser()
    try:
        with serving(run) as page:
            browser.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": 1200, "height": 720, "deviceScaleFactor": 1, "mobile": False},
            )
            ann = Annotator(browser, page.address, "Ann")
            classes = ann.ask("return state.info.classes")
            order = ann.ask("return state.shown.map((image) => image.index)")
            assert isinstance(classes, list)
            assert isinstance(order, list)
            for index in order[:9]:
                ann.keys(str(1 + classes.index(truth[index])))
            ann.keys("s")
            for tile in (12, 14, 15, 20):
                chain = webdriver.ActionChains(browser).key_down(Keys.CONTROL)
                chain.click(browser.find_element(By.ID, f"tile-{tile}")).key_up(Keys.CONTROL)
                chain.perform()
            ann.wait_saved()
            save_screenshot(browser, folder / "labelling_grid.png")
            ann.keys(Keys.ESCAPE, Keys.ENTER)
            save_screenshot(browser, folder / "labelling_single.png")
            ann.keys(Keys.ESCAPE)
            ann.click("open-report")
            ann.wait_until("return document.querySelector('.chart') !== null")
            save_screenshot(browser, folder / "labelling_progress.png")
            browser.find_element(By.CSS_SELECTOR, "#report-dialog button").click()
            browser.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": 640, "height": 420, "deviceScaleFactor": 2, "mobile": False},
            )
            ann.click("theme")
            save_screenshot(browser, folder / "labelling_zoomed.png")
    finally:
        browser.quit()


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.labelling_screenshots",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--output-dir", type=Path, default=Path("images"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "blood-cells"
        truth = make_run(run, options.data_dir)
        save_screenshots(run, truth, options.output_dir)


if __name__ == "__main__":
    main()
