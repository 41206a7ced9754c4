"""A study becomes the experiments that it says, from Python or from a file, and every mistake names its place."""
import hashlib
import json

import pytest
from made_audio import write
from made_runs import make_run

from sashimi_wb.cli import main
from sashimi_wb.core.system import bundled, to_json
from sashimi_wb.studies import study_results
from sashimi_wb.studies.plan import plan
from sashimi_wb.studies.study import Study, StudyError
from sashimi_wb.studies.study_files import StudyParameters, ablations, get_study, read_study, study_names
from sashimi_wb.studies.study_results import run_study

# SHA-256 of the experiments of each ablation, with their names, order and folders, for the preset `small`: changing one
# of them gives all of its runs another name, and the runs of earlier versions are made again
EXPERIMENTS = {
    "quantized_vs_raw": ("2a0dee59f467dcd6", "73e77e968a9a632e"),
    "mono_vs_stereo": ("3a8a4321c5e43049", "7c0a82c0927bcc48"),
    "bit_depth": ("f838fe4f1f5ce186", "ce030cc7135e512c"),
    "added_to_prediction": ("ec313cd90ab213a4", "52f9b82f90c7c581"),
}


def digest(study):
    jobs = [[arm, [(to_json(e), str(audio).replace(str(bundled()), "")) for e, audio in seeds]]
            for arm, seeds in study.jobs.items()]
    return hashlib.sha256(json.dumps(jobs).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_experiments_of_the_ablations_stay_what_they_are(name):
    made = tuple(digest(StudyParameters("small", 3, predictor=p).of(ablations()[name])) for p in ("none", "adaptive"))
    assert made == EXPERIMENTS[name]


def test_a_file_and_an_object_are_the_same_study(tmp_path):
    (tmp_path/"mine.toml").write_text('question = "Which?"\nbase = "smoke"\nseeds = 2\nmatched = ["tokens"]\n'
                                      '[arms]\nS4 = { kernel = "dplr" }\nS4D = { kernel = "diag" }\n'
                                      '[grid]\nsample_len = [256, 512]\n')
    made = Study("Which?", "smoke", "mine", arms={"S4": {"kernel": "dplr"}, "S4D": {"kernel": "diag"}},
                 grid={"sample_len": [256, 512]}, seeds=2, matched=("tokens",))
    read = read_study(tmp_path/"mine.toml")
    assert read == made and get_study(str(tmp_path/"mine.toml")) == made
    steps = {arm: seeds[0][0].steps for arm, seeds in read.jobs.items()}
    assert steps == {f"{arm}, sample_len {n}": (4*256//n,) for arm in ("S4", "S4D") for n in (256, 512)}
    assert [e.seed for e, _ in read.jobs["S4, sample_len 256"]] == [0, 1]


@pytest.mark.parametrize("text, line, why", [
    ("seeds = 0\n[grid]\nlr = [0.1]", 1, "seeds: expected an integer from 1 to 1,000, got 0"),
    ("[arms.a]\n\n[arms.b]\nd_modle = 8", 4, "arms.b: unknown parameter d_modle; .*did you mean 'd_model'"),
    ("[arms]\na = { kernel = 'dpl' }", 2, "unknown kernel form 'dpl'; .*did you mean 'dplr'"),
    ("[shared]\n'lr' = -1.0", 2, "shared.lr: expected a number above 0, got -1.0"),
    ("[grid]\nlr = [0.1]\n[arms]\na = { lr = 0.2 }", 4, "arms.a.lr: the grid has values of lr too"),
    ("[grid]\nd_state = [8, 8]", 2, "grid.d_state: expected different values"),
    ("[arms]\na = {}\nb = { tie_weights = true, head = 'dml' }", 3, "arms.b: weights cannot be tied to a DMLHead"),
    ("[arms]\na = {}\nb = {}", 3, "arms.b: b and a are the same experiment"),
    ("[scaled]\nkernel = 2", 2, "scaled.kernel: expected a parameter with a number"),
    ("# first\nmatched = ['token']", 2, "did you mean 'tokens'"),
    ("notes = ['{raw ; hole}']\n[arms.raw]", 1, "unknown figure 'hole'"),
    ("[materials.mine]\naudio = 'nowhere'", 2, "materials.mine.audio: no folder .*nowhere"),
    ("[again.'+ x']\nlr = 'fast'", 2, "expected a number above 0, got 'fast'"),
    ("[arms.'a: b']", 1, "expected a name without ': '"),
])
def test_a_mistake_names_file_and_line(tmp_path, text, line, why):
    (tmp_path/"wrong.toml").write_text(text)
    with pytest.raises(ValueError, match=rf"wrong\.toml, line {line}: (?s:.*){why}"): read_study(tmp_path/"wrong.toml")


def test_the_same_mistake_in_python_names_its_part():
    with pytest.raises(StudyError, match="grid: unknown parameter d_stat") as e: Study(grid={"d_stat": [1]})
    assert e.value.part == ("grid", "d_stat")


def test_every_study_that_comes_with_the_project_can_be_made():
    for name in study_names():
        study = get_study(name)
        assert study.name == name and study.question and len(study.jobs) > 1
        assert study.given("smoke", 1).jobs.keys() == study.jobs.keys()


def test_results_leave_in_every_form(tmp_path):
    study = Study("Which?", "smoke", "mine", shared={"quantization": "linear", "prompt_s": 0.3, "continuation_s": 0.7},
                  grid={"d_state": [4, 8]}, seeds=3, figures=("whole", "params"))
    for seeds in study.jobs.values():                      # all runs are done, so nothing is trained
        for e, _ in seeds:
            make_run(tmp_path, share=0.5 + e.d_state/100, seed=e.seed, d_state=e.d_state,
                     continuation_s=e.continuation_s)
    assert [r.done for r in plan(study, tmp_path).runs] == [True]*6
    found = run_study(study, tmp_path, progress=False, here=True)
    assert found.sentences[0].startswith("d_state 4 needs 0.3104 ± ") and len(found.frame) == 6
    assert list(found.summary["d_state"]) == [4, 8] and list(found.summary["n"]) == [3, 3]
    assert found.summary["whole"].tolist() == pytest.approx([(0.54*8 + 0.01)*0.97, (0.58*8 + 0.01)*0.97])
    assert found.summary["whole sd"].tolist() == pytest.approx([0.0097, 0.0097])
    params = f"{found.rows[0]['params']:,}"
    assert found.markdown().splitlines()[2] == f"| 4 | 4.2001 ± 0.0097 | {params} | 3 |"
    assert r"\midrule" in found.latex() and r"4 & 4.2001 $\pm$ 0.0097 &" in found.latex()
    begins = {"csv": b"run,arm", "tex": b"\\begin{table}", "md": b"| d_state", "svg": b"<?xml", "pdf": b"%PDF"}
    for kind, begin in begins.items(): assert found.save(tmp_path/f"it.{kind}").read_bytes().startswith(begin)
    assert "Which?" in found.report().read_text(encoding="utf-8") and found.report().name == "mine.html"
    more = plan(study.given(seeds=4), tmp_path)
    assert sum(not r.done for r in more.runs) == 2 and all(r.minutes > 0 for r in more.runs if not r.done)
    assert "8 runs: 6 are done, 2 to do." in more.lines()


def test_materials_are_data_sets_by_name(tmp_path):
    for seed, name in enumerate(("a", "b")):
        for i in range(1, 18): write(tmp_path/name, f"{i}.wav", seed=seed)
    materials = {name: {"audio": str(tmp_path/name), "dataset": "beethoven"} for name in ("a", "b")}
    study = Study(base="smoke", materials=materials, shared={"target_sr": None}, grid={"d_state": [4, 8]}, seeds=1)
    assert [(r.arm, r.done) for r in plan(study, tmp_path/"runs").runs][::2] == [("a: d_state 4", False),
                                                                               ("b: d_state 4", False)]
    with pytest.raises(StudyError, match="materials.a: .* did you mean 'beethoven'"):
        Study(base="smoke", materials={"a": {"dataset": "bethoven"}}, grid={"d_state": [4, 8]})


def test_one_line_reads_values_and_lists(monkeypatch):
    made = {}
    monkeypatch.setattr(study_results, "run_study", lambda study, *_, **places: made.setdefault("study", study))
    study_results.ablate("smoke", d_state=[4, 8], pool=(2, 2), lr=0.1, seeds=1)
    assert made["study"].grid == {"d_state": [4, 8]} and made["study"].shared == {"pool": (2, 2), "lr": 0.1}
    assert {e.pool for e, in ([e for e, _ in seeds] for seeds in made["study"].jobs.values())} == {(2, 2)}
    with pytest.raises(ValueError, match="unknown parameter d_stat; .*did you mean 'd_state'"):
        study_results.ablate("smoke", d_stat=[4])


def test_the_command_plans_and_refuses(tmp_path, capsys):
    runs = ["--runs", str(tmp_path)]
    assert main(["study", "state_size", "--dry", "--preset", "smoke", "--seeds", "1", *runs]) == 0
    assert "3 runs: 0 are done, 3 to do." in capsys.readouterr().out and not list(tmp_path.iterdir())
    for arguments, why in ((["study", "state_siz"], "did you mean 'state_size'"), (["train", "smoke", "-p", "d_state"],
                           "expected NAME=VALUE"), (["train", "smoke", "-p", "d_stat=4"], "did you mean 'd_state'"),
                           (["train", "smok"], "did you mean 'smoke'"), (["study", "no.toml"], "no file no.toml")):
        assert main([*arguments, *runs]) == 2 and why in capsys.readouterr().err
