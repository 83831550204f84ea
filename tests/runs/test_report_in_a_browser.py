"""A run's page as a browser shows it from disk: nothing is fetched, text stays text, it fits a narrow screen."""

import contextlib
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.reported_run import made

from ft.runs import report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
FLAGS += ["--disable-background-networking", "--no-first-run", "--virtual-time-budget=4000"]

# a frame as wide as a phone, and what its page does
PROBE = """<!doctype html><iframe width=400 height=800 src="report.html"></iframe><pre></pre><script>
onload = () => {
  const page = document.querySelector("iframe").contentDocument, rows = () =>
    [...page.querySelectorAll(".rows > .row")].filter((row) => !row.hidden).map((row) => row.querySelector(".number").textContent);
  const found = { wide: page.documentElement.scrollWidth, before: rows() };
  found.light = getComputedStyle(page.body).backgroundColor;
  const order = page.querySelector(".tools select"), search = page.querySelector(".tools input");
  order.value = "most gained first";
  order.dispatchEvent(new Event("change"));
  found.gained = rows();
  page.querySelector(".tools button").click();
  found.button = page.querySelector(".tools button").textContent;
  found.marked = rows();
  page.querySelector(".tools button").click();
  search.value = "ROW 3";
  search.dispatchEvent(new Event("input"));
  found.filtered = rows();
  document.querySelector("pre").textContent = JSON.stringify(found);
};
</script>"""


def shown(page: Path, *flags: str) -> str:
    """The document as it is once its scripts have run."""
    place = f"--user-data-dir={page.parent / 'browser'}"
    command = [str(BROWSER), *FLAGS, place, *flags, "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@contextlib.contextmanager
def server() -> Iterator[tuple[str, list[str]]]:
    """An address, and what is asked of it."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    found = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{found.server_port}", asked
    finally:
        found.shutdown()
        thread.join()
        found.server_close()


def test_a_page_fetches_nothing_and_runs_no_script_but_its_own(tmp_path: Path) -> None:
    page = report.write(made(tmp_path / "run"))
    written = page.read_text()
    with server() as (address, asked):
        evil = f"<script>document.title = 'taken'</script><img src='{address}/image'>"
        assert "<title>run</title>" in shown(page)
        assert asked == []
        # even if a row's text were let through, the page's own policy would hold it
        page.write_text(written.replace("idk lol", evil, 1))
        assert "<title>run</title>" in shown(page)
        assert asked == []
        page.write_text(re.sub("<meta http-equiv=.Content-Security-.*?>", "", page.read_text()))
        assert "<title>taken</title>" in shown(page)
        assert asked == ["/image"]


def test_a_page_fits_a_phone_and_can_be_sorted_and_filtered(tmp_path: Path) -> None:
    page = report.write(made(tmp_path / "run"))
    probe = page.with_name("probe.html")
    probe.write_text(PROBE)
    seen = re.search(r"<pre>(.*?)</pre>", shown(probe), re.DOTALL)
    assert seen
    found = json.loads(seen[1])
    assert found["wide"] <= 400
    count = len(found["gained"])
    assert found["before"] == [str(i + 1) for i in range(12)]
    assert sorted(found["gained"], key=int) == [str(i + 1) for i in range(count)]
    assert found["gained"][0] == "2"  # the base had no answer, the tuned model the right one
    assert found["button"] in ("emoji", "loops", "slang")
    assert 0 < len(found["marked"]) < count
    assert found["filtered"] == ["6"]
    dark = shown(probe, "--blink-settings=preferredColorScheme=0")
    assert found["light"] not in dark
