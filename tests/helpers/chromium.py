"""Chromium driven over a pipe by the DevTools protocol; its requests and its console are recorded."""

import base64
import contextlib
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from importlib.resources import files
from pathlib import Path

BROWSER = next(
    (name for name in ("chromium", "chromium-browser", "google-chrome") if shutil.which(name)), None
)
FLAGS = (
    "--headless --no-sandbox --disable-quic --no-first-run --disable-background-networking --disable-sync "
    "--disable-component-update --hide-scrollbars --use-angle=swiftshader --enable-unsafe-swiftshader "
    "--use-fake-ui-for-media-stream --use-fake-device-for-media-stream --remote-debugging-pipe about:blank"
).split()
KEYS = {"Tab": 9, "Enter": 13, "ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35}


class Browser:
    """Chromium with one page; `with Browser() as page`."""

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="chromium")
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        # Chromium reads from handle 3 and writes to handle 4.
        command = [
            "bash",
            "-c",
            f'exec "$@" 3<&{to_read} 4>&{to_write}',
            "-",
            shutil.which(BROWSER),
            *FLAGS,
            f"--user-data-dir={self._folder.name}",
        ]
        self._process = subprocess.Popen(
            command, pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        os.close(to_read), os.close(to_write)
        self._number, self._answers, self._session = 0, queue.Queue(), None
        self.requests, self.console, self.failed = [], [], []
        threading.Thread(target=self._listen, daemon=True).start()
        target = self.call("Target.getTargets")["targetInfos"]
        page = next(one["targetId"] for one in target if one["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log", "DOM", "Accessibility"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError, TimeoutError):
            self._session = None
            self.call("Browser.close")
        self._process.wait(timeout=20)
        for handle in (self._to, self._from):
            os.close(handle)
        with contextlib.suppress(OSError):
            self._folder.cleanup()

    def _listen(self):
        held = b""
        with contextlib.suppress(OSError):
            while piece := os.read(self._from, 1 << 20):
                *whole, held = (held + piece).split(b"\0")
                for message in whole:
                    self._take(json.loads(message))
        self._answers.put({"id": -1})

    def _take(self, message):
        facts = message.get("params", {})
        match message.get("method"):
            case None:
                self._answers.put(message)
            case "Network.requestWillBeSent":
                self.requests.append(facts["request"]["url"])
            case "Network.responseReceived" if facts["response"]["status"] >= 400:
                self.failed.append((facts["response"]["status"], facts["response"]["url"]))
            case "Runtime.consoleAPICalled" if facts["type"] in ("error", "warning"):
                self.console.append(
                    " ".join(str(one.get("value", one.get("description"))) for one in facts["args"])
                )
            case "Runtime.exceptionThrown":
                self.console.append(str(facts["exceptionDetails"].get("exception", {}).get("description")))
            case "Log.entryAdded" if facts["entry"]["level"] in ("error", "warning"):
                self.console.append(f"{facts['entry']['text']} {facts['entry'].get('url', '')}")

    def call(self, method, **values):
        self._number += 1
        message = {"id": self._number, "method": method, "params": values}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            try:
                answer = self._answers.get(timeout=60)
            except queue.Empty:
                raise TimeoutError(method) from None
            if answer["id"] == -1:
                raise OSError("the browser has gone")
            if answer["id"] == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def run(self, script):
        """Value of an expression, awaited if it is a promise."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, script, seconds=30):
        """Wait until an expression is true, and return its value."""
        end = time.monotonic() + seconds
        while not (
            value := self.run(
                f"(async () => {{ const it = await ({script}); return it instanceof Node || it; }})()"
            )
        ):
            assert time.monotonic() < end, (
                f"never true: {script}; status: {self.run('document.body.innerText')[:400]}"
            )
            time.sleep(0.05)
        return value

    def size(self, width, height=844, *, dark=False, scale=1):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def open(self, address):
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)

    def press(self, key, times=1):
        for _ in range(times):
            facts = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
            text = {"text": "\r"} if key == "Enter" else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", **facts, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **facts)

    def write(self, text):
        self.call("Input.insertText", text=text)

    def click(self, selector=None, *, at=None):
        x, y = at or self.run(
            f"(() => {{ const n = document.querySelector({json.dumps(selector)}); "
            "n.scrollIntoView({block: 'center', behavior: 'instant'}); "
            "const b = n.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def choose(self, selector, path):
        """Choose a file in an input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def names(self):
        """Role and name of everything that a screen reader comes to."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node.get("ignored") and "role" in node
        ]

    def picture(self, path):
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


def find_barriers(page, address):
    """Open a page and list what axe-core finds: rule, impact, and the first elements.

    Pictures behind text are left out, for axe cannot compare a letter with a gradient.
    """
    page.call("Page.setBypassCSP", enabled=True)
    try:
        page.open(address)
        page.wait("document.readyState === 'complete' && document.querySelector('main')")
        page.run(
            "document.head.append(Object.assign(document.createElement('style'), "
            "{textContent: '* { background-image: none !important; }'}))"
        )
        return list_barriers(page)
    finally:
        page.call("Page.setBypassCSP", enabled=False)


def list_barriers(page):
    """List what axe-core finds in the page that is open."""
    script = files("axe_playwright_python") / "axe.min.js"
    page.run(f"{script.read_text(encoding='utf-8')}; 0")
    return page.run(
        "axe.run().then((found) => found.violations.map((one) => "
        "[one.id, one.impact, one.nodes.slice(0, 3).map((node) => "
        "node.html.slice(0, 200) + node.failureSummary)]))"
    )
