"""A headless Chromium, spoken to over its DevTools protocol: what a reader's browser does with a page."""

import base64
import itertools
import json
import re
import shutil
import subprocess
from contextlib import contextmanager

import pytest

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync "
    "--disable-component-update --hide-scrollbars --remote-debugging-port=0 --remote-allow-origins=*"
)


class Page:
    """One page. `trouble`: what the console and the log complained of; `fetched`: every address asked for."""

    def __init__(self, socket):
        self.socket, self.numbers, self.events = socket, itertools.count(1), []
        self.trouble, self.fetched = [], []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **parameters):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (message := json.loads(self.socket.recv())).get("id") != number:
            self._note(message)
        assert "error" not in message, message
        return message["result"]

    def _note(self, message):
        self.events.append(message["method"])
        content = message["params"]
        if message["method"] in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.trouble.append(content)
        elif message["method"] == "Network.requestWillBeSent":
            self.fetched.append(content["request"]["url"])

    def open(self, path):
        self.events.clear()
        self.send("Page.navigate", url=path.as_uri())
        while "Page.loadEventFired" not in self.events:
            self._note(json.loads(self.socket.recv()))
        return self

    def ask(self, expression):
        """The value of a JavaScript expression in the page."""
        done = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def press(self, key, code):
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)

    def show_as(self, width=1200, scheme="light", media="screen"):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", media=media, features=features)

    def picture(self):
        """PNG of the whole page."""
        done = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(done["data"])

    def pdf(self):
        return base64.b64decode(self.send("Page.printToPDF", printBackground=True)["data"])


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Opens an HTML file; skips where no Chromium is installed."""
    with started(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@contextmanager
def started(profile):
    """A page of a browser that keeps its files in the folder `profile`."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    websocket = pytest.importorskip("websocket")
    process = subprocess.Popen(
        [program, *FLAGS.split(), f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        for line in process.stderr:
            if found := re.search(r"ws://[^/]+:(\d+)/", line):
                break
        else:
            pytest.skip("Chromium does not start here")
        import urllib.request

        with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/json") as answer:
            address = next(tab["webSocketDebuggerUrl"] for tab in json.load(answer) if tab["type"] == "page")
        socket = websocket.create_connection(address, timeout=60)
        yield Page(socket)
        socket.close()
    finally:
        process.terminate()
        process.communicate(timeout=30)
