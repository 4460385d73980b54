"""The page in a real browser: it is drawn, says nothing on the console and asks for nothing."""

import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ds_moe_mtl.cli import main
from tests.support.pages import chromium
from tests.support.runs import write_run

QUIET = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync")
BAD = "<script>console.error('said')</script><img src='http://elsewhere.test/seen.png'>"


class Served:
    """A folder on a port of this machine, to which every name leads; requests: the paths asked."""

    def __init__(self, folder):
        self.requests = []
        requests = self.requests

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args):
                super().__init__(*args, directory=str(folder))

            def log_request(self, code="-", size="-"):
                requests.append(self.path)

            def log_message(self, *args):
                """Nothing is printed."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def open(self, name, profile):
        """Return (the page's elements after it was drawn, the console's lines, what was asked)."""
        self.requests.clear()
        port = self.server.server_address[1]
        rules = f"--host-resolver-rules=MAP *.test 127.0.0.1:{port}, MAP * ~NOTFOUND"
        logs = ("--enable-logging=stderr", "--v=0", f"--user-data-dir={profile}")
        command = [chromium(), *QUIET, *logs, rules, "--dump-dom", f"http://page.test/{name}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return done.stdout, console, list(self.requests)


@pytest.fixture
def served(tmp_path):
    chromium()
    site = Served(tmp_path)
    yield site
    site.server.shutdown()
    site.server.server_close()


def test_a_browser_draws_the_page_without_a_request_and_without_a_word(served, tmp_path, capsys):
    runs = [
        write_run(tmp_path / "tag", ["rte", "<script>alert(1)</script>"], notes=(BAD,)),
        write_run(tmp_path / "dense", ["rte"], kind="mt_dense", seed=1),
    ]
    output = ["--output", str(tmp_path / "page.html")]
    assert main(["report", *map(str, runs), *output]) == 0
    (tmp_path / "bad.html").write_text(BAD)
    drawn, console, requests = served.open("page.html", tmp_path / "one")
    assert drawn.count("<svg") > 10 and "Scores on dev rows" in drawn
    assert (console, requests) == ([], ["/page.html"])
    _, console, requests = served.open("bad.html", tmp_path / "two")  # what the check would see
    assert any("said" in line for line in console) and "/seen.png" in requests
