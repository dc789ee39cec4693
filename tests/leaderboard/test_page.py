"""The page has the results, escapes markup in them, loads nothing from elsewhere, and works in a browser."""

import csv
import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from leaderboard.aggregate import load_results
from leaderboard.page import page, write_page

RESULTS = Path(__file__).parents[2] / "leaderboard" / "results"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def data_of(text):
    return json.loads(text.partition('type="application/json">')[2].partition("</script>")[0])


def test_every_row_of_every_stream_is_in_it():
    results = load_results(RESULTS)
    boards = data_of(page(results))
    found = {(board["name"].partition(",")[0], row["method"]) for board in boards for row in board["rows"]}
    assert found == {(result["stream"], result["method"]) for result in results}
    assert len({board["name"] for board in boards}) == len(boards)
    unknown = next(board for board in boards if board["name"] == "permuted-digits, task id unknown")
    assert unknown["protocol"].endswith("Scenario: task id unknown.")
    assert {"supsup+entropy", "exssnet+entropy"} <= {row["method"] for row in unknown["rows"]}
    assert all(row["time"] for row in unknown["rows"]), "times are over naive's, which has the ids"


def test_numbers_are_those_of_the_files():
    results = [r for r in load_results(RESULTS) if (r["stream"], r["method"]) == ("split-digits", "exssnet")]
    (stream,) = data_of(page(results))
    (row,) = stream["rows"]
    assert row["accuracy"]["value"] == pytest.approx(sum(r["average_accuracy"] for r in results) / len(results))
    assert row["curve"][-1] == pytest.approx(row["accuracy"]["value"])
    assert row["matrix"][-1][0] == pytest.approx(
        sum(r["accuracy_matrix"][-1][0] for r in results) / len(results), abs=1e-4
    )


def test_rows_that_the_seeds_do_not_tell_from_the_best_one_are_marked():
    (base, *_) = load_results(RESULTS)
    accuracies = {
        "best": (0.90, 0.91, 0.92),
        "level": (0.91, 0.90, 0.91),
        "worse": (0.80, 0.81, 0.82),
        "few": (0.7, 0.7),
    }
    results = [
        {**base, "method": name, "seed": seed, "average_accuracy": value}
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    rows = {row["method"]: row for row in data_of(page(results))[0]["rows"]}
    assert [name for name, row in rows.items() if row["best"]] == ["best"]
    assert [name for name, row in rows.items() if row["level"]] == ["level"]
    assert float(rows["level"]["level"]) > 0.05


def test_a_row_at_defaults_is_compared_over_the_seeds_that_both_have():
    (base, *_) = load_results(RESULTS)
    cells = [("supsup", 0, 0.5), ("supsup", 1, 0.9), ("supsup+default", 1, 0.8), ("supsup+default", 2, 0.1)]
    results = [{**base, "method": m, "seed": seed, "average_accuracy": value} for m, seed, value in cells]
    rows = {row["method"]: row for row in data_of(page(results))[0]["rows"]}
    assert rows["supsup"]["against_searched"] is None
    assert rows["supsup+default"]["against_searched"]["text"] == "-0.1000"


def test_a_method_named_like_a_tag_is_text():
    (result, *_) = load_results(RESULTS)
    text = page([{**result, "method": "</script><script>alert(1)</script>"}])
    assert "<script>alert" not in text
    assert data_of(text)[0]["rows"][0]["method"] == "</script><script>alert(1)</script>"


def test_it_needs_no_network(tmp_path):
    write_page(RESULTS, tmp_path / "page" / "index.html")
    text = (tmp_path / "page" / "index.html").read_text()
    links = [word for word in text.split('"') if word.startswith(("http:", "https:", "//"))]
    assert all(link.startswith("http://www.w3.org/") for link in links), "only the names of SVG and HTML"


class Browser:
    """Headless Chromium, controlled through a pair of pipes."""

    def __init__(self, folder, width):
        here_in, there_out = os.pipe()
        there_in, here_out = os.pipe()
        arguments = [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            f"--user-data-dir={folder}",
        ]
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{there_in} 4>&{there_out}', "bash", *arguments],
            pass_fds=(there_in, there_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(there_in)
        os.close(there_out)
        self.read, self.write = os.fdopen(here_in, "rb"), os.fdopen(here_out, "wb", buffering=0)
        self.sent, self.session, self.events = 0, {}, []
        (page,) = (t for t in self._ask("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self._ask("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", **screen)  # a window is never as narrow as a telephone

    def _ask(self, method, **parameters):
        self.sent += 1
        self.write.write(json.dumps({"id": self.sent, "method": method, "params": parameters, **self.session}).encode())
        self.write.write(b"\0")
        while (found := self._receive()).get("id") != self.sent:
            self.events.append(found)
        assert "error" not in found, found
        return found["result"]

    def _receive(self):
        text = bytearray()
        while (byte := self.read.read(1)) != b"\0":
            assert byte, "Chromium ended"
            text += byte
        return json.loads(text)

    def open(self, file, fragment=""):
        for address in ("about:blank", f"{file.as_uri()}#{fragment}"):  # a new fragment alone loads nothing again
            self._ask("Page.navigate", url=address)
            while not any(event["method"] == "Page.loadEventFired" for event in self.events):
                self.events.append(self._receive())
            self.events = [event for event in self.events if event["method"] != "Page.loadEventFired"]

    def run(self, script):
        found = self._ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def enter(self, name, value, event):
        field = f"document.getElementById('{name}')"
        self.run(f"(() => {{ {field}.value = '{value}'; {field}.dispatchEvent(new Event('{event}')); }})()")

    def errors(self):
        entries = [e["params"]["entry"] for e in self.events if e["method"] == "Log.entryAdded"]
        thrown = [e["params"] for e in self.events if e["method"] == "Runtime.exceptionThrown"]
        return thrown + [entry for entry in entries if entry["level"] == "error"]

    def close(self):
        self.process.kill()
        self.process.wait()
        self.read.close()
        self.write.close()


def within(size):
    """Return the rows of split-digits whose total bytes are at most ``size``."""
    (stream,) = data_of(page([r for r in load_results(RESULTS) if r["stream"] == "split-digits"]))
    return {row["method"] for row in stream["rows"] if row["bytes_total"]["value"] <= size}


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [1300, 400])
def test_it_is_clicked_through_in_a_browser(tmp_path, width):
    write_page(RESULTS, tmp_path / "index.html")
    browser = Browser(tmp_path / "profile", width)
    names = "[...document.querySelectorAll('#body tr')].map(r => r.cells[0].textContent)"
    try:
        browser.open(tmp_path / "index.html")
        accuracies = names.replace("cells[0].textContent", "cells[1].textContent.split(' ')[0]")
        best_first = browser.run(accuracies)  # Rows with equal accuracy may be in any order.
        expected = {r["method"] for r in load_results(RESULTS) if r["stream"] == "split-digits"}
        assert set(browser.run(names)) == expected
        assert best_first == sorted(best_first, reverse=True)
        browser.run("document.querySelectorAll('#head button')[1].click()")
        assert browser.run(accuracies) == best_first[::-1]
        browser.run("document.querySelectorAll('#head button')[0].click()")
        assert browser.run(names) == sorted(expected)
        assert browser.run("document.querySelectorAll('#head th').length") == 5, "few columns, until more are chosen"
        box = (
            "[...document.querySelectorAll('#columns label')].find(l => l.textContent.includes('searched')).firstChild"
        )
        browser.run(f"{box}.click()")
        assert browser.run("document.querySelectorAll('#head th').length") == 6
        table = browser.run("decodeURIComponent(document.getElementById('csv').href.split(',').slice(1).join(','))")
        lines = list(csv.DictReader(io.StringIO(table)))
        assert {line["method"] for line in lines} == expected
        (searched,) = (line for line in lines if line["method"] == "exssnet")
        (default,) = (line for line in lines if line["method"] == "exssnet+default")
        gap = float(default["accuracy"]) - float(searched["accuracy"])
        assert float(default["at defaults, minus searched"]) == pytest.approx(gap), "their seeds are the same"
        browser.enter("filter", "exss", "input")
        assert browser.run(names) == sorted(name for name in expected if "exss" in name)
        chosen = "document.querySelectorAll('tr.chosen').length"
        browser.run("document.querySelectorAll('#body button')[1].click()")
        assert browser.run(chosen) >= 1
        assert browser.run("document.querySelectorAll('#curves polyline').length") >= 2
        assert browser.run("document.querySelectorAll('#matrix rect').length") == 25
        assert browser.run("document.querySelectorAll('#forgetting polyline').length") >= 2
        assert browser.run("document.querySelectorAll('#tasks polyline').length") == 5
        browser.enter("filter", "EXSS", "input")
        assert browser.run(names) == sorted(name for name in expected if "exss" in name)
        browser.enter("filter", "no such method", "input")
        assert browser.run(names) == ["No method of this stream fits the two fields above."]
        browser.enter("filter", "", "input")
        for text in ("80k", "80 K", "80,000", "80kB"):
            browser.enter("budget", text, "input")
            assert set(browser.run(names)) == within(80e3) != expected
        browser.enter("budget", "many", "input")
        assert "expected a number of bytes" in browser.run("document.getElementById('budget').validationMessage")
        browser.enter("budget", "", "input")
        assert browser.run("document.getElementById('budget').validationMessage") == ""
        browser.run("document.getElementById('choice').open = true")
        edge = browser.run("document.querySelector('#choice div').getBoundingClientRect().right")
        assert edge <= width, "the column chooser is inside the window"
        browser.run("document.getElementById('choice').open = false")
        assert browser.run("window.innerWidth") == width
        assert set(browser.run(names)) == expected
        browser.enter("filter", "", "input")
        browser.enter("stream", "permuted-mnist", "change")
        assert "10 tasks" in browser.run("document.getElementById('protocol').textContent")
        assert browser.run("document.querySelectorAll('#matrix rect').length") == 100
        link = browser.run("document.getElementById('link').href")
        seen = browser.run("document.body.innerText")
        browser.open(tmp_path / "index.html", link.partition("#")[2])
        assert browser.run("document.body.innerText") == seen, "the link shows the same view"
        assert "exssnet" in browser.run("document.getElementById('lead').textContent")
        assert browser.run("document.documentElement.scrollWidth <= window.innerWidth"), "no sideways scrolling"
        assert browser.errors() == []
        few = [r for r in load_results(RESULTS) if (r["stream"], r["method"]) == ("split-digits", "naive")]
        (tmp_path / "few.html").write_text(page(few))
        browser.open(tmp_path / "few.html")
        marks = browser.run(
            "[...document.querySelectorAll('#bytes text')].filter(t => t.textContent.endsWith('kB')).length"
        )
        assert marks == 3, "the axis of bytes has marks even where all rows have about as many"
        assert browser.errors() == []
    finally:
        browser.close()
