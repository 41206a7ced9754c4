"""A wheel works outside any clone: command, experiment, checkpoint and pages run, and the package stays unchanged."""
import json
from pathlib import Path

import pytest
import release
import soundfile

pytestmark = pytest.mark.slow
pytest.importorskip("setuptools", minversion="77",
                    reason="the set-up of the development tools brings setuptools 77 or later: call make")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "A source distribution of the clone, and the wheel that is built from it."
    return release.build(tmp_path_factory.mktemp("build"))


def test_they_hold_what_they_need_and_no_more(built):
    source, wheel = built
    release.check_source(source)
    release.check_wheel(wheel)


def test_the_metadata_are_what_a_registry_shows(built): release.check_metadata(built[1])


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    "The scripts of a new environment; compiling takes long and is tested elsewhere."
    return release.Installed(built[1], tmp_path_factory.mktemp("away"), NUMBA_DISABLE_JIT="1")


def files(folder): return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if "__pycache__" not in p.parts}


@pytest.fixture(scope="module")
def lines(installed): return installed.places()


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
        from sashimi_wb.cluster.notebooks import run_notebook
        parameters = dict(preset="smoke", audio={lines['digits']!r}, runs=str(Path('runs').absolute()))
        run_notebook("train_arm", "in {{br}}aces/out.ipynb", parameters)""")
    result, = (work/"runs").glob("*/result.json")
    record = json.loads(result.read_text(encoding="utf-8"))
    installed("sashimi-wb", "generate", result.parent, "--seconds", "0.02", "--output", "made.wav")
    assert soundfile.info(work/"made.wav").samplerate == record["sample_rate"]
    assert (record["provenance"]["revision"], record["provenance"]["changed"]) == ("", False)
    assert "flac8" in record["baselines"] and "adaptive" not in record["baselines"]    # it is compiled or left out
    assert str(release.ROOT) not in result.read_text() + (work/"in {br}aces/out.ipynb").read_text()

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
