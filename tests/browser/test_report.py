"""The report in a browser: nothing is cut, answers come first, and a key chooses a clip."""
import pytest
from made_runs import make_run

from sashimi_wb.studies.report import write_report
from sashimi_wb.studies.study_files import get_study

pytestmark = pytest.mark.slow

CUT = """open => [...document.querySelectorAll("details")].forEach(d => { d.open = open; })
|| [document.documentElement, ...document.querySelectorAll(".swb-scroll")]
   .filter(e => e.scrollWidth > e.clientWidth + 1 && e.checkVisibility()).map(e => e.className + " " + e.scrollWidth)"""


def record(folder, **changes):
    run = make_run(folder, **changes)
    stages = [{"name": name, "depth": i % 2, "kind": "blocks", "shape": [1, 64, 8]} for i, name in enumerate("abc")]
    return run.record | {"folder": str(run.folder), "stages": stages}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Three seeds of three arms, and one of each arm beside prediction."""
    folder = tmp_path_factory.mktemp("runs")
    arms = {}
    for name, share in (("codes", .6), ("dequantized", .61), ("raw", .5)):
        arms[name] = [record(folder, share=share, seed=seed, input=name, encoder=None) for seed in range(3)]
        arms[f"{name} + prediction"] = [record(folder, share=share, input=name, encoder=None, predictor="adaptive")]
    study = get_study("quantized_vs_raw")
    return write_report([(study, arms)], folder / "report.html", title=study.question).as_uri()


@pytest.mark.parametrize("width", [1280, 1000, 400])
def test_nothing_is_cut(lab, report, width):
    page = lab.browser.new_page(viewport={"width": width, "height": 900})
    page.goto(report)
    assert page.evaluate(CUT, False) == []
    if width >= 1000: assert page.evaluate(CUT, True) == []          # on a phone, wide tables may scroll when unfolded
    answer = page.get_by_text("Yes: with raw input").first.bounding_box()
    assert answer["y"] + answer["height"] < 400      # after the question and the machine
    figure = page.locator(".swb-figure img:visible").first.bounding_box()
    assert figure["width"] <= width and (width < 1000 or figure["y"] + figure["height"] < 900)
    page.close()


def test_a_key_chooses_a_clip(lab, report):
    page = lab.browser.new_page()
    page.goto(report)
    form = page.locator(".swb-steps").first
    names, keys = form.locator(".swb-picks label").all_inner_texts(), form.locator("kbd").all_inner_texts()
    assert keys == [str(i + 1) for i in range(len(names))] and len(names) == 6
    form.locator("input[type=radio]").first.focus()
    page.keyboard.press("3")
    assert form.locator("figure:not([hidden]) figcaption").inner_text().startswith("codes: continuation")
    page.close()
