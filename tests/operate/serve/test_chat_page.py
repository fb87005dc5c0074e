"""The chat page: it asks the network for nothing but its server, and in a browser an image is asked about."""

import re
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from PIL import Image

from gossamer.data.scenes import scene
from gossamer.engine.decode import Request, decode
from gossamer.evaluate.prompts import prompt_inputs

QUESTION = "what shape is the largest object?"


def test_the_page_loads_nothing_from_elsewhere(serve, lm) -> None:
    status, headers, page = serve(lm).ask("GET", "/")
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert not re.search(r"https?://|src=\"(?!data:)|@import", page)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium")
def test_a_browser_asks_about_an_image(serve, vlm, tmp_path: Path) -> None:
    image = Image.fromarray(scene("test", 3).image)
    image.save(tmp_path / "scene.png")
    request = Request(prompt_inputs(vlm, QUESTION, [image]), max_new_tokens=2)
    expected = "".join(event.text for event in decode(vlm.model, [request], vlm.tokenizer))
    served = serve(vlm, keys=("secret",))
    with Browser(tmp_path / "profile") as browser:
        browser.do("Page.navigate", url=f"http://127.0.0.1:{served.port}/")
        browser.until("document.querySelector('#ask')?.hidden === false")
        browser.run("document.querySelector('#key').value = 'secret'; document.querySelector('#enter').click()")
        browser.until("document.querySelector('#model').textContent === 'tiny'")
        browser.choose("#image", tmp_path / "scene.png")
        browser.until("!document.querySelector('#chosen').hidden")
        browser.run("temperature.value = 0; tokens.value = 2; text.focus()")
        browser.type(QUESTION)
        browser.until("document.querySelector('.assistant .facts')")
        assert browser.run("document.querySelector('.assistant p').textContent") == expected
        assert browser.run("document.querySelector('.user img').naturalWidth") == image.width
        assert "image" in browser.run("document.querySelector('.facts').textContent")
        browser.run("tokens.value = 100000; text.focus()")
        browser.type("what?")
        browser.until("!document.querySelector('#stop').hidden && document.querySelectorAll('.assistant').length == 2")
        browser.run("document.querySelector('#stop').click()")
        browser.until("document.querySelector('#stop').hidden")
        browser.run("temperature.value = 7; text.focus()")
        browser.type("x")
        browser.until("document.querySelector('.wrong')?.textContent.includes('temperature')")
        browser.picture(tmp_path / "page.png")
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        assert (tmp_path / "page.png").stat().st_size > 1000
