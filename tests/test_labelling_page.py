"""The labelling page in a real browser: keys, undo, skips, several people, tabs, kills."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver

from errors import AWAITING_LABELS
from labelling.batch import read_batch
from labelling.log import AnswerLog
from labelling.outcome import close_batch, corrections, read_answers
from local.run import run_locally
from tests.labelling_browser import Annotator, By, Keys, Page, serving, start_browser
from tests.labelling_runs import CLASSES, made_up_run
from tests.test_labelling_rounds import request


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    found = start_browser()
    try:
        yield found
    finally:
        found.quit()


@pytest.fixture(autouse=True)
def no_script_error(browser: webdriver.Chrome) -> Iterator[None]:
    """No test leaves an error in the browser's log, but for a server that was killed."""
    browser.get_log("browser")
    yield
    errors = [
        entry["message"]
        for entry in browser.get_log("browser")
        if entry["level"] == "SEVERE"
        and "net::ERR" not in entry["message"]
        and "status of 4" not in entry["message"]
    ]
    assert errors == []


def truth_key(index: int) -> str:
    return str(index % len(CLASSES) + 1)


def test_a_round_is_labelled_by_keys(browser: webdriver.Chrome, tmp_path: Path) -> None:
    folder = made_up_run(tmp_path, 12)
    with serving(tmp_path) as page:
        ann = Annotator(browser, page.address, "ann")
        assert ann.text("progress-text").startswith("0 labelled · 12 left")
        ann.keys(*map(truth_key, range(11)))
        ann.keys("x")  # unusable
        ann.wait_saved()
        assert "11 labelled · 1 skipped · 0 left" in ann.text("progress-text")
        ann.wait_until("return $('banner-text').textContent.includes('have their answer')")
    answers = read_answers(folder)
    assert answers.labels == {index: index % 3 for index in range(11)}
    assert answers.skipped == {11: "unusable"}
    lines = AnswerLog(folder).read()
    assert all(line.seconds is not None and line.seconds >= 0 for line in lines)


def test_a_suggestion_is_no_answer(browser: webdriver.Chrome, tmp_path: Path) -> None:
    folder = made_up_run(tmp_path, 4)
    with serving(tmp_path) as page:
        ann = Annotator(browser, page.address, "ann")
        assert "lymphocyte?" in browser.find_element(By.ID, "tile-0").text
        ann.keys(Keys.ARROW_RIGHT, Keys.ENTER, Keys.ARROW_RIGHT, Keys.ESCAPE, " ", Keys.ESCAPE)
        assert ann.answers() == {}
    assert AnswerLog(folder).read() == []


def test_undo_takes_back_any_number_of_steps_also_after_a_reload(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    folder = made_up_run(tmp_path, 12)
    with serving(tmp_path) as page:
        ann = Annotator(browser, page.address, "ann")
        ann.keys("1", "2")
        ann.chord(Keys.SHIFT, Keys.ARROW_RIGHT)  # images 2 and 3 at once
        ann.keys("3", "s")
        ann.wait_saved()
        assert ann.answers() == {
            0: "debris", 1: "lymphocyte", 2: "tumour", 3: "tumour", 4: "skipped: unsure"
        }  # fmt: skip
        ann.keys(Keys.HOME, "3")  # changes the first answer
        ann.wait_saved()
        ann = Annotator(browser, page.address, "ann")  # a reload
        assert ann.answers()[0] == "tumour"
        ann.keys("u")
        assert ann.answers()[0] == "debris"
        ann.keys("u")
        ann.chord(Keys.CONTROL, "z")
        assert ann.answers() == {0: "debris", 1: "lymphocyte"}
        ann.keys(Keys.BACKSPACE, "u", "u", "u")  # more than there is
        assert ann.answers() == {}
        ann.wait_saved()
        ann = Annotator(browser, page.address, "ann")
        assert ann.answers() == {}
        assert not browser.find_element(By.ID, "undo").is_enabled()
    assert read_answers(folder).labels == {}


def test_many_at_once_by_dragging_and_by_clicks(browser: webdriver.Chrome, tmp_path: Path) -> None:
    made_up_run(tmp_path, 30)
    with serving(tmp_path) as page:
        ann = Annotator(browser, page.address, "ann")
        columns = ann.ask("return layout.columns")
        first = browser.find_element(By.ID, "tile-0")
        last = browser.find_element(By.ID, f"tile-{columns + 2}")  # type: ignore[operator]
        webdriver.ActionChains(browser).click_and_hold(first).move_to_element(
            last
        ).release().perform()
        assert "6 images selected" in ann.text("selection")
        browser.find_elements(By.CSS_SELECTOR, "#classes .choice")[2].click()
        ann.wait_saved()
        assert len(ann.answers()) == 6
        chain = webdriver.ActionChains(browser)
        chain.click(browser.find_element(By.ID, "tile-3")).key_down(Keys.CONTROL)
        chain.click(browser.find_element(By.ID, "tile-5")).key_up(Keys.CONTROL).perform()
        browser.find_element(By.ID, "grid").send_keys("1")
        ann.wait_saved()
        assert [ann.answers()[index] for index in (3, 5)] == ["debris", "debris"]
        ann.keys("u", "u")
        assert ann.answers() == {}


def test_more_than_nine_classes_have_letters(browser: webdriver.Chrome, tmp_path: Path) -> None:
    classes = tuple(f"class {number}" for number in range(40))
    made_up_run(tmp_path, 5, classes=classes)
    with serving(tmp_path) as page:
        ann = Annotator(browser, page.address, "ann")
        ann.keys("9", "a", "Y")
        ann.keys("/")
        browser.find_element(By.ID, "find").send_keys("class 39", Keys.ENTER)
        assert list(ann.answers().values()) == ["class 8", "class 9", "class 29", "class 39"]
        browser.find_element(By.ID, "grid").send_keys("z")  # stands for nothing
        assert len(ann.answers()) == 4


def test_sorting_and_filters(browser: webdriver.Chrome, tmp_path: Path) -> None:
    folder = made_up_run(tmp_path, 9)
    uncertainty = [item.uncertainty or 0.0 for item in read_batch(folder).images]
    with serving(tmp_path) as page:
        ann = Annotator(browser, page.address, "ann")

        def choose(name: str, value: str) -> list[int]:
            browser.find_element(By.CSS_SELECTOR, f"#{name} option[value={value}]").click()
            return ann.ask("return state.shown.map((image) => image.index)")  # type: ignore[return-value]

        assert choose("sort", "uncertain") == sorted(range(9), key=lambda i: -uncertainty[i])
        suggested = choose("sort", "suggested")
        names = [read_batch(folder).images[index].suggested for index in suggested]
        assert names == sorted(names)  # type: ignore[type-var]
        choose("sort", "asked")
        browser.find_element(By.ID, "grid").send_keys("1", "s")
        assert choose("show", "todo") == list(range(2, 9))
        assert choose("show", "answered") == [0]
        assert choose("show", "skipped") == [1]


def test_an_image_is_shown_at_its_original_resolution(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    made_up_run(tmp_path, 3, pixels=700)
    with serving(tmp_path) as page:
        ann = Annotator(browser, page.address, "ann")
        ann.wait_until("return nodes.get(0).firstChild.naturalWidth === 256")  # a small picture
        ann.keys(Keys.ENTER)
        ann.wait_until("return $('picture').naturalWidth === 700")
        ann.wait_until("return view.scale < 1")
        before = ann.ask("return view.scale")
        ann.keys("+", "+")
        assert ann.ask("return view.scale") > before  # type: ignore[operator]
        ann.keys("0")
        assert ann.ask("return view.scale") == before
        ann.keys("2")  # answers, and goes to the next image
        ann.wait_until("return $('picture').alt === 'slide/00001.png'")
        assert ann.answers() == {0: "lymphocyte"}


def test_blind_mode_sends_no_suggestion(browser: webdriver.Chrome, tmp_path: Path) -> None:
    made_up_run(tmp_path, 4)
    options = ("--blind", "--annotators", "ann,ben", "--overlap", "1")
    with serving(tmp_path, *options) as page:
        ben = Annotator(browser, page.address, "ben")
        ben.keys("1", "1", "1", "1")
        ben.wait_saved()
        ann = Annotator(browser, page.address, "ann")
        assert browser.find_element(By.ID, "tile-0").text == ""
        assert ann.ask("return state.images.every((image) => image.suggested === null)")
        assert ann.ask("return state.images.every((image) => image.answer === null)")
        assert not browser.find_element(By.ID, "hints-label").is_displayed()


def test_two_annotators_at_once_and_an_adjudicator(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    folder = made_up_run(tmp_path, 12)
    with serving(tmp_path, "--annotators", "ann,ben", "--overlap", "0.5") as page:
        ann = Annotator(browser, page.address, "ann")
        browser.switch_to.new_window("tab")
        ben = Annotator(browser, page.address, "ben")
        todo = "return state.shown.filter(isToDo).length"
        ann.front()
        assert ann.ask(todo) == 9  # 6 for both, half of the others
        ann.keys(*"111111111")
        ann.wait_saved()
        ann.wait_until("return $('banner-text').textContent.includes('other annotators')")
        ben.front()
        browser.find_element(By.CSS_SELECTOR, "#show option[value=todo]").click()
        browser.find_element(By.ID, "grid").click()
        ben.keys(Keys.ESCAPE, Keys.HOME, *"222222222")
        ben.wait_saved()
        ben.wait_until("return $('banner-text').textContent.includes('adjudicator')")
        assert len(read_answers(folder).waiting) == 6  # where the two disagree
        browser.find_element(By.CSS_SELECTOR, "#banner-buttons button").click()
        ben.wait_until("return adjudicating() && state.shown.length === 6")
        assert "ann: debris / ben: lymphocyte" in browser.find_element(By.ID, "tile-0").text
        browser.find_element(By.ID, "grid").send_keys(*"333333")
        ben.wait_saved()
        browser.close()
        ann.front()
        ann.wait_until("return $('banner-text').textContent.includes('have their answer')")
    answers = read_answers(folder)
    assert answers.complete
    assert sorted(answers.labels.values()) == [0] * 3 + [1] * 3 + [2] * 6


def test_two_tabs_of_one_person_show_the_same(browser: webdriver.Chrome, tmp_path: Path) -> None:
    made_up_run(tmp_path, 6)
    with serving(tmp_path) as page:
        first = Annotator(browser, page.address, "ann")
        first.keys("1")
        browser.switch_to.new_window("tab")
        second = Annotator(browser, page.address, "ann")
        assert second.answers() == {0: "debris"}
        second.keys("2", "3")
        second.wait_saved()
        first.front()
        first.wait_until("return state.images.filter((image) => image.own).length === 3")
        first.keys("u", "u")  # takes back what the other tab did
        first.wait_saved()
        second.front()
        second.wait_until("return state.images.filter((image) => image.own).length === 1")
        assert second.answers() == {0: "debris"}
        browser.close()
        first.front()


def test_a_failed_save_stays_visible_and_is_tried_again(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    folder = made_up_run(tmp_path, 6)
    with serving(tmp_path) as page:
        ann = Annotator(browser, page.address, "ann")
        ann.keys("1")
        ann.wait_saved()
        page.kill()
        ann.keys("2", "3")
        ann.wait_until("return $('save-state').textContent.startsWith('2 answers not saved')")
        assert ann.answers() == {0: "debris", 1: "lymphocyte", 2: "tumour"}
        assert len(AnswerLog(folder).read()) == 1
        page.start()
        ann.wait_saved()
        # The same from a tab that was closed with unsaved answers: the next one sends them.
        page.kill()
        ann.keys("1")
        ann.wait_until("return queue.failed !== ''")
        browser.execute_script(
            "const kept = JSON.stringify({alive: 0, events: queue.events}); queue.events = [];"
            "localStorage.setItem(queuePrefix() + 'closed tab', kept);"
        )
        page.start()
        ann = Annotator(browser, page.address, "ann")
        ann.wait_saved()
    assert read_answers(folder).labels == {0: 0, 1: 1, 2: 2, 3: 0}


def test_no_acknowledged_answer_is_lost_to_twenty_kills(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    """The browser labels without a pause while the server is killed at random moments."""
    folder = made_up_run(tmp_path, 3000)
    chance = random.Random(0)
    page = Page(tmp_path)
    kills = 0
    try:
        ann = Annotator(browser, page.address, "ann")
        # Everything that the server acknowledged, noted outside the page's own books.
        ann.ask(
            "window.acknowledged = []; const settled = settle;"
            "settle = (events) => { acknowledged.push(...events); settled(events); };"
            "window.typing = setInterval(() => $('grid').dispatchEvent(new KeyboardEvent("
            "'keydown', {key: String(1 + state.cursor % 3), bubbles: true})), 15);"
        )
        while kills < 20:
            time.sleep(chance.uniform(0.0, 0.25))
            page.kill()
            kills += 1
            page.start()
        ann.ask("clearInterval(typing)")
        ann.wait_saved(30)
        acknowledged = ann.ask("return acknowledged.map((event) => event.event)")
        shown = ann.answers()
    finally:
        page.end()
    saved = {line.event for line in AnswerLog(folder).read()}
    assert isinstance(acknowledged, list)
    assert len(acknowledged) > 50  # how many there are depends on the machine
    assert set(acknowledged) <= saved
    batch = read_batch(folder)
    assert {
        index: batch.class_names[label] for index, label in read_answers(folder).labels.items()
    } == shown


def test_the_next_round_is_trained_from_the_page(browser: webdriver.Chrome, tmp_path: Path) -> None:
    """Round 0 is labelled, trained with progress in view, and the page opens round 1."""
    run = tmp_path / "run"
    assert run_locally(request(run, oracle="people", rounds=2)) == AWAITING_LABELS
    with serving(run) as page:
        ann = Annotator(browser, page.address, "ann")
        assert ann.ask("return state.info.batch") == "round_000"
        ann.keys("1", "2", "3")
        ann.chord(Keys.CONTROL, "a")  # the images that wait
        ann.keys("4")
        ann.wait_saved()
        ann.wait_until("return $('banner-text').textContent.includes('have their answer')")
        browser.find_element(By.CSS_SELECTOR, "#banner-buttons button").click()
        ann.wait_until("return $('banner-text').textContent.includes('is in training')")
        ann.wait_until("return state.info.batch === 'round_001' && nodes.size > 0", 60)
        assert "?" in browser.find_element(By.ID, "tile-0").text  # the network suggests now
        ann.click("open-report")
        ann.wait_until("return document.querySelectorAll('.chart .dot').length === 1")


def test_a_label_in_training_is_corrected(browser: webdriver.Chrome, tmp_path: Path) -> None:
    folder = made_up_run(tmp_path, 3)
    with serving(tmp_path) as page:
        ann = Annotator(browser, page.address, "ann")
        ann.keys("1", "1", "1")
        ann.wait_saved()
        close_batch(folder)
        ann.wait_until("return state.info.closed")
        browser.find_element(By.ID, "grid").send_keys(Keys.HOME, "3")
        ann.wait_saved()
        assert corrections(tmp_path) == {0: 2}
        ann.wait_until("return state.history.length === 1")
        browser.find_element(By.ID, "grid").send_keys("u")
        ann.wait_saved()
    assert corrections(tmp_path) == {0: 0}  # changed back
    last = AnswerLog(folder).read()[-1]
    assert (last.annotator, last.old, last.answer) == ("ann", "tumour", "debris")


def test_names_from_the_data_are_text_and_never_html(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    evil = "<img src=x onerror=document.title='owned'>"
    made_up_run(tmp_path, 3, classes=(evil, "b"))
    with serving(tmp_path) as page:
        ann = Annotator(browser, page.address, "ann")
        ann.keys("1", Keys.ENTER)
        ann.wait_saved()
        assert ann.answers() == {0: evil}
        assert browser.title.startswith("Label ")
        assert browser.find_elements(By.CSS_SELECTOR, "img[src=x]") == []


def test_ten_thousand_images_scroll_without_being_loaded(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    made_up_run(tmp_path, 10_000, pixels=2)
    with serving(tmp_path) as page:
        ann = Annotator(browser, page.address, "ann")
        ann.keys(Keys.END)
        assert ann.ask("return state.cursor") == 9999
        assert ann.ask("return nodes.size") < 200  # type: ignore[operator]
        loaded = ann.ask(
            "return performance.getEntriesByType('resource')"
            ".filter((entry) => entry.name.includes('thumbnails')).length"
        )
        assert loaded < 400  # type: ignore[operator]
        ann.keys("1", Keys.HOME)
        ann.wait_saved()
        assert ann.answers() == {9999: "debris"}
