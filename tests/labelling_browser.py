"""Starts the labelling page and a headless Chromium for the tests, or says why it cannot."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).resolve().parent.parent


class Page:
    """The server of one run; it can be killed and started again on the same port."""

    def __init__(self, run: Path, *options: str) -> None:
        self.run = run
        self.options = options
        self.port = 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "tools.label", str(self.run), "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, *self.options], cwd=ROOT, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+?:(\d+)/", line)
        assert found, line or self.process.wait()
        self.port = int(found[1])

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.end()

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def serving(run: Path, *options: str) -> Iterator[Page]:
    """The page of `run` for as long as the block lasts."""
    page = Page(run, *options)
    try:
        yield page
    finally:
        page.end()


def start_browser() -> webdriver.Chrome:
    """A headless Chromium; skips the test where none is installed."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no browser: install Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1280,860")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


class Annotator:
    """One browser tab with the page in it, and what a person does there."""

    def __init__(self, browser: webdriver.Chrome, address: str, name: str) -> None:
        self.browser = browser
        browser.get(f"{address}?annotator={name}")
        self.handle = browser.current_window_handle
        self.wait_until("return state.shown.length > 0 && nodes.size > 0")

    def front(self) -> None:
        self.browser.switch_to.window(self.handle)

    def keys(self, *keys: str) -> None:
        """Press keys, one after the other, wherever the focus is."""
        chain = webdriver.ActionChains(self.browser, duration=0)
        chain.send_keys(*keys).perform()

    def chord(self, modifier: str, key: str) -> None:
        webdriver.ActionChains(self.browser).key_down(modifier).send_keys(key).key_up(
            modifier
        ).perform()

    def ask(self, script: str) -> object:
        return self.browser.execute_script(script)

    def wait_until(self, script: str, seconds: float = 10) -> None:
        WebDriverWait(self.browser, seconds, 0.02).until(lambda b: b.execute_script(script), script)

    def wait_saved(self, seconds: float = 15) -> None:
        self.wait_until("return queue.events.length === 0 && !queue.failed", seconds)
        assert self.text("save-state") == "All saved"

    def text(self, name: str) -> str:
        return self.browser.find_element(By.ID, name).text

    def click(self, name: str) -> None:
        self.browser.find_element(By.ID, name).click()

    def answers(self) -> dict[int, str]:
        """What the page shows as this person's answers, by dataset index."""
        found = self.ask(
            "return state.images.filter((image) => image.own)"
            ".map((image) => [image.index, meaning(image.own)])"
        )
        return {index: meaning for index, meaning in found}  # type: ignore[attr-defined]


__all__ = ["Annotator", "By", "Keys", "Page", "serving", "start_browser"]
