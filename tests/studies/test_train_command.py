"""`sashimi-wb train` in processes that `torchrun` starts."""
import subprocess
import sys

import pytest

from sashimi_wb.studies.experiment import experiment
from sashimi_wb.studies.run import Run, execute

pytestmark = pytest.mark.slow

CHANGES = {"batch_size": 2, "steps": [2, 4], "d_model": 4, "d_state": 4, "n_layers": 1, "continuation_s": 0}


def test_train_under_torchrun(tmp_path):
    """Two processes: the run of one process up to rounding, written by the first, with two scores on the way."""
    alone, run = (Run(experiment("smoke", CHANGES), runs=tmp_path/name) for name in ("one", "two"))
    wanted = execute(alone, progress=False, device="cpu")
    run.folder.mkdir(parents=True)
    (run.folder/"notebook.ipynb").touch()                       # a notebook that is there is not executed again
    script = tmp_path/"command.py"
    script.write_text("import sys\nfrom sashimi_wb.cli import main\nsys.exit(main())\n")
    words = [word for name, value in CHANGES.items() for word in ("-p", f"{name}={value}")]
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script),
                    "train", "smoke", *words, "--runs", str(tmp_path/"two"), "--device", "cpu", "--processes", "2"],
                   check=True, timeout=300)
    found = run.record
    assert found["hash"] == wanted["hash"] and found["provenance"]["processes"] == 2
    assert found["curve"]["bits"] == pytest.approx(wanted["curve"]["bits"], rel=1e-5)
    for a, b in zip(found["results"], wanted["results"], strict=True):
        assert a["tokens"] == b["tokens"]
        assert a["test"]["bits_per_sample"] == pytest.approx(b["test"]["bits_per_sample"], rel=1e-5)
    assert not [p for p in run.folder.rglob("*") if p.suffix in (".lock", ".tmp")]
