"""The app in a browser: upload, restore, slider, download, a damaged file, two visitors."""

import time
from pathlib import Path
from urllib.request import urlopen

import cv2
import numpy as np
import pytest
import torch
from small_browser import CHROMIUM, Browser

from hidiff import UserError

pytest.importorskip("gradio")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")


def until(answer, seconds=60):
    """What a function returns as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := answer()):
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.1)
    return found


class Visitor:
    """A browser that has the page open."""

    def __init__(self, folder: Path, address: str) -> None:
        self.browser = Browser(folder)
        self.browser.open(address, 1200, 900)
        until(lambda: self.browser.js("document.querySelectorAll('input[type=file]').length"))

    def upload(self, *files: Path) -> None:
        root = self.browser("DOM.getDocument", depth=-1)["root"]["nodeId"]
        node = self.browser("DOM.querySelector", nodeId=root, selector="input[type=file]")
        names = [str(file) for file in files]
        self.browser("DOM.setFileInputFiles", nodeId=node["nodeId"], files=names)
        shown = "[...document.querySelectorAll('a[download]')].length"
        until(lambda: self.browser.js(shown) == len(files))

    def press(self) -> None:
        self.browser.js(
            "[...document.querySelectorAll('button')].find(b => b.innerText == 'Restore').click()"
        )

    def said(self) -> str:
        return self.browser.js(
            "[...document.querySelectorAll('textarea')].map(area => area.value).join()"
        )

    def results(self) -> list[str]:
        links = self.browser.js("[...document.querySelectorAll('a[download]')].map(a => a.href)")
        return [link for link in links if "_restored" in link]


@pytest.fixture
def photographs(tmp_path):
    rng = np.random.default_rng(0)
    for name, shape in (("one", (48, 64, 3)), ("two", (40, 40, 3))):
        cv2.imwrite(str(tmp_path / f"{name}.png"), rng.integers(0, 256, shape, np.uint8))
    (tmp_path / "broken.png").write_bytes((tmp_path / "one.png").read_bytes()[:200])
    return tmp_path


def test_two_visitors_restore_and_download(photographs, tmp_path):
    from hidiff.restore.app import serve

    with serve(["bundled"], torch.device("cpu")) as address:
        assert address.startswith("http://127.0.0.1:")
        first, second = (Visitor(tmp_path / name, address) for name in ("a", "b"))
        try:
            first.upload(photographs / "one.png", photographs / "broken.png")
            second.upload(photographs / "two.png")
            first.press()
            second.press()
            text = until(first.said)
            assert "one.png: restored" in text
            assert "broken.png: " in text
            assert "broken.png: restored" not in text
            assert "two.png: restored" in until(second.said)
            (link,) = until(first.results)
            data = np.frombuffer(urlopen(link).read(), np.uint8)
            assert cv2.imdecode(data, cv2.IMREAD_UNCHANGED).shape == (48, 64, 3)
            wide = "[...document.querySelectorAll('img')].filter(i => i.naturalWidth == 64)"
            until(lambda: first.browser.js(f"{wide}.length") == 2)  # before and after
            assert first.browser.complaints == []
            others = [r for r in first.browser.requests if not r.startswith((address, "data:"))]
            assert [r for r in others if r.startswith("http")] == []
        finally:
            first.browser.close()
            second.browser.close()


def test_a_port_in_use_is_named(tmp_path):
    import socket

    from hidiff.restore.app import serve

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(UserError, match=f"--port {port}"),
            serve(["bundled"], torch.device("cpu"), port),
        ):
            pass
