"""Text of records, files and folders stays text in all HTML: markup in it adds no element to a page."""
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from made_runs import make_run

from sashimi_wb.models.stage_report import stage_report
from sashimi_wb.models.wave_model import WaveModel
from sashimi_wb.pages.layouts_page import explore_layouts
from sashimi_wb.pages.page import Runner, error_html, note_html
from sashimi_wb.pages.quantization_page import explore_quantization
from sashimi_wb.pages.runs_page import explore_runs
from sashimi_wb.pages.stage_figures import sounds_html, unet_html
from sashimi_wb.pages.training_figures import clips_html, curves_html
from sashimi_wb.pages.training_page import plan_html, result_html
from sashimi_wb.show.figures import label_text, new_figure, plot_clips, plot_mel, plot_wave, tidy
from sashimi_wb.show.html import figure_html, table
from sashimi_wb.show.players import player, player_row
from sashimi_wb.show.synced_players import players_in_step
from sashimi_wb.studies.growing_clip import clips_html as cards_html
from sashimi_wb.studies.live_run import Progress
from sashimi_wb.studies.report import report_html
from sashimi_wb.studies.run_table import read_runs
from sashimi_wb.studies.study_files import get_study

PLAIN = "a plain word"
MARKUP = "<img src=x onerror=alert(1)>\"'&$x$ \\frac{1} _2^{\udce9 {0} %s </td></script>"
# as a file name; names that are not valid UTF-8 are tested where files are read
IN_A_PATH = MARKUP.replace("/", "⁄").replace("\udce9", "é")
ROOT = Path(__file__).resolve().parents[2]


class Elements(HTMLParser):
    "The elements of a page with the names of their attributes, and its text."
    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts = [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, *(name for name, _ in attrs)))
        self.texts += [value for _, value in attrs if value]

    def handle_endtag(self, tag): self.elements.append(("/", tag))

    def handle_data(self, data): self.texts.append(data)

    def handle_comment(self, data): self.elements.append(("!", data))


def filled(value, text, key=""):
    "A record with every text replaced, except its parameters, times and kinds of stages."
    if isinstance(value, dict):
        return {k: v if k == "parameters" and isinstance(v, dict) else filled(v, text, k) for k, v in value.items()}
    if isinstance(value, list): return [filled(v, text, key) for v in value]
    return text if isinstance(value, str) and key != "finished" else value


def make_runs(folder, audio, text):
    "Runs whose records contain a text wherever possible; some are damaged, some were written by another version."
    for changes in ({}, {"seed": 1}, {"input": "raw", "encoder": "linear_projection"}):
        run = make_run(folder, audio, **changes)
        record = run.record | {"remarks": ["one"], "reductions": ["another"]}
        if not changes:
            record["stages"] = stage_report(WaveModel(run.experiment.model_config()), run.data.train[0]["x"][None])
        run.result_path.write_text(json.dumps(filled(record, text)), encoding="utf-8")
        name = f"{text.replace('/', '⁄')[:60]} {run.hash}".encode("utf-8", "replace").decode()
        run.folder.rename(run.folder.parent/name)
    for name, wrong in {"a": {"parameters": {text: text}}, "b": {"parameters": {"bits": 8}, text: text}, "c": text,
                        "d": {"parameters": {"head": text}}}.items():
        (folder/name).mkdir()
        (folder/name/"result.json").write_text(json.dumps(wrong), encoding="utf-8")


def pages(top, text):
    "All HTML of the package that contains text from outside, by name."
    in_path = IN_A_PATH if text == MARKUP else text
    audio, runs = top/in_path/"audio", top/in_path/"runs"
    audio.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(6):
        soundfile.write(io.FileIO(audio/f"{in_path[:100]} {i}.wav", "w"), rng.uniform(-0.5, 0.5, 8000), 4000,
                        format="WAV")
    make_runs(runs, audio, text)
    page, (found, notes) = explore_runs(runs), read_runs(runs)
    page.controls.chosen.value = [r.folder for r in found]
    page.latest.stop()
    page.latest.wait()
    page.run(SimpleNamespace(going=True))
    assert not page.error.value, page.error.value
    records = {f"{text} {i}": [r.record] for i, r in enumerate(found)}
    with_stages = {name: [seeds[0] | {"stages": next(r.record["stages"] for r in found if r.record["stages"])}]
                   for name, seeds in records.items()}
    live = make_run(runs, audio, seed=7)
    clips = live.folder/"clips"
    clips.mkdir()
    for step in range(3): (clips/f"step-{step}.flac").write_bytes((live.folder/"original.flac").read_bytes())
    wave = rng.uniform(-0.5, 0.5, 4000)
    clip = SimpleNamespace(wave=wave[:, None], rate=4000, n_filled=4000, n_prompt=0, prompt_s=0.0, duration_s=1.0)
    own, layouts = explore_quantization(audio=audio), explore_layouts(audio=audio)
    for p in (own, layouts): p.run(SimpleNamespace(going=True))
    runner = Runner(text, lambda r: None)
    runner.report(0.5, text)
    fig = new_figure(6, 4)
    ax = tidy(fig.subplots(), text, text, text)
    ax.plot([1, 2], [1, 2], label=label_text(f"_{text}"))
    ax.legend()
    ax.set_xticks([1, 2], [label_text(text), "b"])
    return {
        "runs": page.html, "notes": "".join(note_html(n) for n in notes),
        "report": report_html([(get_study("quantized_vs_raw"), with_stages)], text),
        "depths": report_html([(get_study("bit_depth"),
                                {f"{text}: 8 bit categorical": next(iter(with_stages.values()))})], text),
        "clips": "".join(clips_html(live, players=2)), "curves": curves_html(Progress.saved(live)),
        "plan": plan_html(live, "smoke", {text: text}), "result": result_html(live), "cards": cards_html({text: clip}),
        "player": player(wave, 4000, text).data, "players": player_row({text: wave, "b": wave}, 4000).data,
        "steps": players_in_step({text: wave, "b": wave}, 4000, label=text).data,
        "table": table([{text: text, "n": [1, 2]}, {text: [text, 2], "n": 3}, {text: {text: 1}, "n": None}],
                       caption=text, note=text).data,
        "formatted": table([{"a": 1}], {"a": text}, {"a": lambda v: text}).data,
        "figure": figure_html(fig, text).data, "note": note_html(text), "error": error_html(ValueError(text)),
        "fault": error_html(ArithmeticError(text)), "runner": runner.status.value + own.html + layouts.html,
        "unet": unet_html(next(r.record["stages"] for r in found if r.record["stages"]), text),
        "sounds": sounds_html(wave[:, None], 4000, wave[:20], 4000, text),
        "drawn": "".join(figure_html(f, text).data
                         for f in (plot_clips({text: wave}, 4000), plot_wave(wave, 4000, text),
                                   plot_mel(wave, 4000, text))),
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return {text: pages(tmp_path_factory.mktemp("pages"), text) for text in (PLAIN, MARKUP)}


@pytest.mark.slow
def test_markup_in_a_text_adds_no_element_to_a_page(both):
    for name, page in both[MARKUP].items():
        plain, marked = Elements(both[PLAIN][name]), Elements(page)
        assert marked.elements == plain.elements, name
        assert not any("</" in text for text in plain.texts), f"{name}: an element of the page became text"
        page.encode("utf-8")
        if any(PLAIN in text for text in plain.texts):
            assert any("<img src=x onerror=alert(1)>\"'&$x$" in text for text in marked.texts), name


@pytest.mark.slow
def test_every_html_contains_the_text(both):
    without = {name for name, page in both[PLAIN].items() if PLAIN not in page}
    assert without <= {"curves", "result"}


def test_all_html_is_made_by_markup():
    "Elements in f-strings and manual escaping bypass `markup`."
    made = re.compile(r"""\bf(["']|\"{3})[^\n]*?<[a-z/]+[ >]|from html import|(?<!re\.)\bescape\(""")
    found = {p.name: made.findall(p.read_text(encoding="utf-8")) for p in (ROOT/"sashimi_wb").rglob("*.py")}
    assert {name for name, hits in found.items() if hits} <= {"page.py", "stage_figures.py"}
