"""The page at /, in a real browser: it streams, stops, shows the base beside the run, and fetches nothing else."""

import shutil
import time
import types

import pytest
from support import tiny
from support.serving import serving

from ft.chat import partner
from ft.generate import growing
from ft.generate.samplers import Greedy
from ft.text import prompts

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

TOKENIZER = tiny.tokenizer()
CHAT = prompts.by_name("chat", TOKENIZER)
MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>"


class Draft:
    """As much of a draft as a stream reads."""

    thought_piece = ""

    def __init__(self, piece, reason=None):
        self.piece, self.reason = piece, reason

    def answer(self):
        return growing.Answer(self.piece, (), (), self.reason)


def scripted(*pieces, wait=0.0):
    def steps(*_, **__):
        for number, piece in enumerate(pieces, 1):
            yield {0: Draft(piece, "end" if number == len(pieces) else None)}
            time.sleep(wait)
        return [[]]

    return steps


@pytest.fixture(scope="module")
def server():
    model = tiny.build("gemma3_text")
    base = tiny.build("gemma3_text", seed=1)
    who = partner.Partner(
        "run", model, TOKENIZER, CHAT, run=types.SimpleNamespace(sampler=Greedy()), _base=base
    )  # pyright: ignore
    with serving(who, api_key="secret") as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as made:
        opened = made.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(params=["light", "dark"])
def page(request, browser, server):
    size = {"width": 400, "height": 700}
    context = browser.new_context(viewport=size, color_scheme=request.param)
    made = context.new_page()
    made.set_default_timeout(30_000)
    made.asked, made.faults = [], []
    made.on("request", lambda asked: made.asked.append(asked.url))
    made.on("pageerror", lambda error: made.faults.append(str(error)))
    made.on("dialog", lambda dialog: (made.faults.append(dialog.message), dialog.dismiss()))
    made.goto(server.url)
    made.locator("summary").click()
    made.fill("#key", "secret")
    made.locator("#key").blur()
    expect(made).to_have_title("run")
    made.locator("summary").click()
    yield made
    assert made.faults == []
    assert all(url.startswith((server.url, "data:")) for url in made.asked)
    context.close()


def ask(page, text):
    page.fill("#question", text)
    page.press("#question", "Enter")


def test_an_answer_is_text_whatever_it_holds(page, monkeypatch):
    monkeypatch.setattr(growing, "steps", scripted("Hello ", MARKUP, " and\nmore"))
    ask(page, MARKUP)
    expect(page.locator(".text")).to_contain_text("more")
    expect(page.locator("#send")).to_be_enabled()
    assert page.locator(".text").inner_text() == f"Hello {MARKUP} and\nmore"
    assert page.locator(".user").inner_text() == MARKUP
    assert page.locator("main img, main script").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_base_and_run_answer_side_by_side_and_the_talk_goes_on(page, monkeypatch):
    monkeypatch.setattr(growing, "steps", scripted("one"))
    page.check("#base")
    ask(page, "hi")
    expect(page.locator(".text")).to_have_text(["one", "one"])
    expect(page.locator("#send")).to_be_enabled()
    assert page.locator(".answer h2").all_inner_texts() == ["run", "run-base"]
    assert page.evaluate("turns.map(t => t.content)") == ["hi", "one"]


def test_stop_ends_an_answer_here_and_on_the_server(page, server, monkeypatch):
    monkeypatch.setattr(growing, "steps", scripted(*["word "] * 3000, wait=0.01))
    ask(page, "go on")
    expect(page.locator(".text")).to_contain_text("word word")
    page.click("#stop")
    expect(page.locator(".note")).to_be_visible()
    assert page.locator(".note").inner_text() == "stopped"
    ends = time.monotonic() + 30
    while server.line.there:
        assert time.monotonic() < ends


def test_a_mistake_is_told_and_the_question_kept(page):
    page.locator("summary").click()
    page.fill("#temperature", "9")
    ask(page, "hi")
    expect(page.locator(".wrong")).to_be_visible()
    assert "from 0 to 2" in page.locator(".wrong").inner_text()
    assert page.input_value("#question") == "hi"
