"""The how-to pages: their blocks run in order, page by page, with small sizes and short files.

A run by papermill is carried out without its notebook, which other tests execute. A fence marked `not-run`, such as
the job of a cluster, is not carried out: its programs, flags and parameters are checked."""
import json
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from made_audio import noise
from papermill.cli import _resolve_type

from sashimi_wb.audio.corpora import DATASETS, DIGITS
from sashimi_wb.cli import main, parser
from sashimi_wb.cluster.notebooks import notebook_path
from sashimi_wb.core.system import bundled
from sashimi_wb.models.encoders import ENCODERS
from sashimi_wb.models.heads import HEADS
from sashimi_wb.studies.experiment import arm_parameters
from sashimi_wb.studies.run import Run, execute
from sashimi_wb.studies.study_files import ABLATIONS, study_parameters

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGES = {p.stem: p for p in sorted((ROOT/"docs"/"howto").glob("*.md"))}
SMALLER = {r'preset="small"': 'preset="smoke"', r"-p preset small": "-p preset smoke", r"\bseconds=\d+": "seconds=0.05"}


def blocks(path: Path) -> list[tuple[str, str, str]]:
    """Language, mark and text of every fenced block."""
    return re.findall(r"^```(\w+)(?: ([\w-]+))?\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S)


def lines(text: str) -> list[str]:
    """The commands of a shell script; comments, exports and assignments are none."""
    return [line for line in text.splitlines() if line.strip() and not re.match(r"#|export |\w+=", line)]


def arguments(words: list[str]) -> tuple[str, str, dict]:
    """Notebook, output and parameters of a papermill command."""
    notebook, output, *options = words[1:]
    given = {}
    while options:
        flag = options.pop(0)
        if flag in ("-k", "-l"): options.pop(0)
        else:
            assert flag in ("-p", "-r"), flag
            name, value = options.pop(0), options.pop(0)
            given[name] = value if flag == "-r" else _resolve_type(value)
    return Path(notebook).stem, output, given


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What the pages find outside of their folder: data sets and the folder of runs."""
    folder = tmp_path_factory.mktemp("shared")
    rng = np.random.default_rng(0)
    for digit in DIGITS:
        (folder/"sc09"/digit).mkdir(parents=True)
        for i in range(3): soundfile.write(folder/"sc09"/digit/f"{i}.wav", rng.uniform(-0.1, 0.1, 1200), 4000)
    for i, part in enumerate(("validation", "testing")):
        (folder/"sc09"/f"{part}_list.txt").write_text("\n".join(f"{digit}/{i}.wav" for digit in DIGITS))
    (folder/"runs").mkdir()
    return folder


@pytest.fixture
def place(tmp_path, shared, monkeypatch):
    """The current folder, with the files that the pages name; what pages register is forgotten afterwards."""
    known = [(names, dict(names)) for names in (ENCODERS, HEADS, DATASETS)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SASHIMI_WB_RUNS", str(shared/"runs"))
    soundfile.write("song.wav", noise(9600, 2, seed=9), 16000)
    soundfile.write("melody.wav", noise(1500, 1, seed=8), 8000)
    torch.save(public_checkpoint(), "weights.pt")
    folders = {"recordings": 4} | {f"bells/{part}": 1 for part in ("train", "valid", "test")}
    for name, n in folders.items():
        Path(name).mkdir(parents=True)
        for i in range(n): soundfile.write(f"{name}/{i}.wav", noise(6000, 2, seed=i), 16000)
    yield tmp_path
    for names, before in known:
        names.clear()
        names.update(before)


def public_checkpoint() -> dict:
    """Weights and configuration of a small model that the public code made."""
    z = np.load(ROOT/"tests"/"reference"/"pipeline"/"base_8bit_d8_n1_seed2.npz", allow_pickle=False)
    weights = {k.removeprefix("init/"): torch.as_tensor(z[k]) for k in z.files if k.startswith("init/")}
    return {"weights": weights, "model": json.loads(str(z["config"]))["model"]}


def here(text: str, shared: Path) -> str:
    """A block for this machine: small sizes, folders that exist."""
    for pattern, smaller in SMALLER.items(): text = re.sub(pattern, smaller, text)
    return text.replace("/data/", f"{shared}/").replace("/shared/", f"{shared}/")


def experiment_of(given: dict) -> tuple:
    """What `train_arm` does with its parameters: experiment, audio, runs."""
    return arm_parameters({"preset": "smoke", "audio": "", "runs": "", "changes": {}} | given)


def run(line: str) -> None:
    """Carry out a command."""
    words = shlex.split(line, comments=True)
    if words[0] == "sashimi-wb": assert main(words[1:]) == 0, line
    else:
        assert words[0] == "papermill", f"how is this run? {line}"
        name, _, given = arguments(words)
        assert name == "train_arm", f"how is this run? {line}"
        execute(Run(*experiment_of(given)), progress=False)


def check(line: str) -> None:
    """Check the program, the flags and the parameters of a command that is not carried out."""
    line = line.replace("$(sashimi-wb where notebooks)", str(bundled("nbs/experiments")))
    words = shlex.split(re.sub(r"\$\w+", "1", line), comments=True)
    if words[0] in ("srun", "torchrun"): words = words[words.index("sashimi-wb"):]
    if words[0] == "sashimi-wb": parser().parse_args(words[1:])
    elif words[0] == "papermill":
        name, _, given = arguments(words)
        assert notebook_path(name).exists()
        if name in (*ABLATIONS, "study"): study_parameters(given)
        else: experiment_of(given)
    elif words[:3] == ["python", "-m", "pytest"]: assert (ROOT/words[3]).is_dir(), line
    else:
        assert words[0] == "python", f"what is this? {line}"
        text = (ROOT/words[1]).read_text(encoding="utf-8")
        assert all(f'"{word}"' in text for word in words[2:] if word.startswith("--")), line


def test_pages_have_blocks():
    assert len(PAGES) >= 11 and all(blocks(path) for path in PAGES.values())


@pytest.mark.parametrize("name", PAGES)
def test_every_block_runs(name, place, shared):
    names = {}
    for language, mark, text in blocks(PAGES[name]):
        assert language in ("python", "bash") and mark in ("", "not-run"), (language, mark)
        if language == "python":
            code = compile(here(text, shared), f"{name}.md", "exec")
            if not mark: exec(code, names)  # noqa: S102
        elif mark:
            assert not subprocess.run(["bash", "-n"], input=text, text=True).returncode
            for line in lines(text): check(line)
        else:
            for line in lines(here(text, shared)): run(line)


def test_a_wrong_flag_is_noticed():
    with pytest.raises(SystemExit): check("sashimi-wb ablations --sedes 3")
    with pytest.raises(ValueError, match="stepz"): check("papermill train_arm.ipynb out.ipynb -p stepz 3")
