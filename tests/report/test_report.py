"""The report: what it says, that it asks the network for nothing, and that a browser draws its plots."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import synthetic

from gossamer.core.errors import DataError, OutputError
from gossamer.report import words
from gossamer.report.build import write_report
from gossamer.report.schema import Result

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)


class _Page(HTMLParser):
    """Collects what a browser would load, and the text outside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.words: list[str] = []
        self.charts: dict[str, Any] = {}
        self._inside = ""
        self._chart = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.loads += [given[name] for name in ("src", "href", "data", "poster", "srcset", "action") if name in given]
        if tag in ("script", "style"):
            self._inside, self._chart = tag, given.get("data-chart", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script" and self._chart:
            self.charts[self._chart] = json.loads(data)
        elif not self._inside:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> _Page:
    path = write_report(tmp_path_factory.mktemp("run"), synthetic.result())
    return _Page(path.read_text(encoding="utf-8"))


def changed(**changes: Any) -> dict[str, Any]:
    return {**synthetic.result(), **changes}


def test_loads_nothing_from_anywhere(page: _Page) -> None:
    assert page.loads
    assert all(load.startswith("data:image/png;base64,") for load in page.loads)


def test_style_sheets_ask_for_nothing(tmp_path: Path) -> None:
    html = write_report(tmp_path, synthetic.result()).read_text(encoding="utf-8")
    styles = "".join(re.findall(r"<style>(.*?)</style>", html, re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles
    assert "default-src 'none'" in html


def test_says_the_result_in_one_sentence(page: _Page) -> None:
    sentence = words.summary(Result.model_validate(synthetic.result()))
    assert sentence in page.text
    assert sentence == (
        "tiny-vlm shrinks from 9.44 MB at 16 bits to 2.98 MB, 68.4 % smaller, while its accuracy on closed questions "
        "goes from 92.65 % to 92.10 % (uniform gptq-w4g64 at no more bytes: 89.15 %)."
    )


def test_shows_everything_that_was_given(page: _Page) -> None:
    for piece in (
        "90.83 – 93.20 %, n 2,000", "−0.55 points", "−1.05 to −0.05 points",
        "estimate", "not measured", "within the budget of 3 MB", "within the 1 point allowed",
        "3.8 × 10⁻⁶", "Never worse", "packed embeddings do not load", "What colour is the largest shape?", "✗ wrong",
        "gossamer optimize tiny-vlm --memory 3MB", "compressed-tensors", "gossamer_plan: 1", "never-worse guard",
        "self_attn.q_proj", "red circle 0.91",
    ):  # fmt: skip
        assert piece in page.text, piece


def test_what_storing_and_running_takes_stands_before_and_after(page: _Page) -> None:
    for piece in (
        "Weights on disk 18.9 MB 2.98 MB not measured −84.2 %",
        "Weights in memory, running 18.9 MB 18.9 MB not measured 0.0 %",
        "transformers 41.2 ms 40.6 – 42.3 ms, n 15 41.5 ms 40.7 – 42.2 ms, n 15 not measured +0.4 % −0.9 to +1.3 %",
        "transformers 6.41 ms 6.32 – 6.57 ms, n 15 6.38 ms 6.3 – 6.55 ms, n 15 not measured −0.5 % −1.8 to +0.6 %",
        "Image encoding 13.1 ms",
        "Times are medians with quartiles after warm-up, both models in turn, of a text prompt of 128 tokens;",
        "their change is the median over pairs of runs.",
        "The job took 3 min 34 s and 731 MB of memory at its peak.",
        "smaller weights do not run faster there",
    ):
        assert piece in page.text, piece
    assert "ratio" not in page.text.partition("Change is")[0].partition("Before and after")[2]


def test_results_of_before_the_meters_still_make_a_report(tmp_path: Path) -> None:
    old = synthetic.result()
    del old["peak_memory_bytes"]
    for side in (old["baseline"]["measured"], old["measured"]):
        for key in [key for key in side if "_ms" in key or (key.startswith("weight_") and key != "weight_bytes")]:
            del side[key]
    page = _Page(write_report(tmp_path, old).read_text(encoding="utf-8"))
    assert "Prefill" not in page.text
    assert "Times are" not in page.text
    assert "The job took 3 min 34 s." in page.text


def test_each_unit_is_a_curve_on_a_log_axis_in_its_modality(page: _Page) -> None:
    figure = page.charts["sensitivity-chart"]
    assert [note["text"] for note in figure["layout"]["annotations"]] == [
        "<b>vision</b>", "<b>language</b>", "<b>projector</b>", "<b>head</b>",
    ]  # fmt: skip
    assert figure["layout"]["yaxis"]["type"] == "log"
    units = [trace for trace in figure["data"] if trace["name"] != "median"]
    assert len(units) == 6 * 4 * 2 + 3
    curve = next(trace for trace in units if trace["name"] == "language.blocks.0.mlp.down_proj")
    assert curve["x"] == [2, 3, 4, 5, 6, 8]
    assert "g32" in curve["text"][0]


def test_the_pareto_plot_has_the_baselines_the_choice_and_the_budget(page: _Page) -> None:
    figure = page.charts["pareto-chart"]
    by_name = {trace["name"]: trace for trace in figure["data"]}
    assert by_name["uniform setting"]["text"][2] == "w4 g64"
    assert len(by_name["allocated plan"]["x"]) == 8
    assert by_name["allocated plan"]["marker"]["symbol"][-1] == "circle-open"
    assert len(by_name["chosen"]["x"]) == 1
    assert by_name["front"]["y"] == sorted(by_name["front"]["y"], reverse=True)
    assert figure["layout"]["shapes"][0]["x0"] == 3.0


def test_the_pareto_axis_stays_logarithmic_beside_the_model_without_loss(tmp_path: Path) -> None:
    result = synthetic.result()
    result["pareto"].append({"weight_bytes": 9_437_184, "loss": 0.0, "kind": "allocated", "label": "16 bits"})
    page = _Page(write_report(tmp_path, result).read_text(encoding="utf-8"))
    figure = page.charts["pareto-chart"]
    assert figure["layout"]["yaxis"]["type"] == "log"
    assert all(loss > 0 for trace in figure["data"] for loss in trace["y"])


def test_names_are_titles_not_paths() -> None:
    titles = {"/models/stories.bin": "stories.bin", "org/name-1B": "org/name-1B", "tiny-vlm": "tiny-vlm"}
    for name, shown in titles.items():
        model = {**synthetic.result()["model"], "name": name}
        assert words.title(Result.model_validate(changed(model=model))) == shown


def test_a_tied_layer_is_said_to_be_tied(tmp_path: Path) -> None:
    tied = {"path": "head.lm_head", "bits": 16, "choice": "16 bits", "weight_bytes": 0, "parameters": 100}
    page = _Page(write_report(tmp_path, changed(layers=[*synthetic.result()["layers"][:-1], tied])).read_text("utf-8"))
    assert "tied" in page.text


def test_same_result_same_bytes(tmp_path: Path) -> None:
    one = write_report(tmp_path / "one", synthetic.result()).read_bytes()
    assert one == write_report(tmp_path / "two", synthetic.result()).read_bytes()


def test_a_bare_result_makes_a_report(tmp_path: Path) -> None:
    bare = changed(uniform=None, pareto=[], sensitivity=[], layers=[], additivity=None, samples=[], notes=[], data=[])
    page = _Page(write_report(tmp_path, bare).read_text(encoding="utf-8"))
    assert page.charts == {}
    assert "Before and after" in page.text


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    result = changed(command="</pre><script>alert(1)</script>", notes=["<img src=http://x/y.png>"])
    result["sensitivity"][0]["path"] = "</script><script>alert(2)</script>"
    page = _Page(write_report(tmp_path, result).read_text(encoding="utf-8"))
    assert "alert(1)" in page.text
    assert not any("http" in load for load in page.loads)
    assert "alert(2)" in page.charts["sensitivity-chart"]["data"][0]["text"][0]


def test_images_come_from_the_run_folder(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (900, 600), "red").save(tmp_path / "one.png")
    samples = [{"prompt": "a", "after": "b", "image": "one.png"}, {"prompt": "c", "after": "d", "image": "gone.png"}]
    page = _Page(write_report(tmp_path, changed(samples=samples)).read_text(encoding="utf-8"))
    assert len(page.loads) == 1
    assert "image gone.png cannot be read" in page.text


def test_missed_requirements_are_said(tmp_path: Path) -> None:
    result = changed(budget={"weight_bytes": 2_500_000, "max_loss_percent": 0.1})
    page = _Page(write_report(tmp_path, result).read_text(encoding="utf-8"))
    assert "over the budget of 2.5 MB" in page.text
    assert "beyond the 0.1 points allowed" in page.text


def test_a_wrong_result_names_the_field(tmp_path: Path) -> None:
    result = synthetic.result()
    result["pareto"][3]["loss"] = float("nan")
    with pytest.raises(DataError, match=r"pareto\.3\.loss"):
        write_report(tmp_path, result)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_report(tmp_path / "file", synthetic.result())


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("weight_bytes", 2_981_376, "2.98 MB"), ("accuracy", 0.9265, "92.65 %"), ("ap50", 0.7812, "0.781"),
        ("perplexity", 18.307, "18.31"), ("kl", 0.05321, "0.0532 nats"), ("decode_ms", 6.413, "6.41 ms"),
        ("tokens_per_s", 152.3, "152 /s"), ("saving_percent", 68.41, "68.4 %"), ("time_s", 214, "3 min 34 s"),
    ],
)  # fmt: skip
def test_units_follow_the_key(key: str, value: float, shown: str) -> None:
    assert words.show(key, value) == shown


def test_loss_counts_points_for_accuracies_and_percent_for_perplexities() -> None:
    result = Result.model_validate(synthetic.result())
    assert words.loss_percent(result) == pytest.approx(0.55)
    other = synthetic.result()
    other["task"] = {"name": "text", "metric": "perplexity", "higher_is_better": False}
    for side, value in ((other["baseline"]["measured"], 20.0), (other["measured"], 21.0)):
        side["perplexity"] = {"value": value, "low": value, "high": value, "n": 9, "method": "bootstrap"}
    assert words.loss_percent(Result.model_validate(other)) == pytest.approx(5.0)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium")
def test_a_browser_draws_the_plots(tmp_path: Path) -> None:
    path = write_report(tmp_path / "run", synthetic.result())
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1280,900", "--virtual-time-budget=20000", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout
    for name in ("pareto-chart", "sensitivity-chart", "additivity-chart"):
        drawn = dom[dom.index(f'id="{name}"') :].split("</section>", 1)[0]
        assert drawn.count("<svg") >= 2, name
        assert len(re.findall(r'<path[^>]* d="M', drawn)) > 10, name
    assert dom.count('class="scatterlayer') >= 3
