"""Tables, figures and sentences compare with adaptive prediction first, and read records that lack it."""
import json
import math
import re

import pytest
from made_runs import SHARES, make_run

from sashimi_wb.core.system import read_json, write_atomic
from sashimi_wb.pages.run_views import bits_of, differences, results_of
from sashimi_wb.studies.ablations import BIT_DEPTH, MONO_VS_STEREO, QUANTIZED_VS_RAW
from sashimi_wb.studies.report import arm_bits_figure
from sashimi_wb.studies.results import final_rows, result_rows, result_table, sentences
from sashimi_wb.studies.run_table import FIGURES, filter_runs, read_runs, runs_table, sort_runs


def recorded(folder, **kw):
    run = make_run(folder, **kw)
    return run.record | {"folder": str(run.folder)}


def lacking(record, *names):
    "The record of a version that did not measure some baselines."
    return record | {"baselines": {k: v for k, v in record["baselines"].items() if k not in names}}


def head(html): return html.data.split("</thead>")[0]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {"codes": [recorded(root, share=.6)], "raw": [recorded(root, share=.58, input="raw", encoder=None)]}


def test_sentences_compare_with_prediction_first(tmp_path, records):
    first, *more = sentences(QUANTIZED_VS_RAW, records)
    assert first == ("Adaptive prediction, which is not trained, needs 4.160 bits per sample; the best arm, raw, needs "
                     "4.501 over whole files, 1.082 times as many, so no arm has learned yet what prediction finds "
                     "without training.")
    assert more[0].startswith("raw needs the fewest bits") and any(line.startswith("FLAC") for line in more)
    better = records | {"raw": [recorded(tmp_path, share=.5, input="raw", encoder=None)]}
    assert "0.933 times as many, so raw adds something to prediction, the other arms do not." in sentences(
        QUANTIZED_VS_RAW, better)[0]
    better["codes"] = [recorded(tmp_path, share=.49)]
    assert sentences(QUANTIZED_VS_RAW, better)[0].endswith("so codes, raw add something to prediction.")


def test_prediction_of_several_signals_is_given_as_a_range(tmp_path):
    sounds = {"left": [recorded(tmp_path, channels="left")], "right": [recorded(tmp_path, channels="right")]}
    sounds["right"][0]["baselines"]["adaptive"] = 3.0
    rows = {row["arm"]: row for row in final_rows(result_rows(sounds))}
    assert rows["left + right"]["adaptive"] == pytest.approx((4.16 + 3)/2)
    whole = rows["right"]["whole"][0]
    assert rows["right"]["of_adaptive"] == [whole/3] and rows["left"]["of_adaptive"] == [whole/4.16]
    assert "needs 3.000 to 4.160 bits per sample, by what is coded; the best arm, left," in sentences(
        MONO_VS_STEREO, sounds)[0]


def test_sentences_of_depths(tmp_path):
    arms = {"music: 8 bit dml": {"head": "dml"}, "music: 8 bit categorical": {}, "speech: 16 bit dml":
            {"bits": 16, "head": "dml"}}
    found = {arm: [recorded(tmp_path, share=.5 + .1*("cat" in arm), **changes)] for arm, changes in arms.items()}
    lines = sentences(BIT_DEPTH, found)
    assert ("Music, 8 bit: adaptive prediction needs 4.160 bits per sample; dml needs the fewest of the outputs over "
            "whole files, 3.880 (categorical 4.656), 0.93 times as many and 0.84 times FLAC's.") in lines
    earlier = {arm: [lacking(seeds[0], "adaptive")] for arm, seeds in found.items()}
    assert ("Music, 8 bit: dml needs the fewest of the outputs over whole files, 3.880 (categorical 4.656), 0.84 times "
            "FLAC's.") in sentences(BIT_DEPTH, earlier)


def test_columns_and_figures_without_a_baseline(records):
    columns = re.findall(r"<th[^>]*>(.*?)</th>", head(result_table(QUANTIZED_VS_RAW, records)))
    assert columns.index("adaptive prediction") < columns.index("FLAC level 8") < columns.index("WavPack")
    assert columns.index("whole file / adaptive prediction") < columns.index("whole file / FLAC 8")
    earlier = {arm: [lacking(seeds[0], "adaptive", "tta")] for arm, seeds in records.items()}
    shown = head(result_table(QUANTIZED_VS_RAW, earlier))
    assert "FLAC" in shown and "WavPack" in shown and "prediction</th>" not in shown and "TTA" not in shown
    assert sentences(QUANTIZED_VS_RAW, earlier)[0].startswith("raw needs")
    for some, base in ((records, "adaptive prediction"), (earlier, "FLAC level 8")):
        fig = arm_bits_figure(some, relative=True)
        assert f"multiple of {base}" in fig.axes[0].get_xlabel()
        texts = [t.get_text() for t in arm_bits_figure(some).legends[0].get_texts()]
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
    assert FIGURES["of_adaptive"] in runs_table(found).data and FIGURES["of_adaptive"] in differences(found)
    assert "–" in runs_table(found).data and "FLAC level 8" in results_of(found)
    assert bits_of(found) is not None
