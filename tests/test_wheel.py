"""A wheel works outside any clone: command, experiment, checkpoint and pages run, and the package stays unchanged."""
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow
pytest.importorskip("setuptools", minversion="77",
                    reason="the set-up of the development tools brings setuptools 77 or later: call make")


def call(*words, **options):
    done = subprocess.run([str(w) for w in words], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=300, **options)
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "A wheel, built from a source distribution, which is built from the files of a clone."
    top = tmp_path_factory.mktemp("build")
    unwanted = shutil.ignore_patterns(".git", ".venv*", "runs", "build", "dist", "*.egg-info", "__pycache__", "tests",
                                      "lightning_logs")
    shutil.copytree(ROOT, top/"clone", ignore=unwanted)
    (top/"clone/nbs/.ipynb_checkpoints").mkdir()
    (top/"clone/nbs/.ipynb_checkpoints/start-checkpoint.ipynb").write_text("{}")
    call(sys.executable, "setup.py", "-q", "sdist", "-d", top, cwd=top/"clone")
    source, = top.glob("*.tar.gz")
    call(sys.executable, "-m", "pip", "wheel", source, "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w",
         top)
    return next(top.glob("*.whl"))


def test_the_wheel_holds_what_it_needs_and_no_more(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    kinds = ("sashimi_wb/**/*.py", "data/music/*.flac", "data/digits/*.flac", "data/checkpoints/*", "nbs/**/*.ipynb",
             "nbs/*.json", "nbs/images/*")
    found = {p.relative_to(ROOT) for kind in kinds for p in ROOT.glob(kind)}
    wanted = {p.as_posix() for p in found if not any(part.startswith(".") for part in p.parts)} | {"data/README.md"}
    shared = {name.removeprefix("sashimi_wb/_share/") for name in names
              if not name.split("/")[0].endswith(".dist-info")}
    assert shared == wanted
    assert wheel.stat().st_size < 25e6


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    "A function that runs a script of a new environment in an empty folder inside another project's repository."
    top = tmp_path_factory.mktemp("away")
    for folder in ("home", "work"): (top/folder).mkdir()
    (top/"work/sashimi_wb.py").write_text("raise SystemExit('a module of the current folder was imported')")
    keep = ("PATH", "LANG", "SYSTEMROOT", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    # compiling takes long and is tested elsewhere
    env = {k: os.environ[k] for k in keep if k in os.environ} | {"HOME": str(top/"home"), "NUMBA_DISABLE_JIT": "1"}
    venv.create(top/"env", with_pip=False, symlinks=os.name != "nt")
    paths = sysconfig.get_paths(vars={"base": str(top/"env"), "platbase": str(top/"env")})
    bin_folder, site = Path(paths["scripts"]), Path(paths["purelib"])
    call(sys.executable, "-m", "pip", "--python", bin_folder/"python", "install", "--no-deps", "--no-index", "-q",
         wheel, env=env)
    others = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    # the development environment's packages, without its editable install, which is not a folder
    (site/"dependencies.pth").write_text("\n".join(others))
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    call("git", "init", "-q", top)
    call("git", "-C", top, *identity, "commit", "-q", "--allow-empty", "-m", "of another project")

    def run(script, *words): return call(bin_folder/script, *words, cwd=top/"work", env=env)
    run.work, run.package = top/"work", site/"sashimi_wb"
    return run


def files(folder): return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if "__pycache__" not in p.parts}


@pytest.fixture(scope="module")
def lines(installed):
    "What `sashimi-wb where` prints, by name."
    return dict(line.split(": ", 1) for line in installed("sashimi-wb", "where").splitlines())


@pytest.fixture
def unchanged(installed):
    "Check after a test that the installed package has the same files as before."
    before = files(installed.package)
    yield
    assert files(installed.package) == before


def test_an_installed_command_answers(installed, lines, unchanged):
    shared, work = str(installed.package/"_share"), installed.work
    assert all(lines[name].startswith(shared)
               for name in ("notebooks", "pages", "start", "audio", "digits", "checkpoints"))
    assert lines["runs"] == str(work/"runs") and not Path(lines["cache"]).is_relative_to(installed.package)
    assert installed("sashimi-wb", "where", "notebooks") == lines["notebooks"] + "\n"

    with pytest.raises(AssertionError, match="sashimi-wb: adaptive prediction is compiled, and numba is switched off"):
        installed("sashimi-wb", "generate", f"{lines['checkpoints']}/digits.safetensors", "--seconds", "0.02")
    assert not (work/"generated.flac").exists()


def test_an_installed_notebook_trains_and_its_run_is_shown(installed, lines, unchanged):
    work = installed.work
    (work/"in {br}aces").mkdir()
    installed("python", "-P", "-c", f"""if True:
        from pathlib import Path
        from sashimi_wb.studies.batch import run_notebook
        parameters = dict(preset="smoke", audio={lines['digits']!r}, runs=str(Path('runs').absolute()))
        run_notebook("train_arm", "in {{br}}aces/out.ipynb", parameters)""")
    result, = (work/"runs").glob("*/result.json")
    record = json.loads(result.read_text(encoding="utf-8"))
    installed("sashimi-wb", "generate", result.parent, "--seconds", "0.02", "--output", "made.wav")
    assert soundfile.info(work/"made.wav").samplerate == record["sample_rate"]
    assert (record["provenance"]["revision"], record["provenance"]["changed"]) == ("", False)
    assert "flac8" in record["baselines"] and "adaptive" not in record["baselines"]    # it is compiled or left out
    assert str(ROOT) not in result.read_text() + (work/"in {br}aces/out.ipynb").read_text()

    program = """if True:
        import sys, sashimi_wb, sashimi_wb.core.system as core
        from pathlib import Path
        from sashimi_wb.pages.generation_page import explore_generation
        from sashimi_wb.pages.runs_page import explore_runs
        from sashimi_wb.studies.run_table import read_runs
        from sashimi_wb.pages.run_views import repeat_command
        runs, notes = read_runs()
        page, models = explore_runs(), explore_generation()
        print(core.package_folder(), len(runs), repeat_command(runs[0]), notes, sep="\\n")
        import os; os.chdir(core.bundled("nbs/explore")); print(core.runs_folder())
        """
    package, n, command, notes, home_runs = installed("python", "-P", "-c", program).splitlines()
    assert (package, n, home_runs) == (str(installed.package), "1", str(work.parent/"home/runs"))
    assert f"papermill {lines['notebooks']}/train_arm.ipynb {work}/runs/again-" in command
