"""Tables, figures and sentences compare with adaptive prediction first, and read records that lack it."""
import html
import json
import math
import re

import pytest
from made_runs import SHARES, make_run

from sashimi_wb.cli import _summary
from sashimi_wb.core.system import bundled, read_json, write_atomic
from sashimi_wb.pages.run_views import bits_of, differences, results_of
from sashimi_wb.studies.conclusions import answer
from sashimi_wb.studies.report import arm_bits_figure, report_html
from sashimi_wb.studies.results import MAIN, final_rows, result_rows, result_table, rows_table, sentences
from sashimi_wb.studies.run_table import FIGURES, filter_runs, read_runs, runs_table, singly, sort_runs
from sashimi_wb.studies.study_files import ablations


def recorded(folder, **kw):
    run = make_run(folder, **kw)
    return run.record | {"folder": str(run.folder)}


def lacking(record, *names):
    "The record of a version that did not measure some baselines."
    return record | {"baselines": {k: v for k, v in record["baselines"].items() if k not in names}}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {"codes": [recorded(root, share=.6)], "raw": [recorded(root, share=.58, input="raw", encoder=None)]}


def seeds(root, share, **changes):
    """The records of three seeds of an arm, 0.01 bits apart."""
    return [recorded(root, share=share, seed=seed, **changes) for seed in range(3)]


RAW = {"input": "raw", "encoder": None}
QUANTIZED_VS_RAW, MONO_VS_STEREO, BIT_DEPTH, _ = ablations().values()
RANKING = ("fewest", "fewer", "more:", "Yes", "No:", "best", "saves")


def test_one_run_names_no_winner(records):
    """Whatever the figures of a smoke run are, no sentence says that one arm is better than another."""
    lines = sentences(QUANTIZED_VS_RAW, records)
    assert lines[0] == "Not decided: 1 run of an arm, and a verdict needs 3."
    assert not [line for line in lines for word in RANKING if word in line]
    assert "Adaptive prediction, which is not trained, needs 4.160 bits per sample." in lines
    assert "best" not in re.sub("<style>.*?</style>", "", result_table(QUANTIZED_VS_RAW, records).data, flags=re.S)


def test_three_seeds_allow_a_verdict(tmp_path):
    found = {"codes": seeds(tmp_path, .6), "raw": seeds(tmp_path, .5, **RAW)}
    lines = sentences(QUANTIZED_VS_RAW, found)
    assert lines[0].startswith("Yes: with raw input the model needs 0.7760 ± ") and lines[0].endswith("sample fewer.")
    assert ("Adaptive prediction, which is not trained, needs 4.160 bits per sample; fewer than it: raw; more: codes."
            in lines)
    assert sentences(QUANTIZED_VS_RAW, {arm: some[:2] for arm, some in found.items()})[0] == (
        "Not decided: 2 runs of an arm, and a verdict needs 3.")
    found["raw"][0]["results"][-1]["test"]["whole"] += 3           # one seed of the other sign
    assert sentences(QUANTIZED_VS_RAW, found)[0].startswith("Not separated: raw input changes the bits by +0.2")


def test_prediction_of_several_signals_is_given_as_a_range(tmp_path):
    sounds = {"left": [recorded(tmp_path, channels="left")], "right": [recorded(tmp_path, channels="right")]}
    sounds["right"][0]["baselines"]["adaptive"] = 3.0
    rows = {row["arm"]: row for row in final_rows(result_rows(sounds))}
    assert rows["left + right"]["adaptive"] == pytest.approx((4.16 + 3)/2)
    whole = rows["right"]["whole"][0]
    assert rows["right"]["of_adaptive"] == [whole/3] and rows["left"]["of_adaptive"] == [whole/4.16]
    assert ("Adaptive prediction, which is not trained, needs 3.000 to 4.160 bits per sample, by what is coded."
            in sentences(MONO_VS_STEREO, sounds))


def test_answer_of_depths(tmp_path):
    arms = {"music: 8 bit dml": {"head": "dml"}, "music: 8 bit categorical": {}, "speech: 16 bit dml":
            {"bits": 16, "head": "dml"}}
    found = {arm: seeds(tmp_path, .5 + .1*("cat" in arm), **changes) for arm, changes in arms.items()}
    said = sentences(BIT_DEPTH, found)[0]
    assert said.startswith("8-bit music: dml needs 0.7760 ± ") and said.endswith(" bits fewer than categorical.")
    one = {arm: some[:1] for arm, some in found.items()}
    assert sentences(BIT_DEPTH, one)[0] == "Not decided: 1 run of an arm, and a verdict needs 3."


def test_columns_and_figures_without_a_baseline(records):
    main, folded = (re.findall(r"<th [^>]*>(.*?)</th>", part)
                    for part in result_table(QUANTIZED_VS_RAW, records).data.split("<details>"))
    assert main == ["arm", "bits per sample, whole files", "× prediction", "× FLAC", "runs"]
    assert folded.index("adaptive prediction") < folded.index("FLAC level 8") < folded.index("WavPack")
    earlier = {arm: [lacking(seeds[0], "adaptive", "tta")] for arm, seeds in records.items()}
    shown = result_table(QUANTIZED_VS_RAW, earlier).data
    assert "FLAC" in shown and "WavPack" in shown and "prediction</th>" not in shown and "TTA" not in shown
    for some, base in ((records, "adaptive prediction"), (earlier, "FLAC level 8")):
        fig = arm_bits_figure(some, relative=True)
        assert f"multiple of {base}" in fig.axes[0].get_xlabel()
        texts = " ".join(t.get_text() for t in arm_bits_figure(some).legends[0].get_texts())
        assert ("adaptive prediction" in texts) == (some is records) and "order-0 entropy" in texts


def test_runs_of_earlier_versions_are_listed(tmp_path):
    new, old = make_run(tmp_path, share=.5), make_run(tmp_path, share=.5, lr=.1)
    record = read_json(old.result_path, "a record")
    write_atomic(old.result_path, json.dumps(lacking(record, *set(SHARES) - {"flac8", "order0"})))
    found, notes = read_runs(tmp_path)
    assert len(found) == 2 and not notes
    ratios = {run.name: run.facts["of_adaptive"] for run in found}
    assert ratios[new.hash[:6]] == pytest.approx(.97*.5/SHARES["adaptive"]) and math.isnan(ratios[old.hash[:6]])
    assert sort_runs(found, "of_adaptive")[0].name == new.hash[:6]
    assert [run.name for run in filter_runs(found, "of_adaptive<1")] == [new.hash[:6]]
    assert FIGURES["of_adaptive"] in runs_table(found).data and FIGURES["of_adaptive"] in differences(singly(found))
    assert "–" in runs_table(found).data and "FLAC level 8" in results_of(singly(found))
    assert bits_of(singly(found)) is not None


def cells(text):
    """The texts of all cells of the tables in HTML."""
    return [html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", text)]


def test_readme_says_what_the_records_say():
    """Answers of README are those that the saved rows allow, by the rule of today."""
    readme, saved = (bundled() / "README.md").read_text(encoding="utf-8"), read_json(bundled("nbs/results.json"), "")
    assert saved["machine"] in readme
    for name, study in ablations().items():
        found = saved[name]
        assert (found["question"], found["answer"]) == (study.question, answer(study, final_rows(found["rows"])))
        assert f"- **{found['question']}** {found['answer']}\n" in readme


def test_report_says_what_the_summary_says(tmp_path):
    """The page and the file from which README is made come from the same records."""
    found = [(QUANTIZED_VS_RAW, {"codes": seeds(tmp_path, .6), "raw": seeds(tmp_path, .5, **RAW)})]
    page, saved = report_html(found), _summary(found)
    assert saved["quantized_vs_raw"]["answer"].startswith("Yes: ")
    for text in (saved["machine"], *(saved["quantized_vs_raw"][key] for key in ("question", "answer"))):
        assert html.escape(text) in page
    assert set(cells(rows_table(final_rows(saved["quantized_vs_raw"]["rows"]), [], MAIN).data)) <= set(cells(page))
