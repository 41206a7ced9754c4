"""`sashimi-wb train` does what the notebook of one run does, alone and in several processes."""
import json
import subprocess
import sys

import pytest

from sashimi_wb.cli import main
from sashimi_wb.studies.batch import run_notebook
from sashimi_wb.studies.experiment import experiment
from sashimi_wb.studies.run import Run

pytestmark = pytest.mark.slow

CHANGES = {"batch_size": 2, "steps": [2, 4], "d_model": 4, "d_state": 4, "n_layers": 1}
WORDS = ["train", "smoke", *(word for k, v in CHANGES.items() for word in ("-p", f"{k}={v}")), "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run by the command, and what the command has said."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as m:
        said = runs/"said.txt"
        with said.open("w") as f:
            m.setattr(sys, "stderr", f)
            assert main([*WORDS, "--runs", str(runs)]) == 0
    return Run(experiment("smoke", CHANGES), runs=runs), said.read_text()


def test_train_does_what_the_notebook_does(trained, tmp_path):
    """The same run, figures, weights and clips to the last bit; and the folder has the notebook, too."""
    run, said = trained
    assert "training:" in said and "4/4" in said and "evaluating:" in said     # bars, which show the time left
    run_notebook("train_arm", tmp_path/"notebook.ipynb", {"preset": "smoke", **CHANGES, "runs": str(tmp_path)})
    other = Run(run.experiment, runs=tmp_path)
    def lasting(record):
        return {k: v for k, v in record.items() if k not in ("seconds", "peak_bytes", "provenance", "validation")} | {
            "validation": [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in record["validation"]]}
    assert lasting(run.record) == lasting(other.record)
    names = {p.name for p in other.folder.iterdir() if p.suffix in (".flac", ".safetensors")}
    assert {"model.safetensors", "continuation.flac"} <= names
    for name in names: assert (run.folder/name).read_bytes() == (other.folder/name).read_bytes(), name
    assert "after 4 steps" in (run.folder/"notebook.ipynb").read_text()


def test_train_under_torchrun(trained, tmp_path):
    """Two processes that torchrun starts: the run of one process up to rounding, written by the first of them."""
    script = tmp_path/"command.py"
    script.write_text("import sys\nfrom sashimi_wb.cli import main\nsys.exit(main())\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script),
               *WORDS, "--runs", str(tmp_path/"runs")]
    wrong = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert wrong.returncode and "torchrun has started 2 processes, and n_processes is 1" in wrong.stderr
    subprocess.run([*command, "--processes", "2"], check=True, timeout=300)
    run, (alone, _) = Run(experiment("smoke", CHANGES), runs=tmp_path/"runs"), trained
    found, wanted = run.record, alone.record
    assert found["hash"] == wanted["hash"] and found["provenance"]["processes"] == 2
    assert found["curve"]["bits"] == pytest.approx(wanted["curve"]["bits"], rel=1e-5)
    for a, b in zip(found["results"], wanted["results"], strict=True):
        assert a["tokens"] == b["tokens"]
        assert a["test"]["bits_per_sample"] == pytest.approx(b["test"]["bits_per_sample"], rel=1e-5)
    assert json.loads((run.folder/"notebook.ipynb").read_text())["cells"]
