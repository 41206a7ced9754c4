"""The runs page: runs are filtered, sorted, chosen and compared; synchronized players switch between clips."""
import subprocess
import sys
from contextlib import ExitStack

from made_processes import wait
from made_runs import make_run

from browser import ROOT, check_export, check_first_screen, copy_notebook
from sashimi_wb.cluster.status import study_states
from sashimi_wb.core.locks import holding
from sashimi_wb.core.processes import end_tree
from sashimi_wb.studies.run import Run
from sashimi_wb.studies.study import Study

PLAYERS = """form => [...form.querySelectorAll('audio')].map(audio => ({
    at: audio.currentTime, silent: audio.paused || audio.muted, shown: !audio.parentNode.hidden,
    volume: audio.volume}))"""
SOURCES = "[...document.querySelectorAll('.swb-sounds audio')].map(audio => audio.src).join()"
N_MARKED = "document.querySelector('.swb-runs tbody').innerText.split('●').length - 1"   # chosen runs in the table
FIGURE = ".swb-curves img"


def fill(folder):
    """Four runs, and other things that may be in a folder of runs."""
    for share, changes in ((0.6, {}), (0.57, {"input": "raw", "encoder": "linear_projection"}),
                           (0.5, {"bits": 16, "head": "dml"}),
                           (0.62, {"channels": "stereo", "sample_len": 256})):
        make_run(folder, share=share, continuation_s=3.7, **changes)
    for name, content in {"unfinished/identity.json": "{}", "damaged/result.json": '{"hash": ',
                          "holiday/beach.txt": "sand"}.items():
        (folder / name).parent.mkdir()
        (folder / name).write_text(content)


def wait_until(page, condition, argument=None):
    """Wait until a condition on the page holds and the page is up to date; `argument` is named so in the condition."""
    page.wait_for_function(f"argument => {condition}", arg=argument)
    page.wait_for_function("() => !document.querySelector('.swb-status').innerText.startsWith('working')")


def text_of(part): return f"document.querySelector('{part}').innerText"


def select(page, label): return page.get_by_label(label, exact=True).and_(page.locator("select"))


def filter_runs(page, text):
    box = page.get_by_role("textbox", name="Filter")
    box.fill(text)
    box.press("Enter")


def list_all_runs(notebook):
    page = notebook.page
    notebook.run_all()
    page.locator(FIGURE).wait_for()
    check_first_screen(notebook)
    page.locator(".swb-bits img").wait_for()
    text = page.locator(".swb-count").inner_text() + page.locator(".swb-runs").inner_text()
    for part in ("4 runs.", "unfinished: not finished", "damaged: the record cannot be read", "holiday: not a run"):
        assert part in text
    few_columns = page.locator(".swb-runs .swb-scroll").first
    assert few_columns.evaluate("e => e.scrollWidth <= e.clientWidth"), "no column is hidden"
    notebook.screenshot("runs")
    check_export(notebook)


def choose_by_keyboard(page):
    figure, players = page.locator(FIGURE).get_attribute("src"), page.evaluate(SOURCES)
    select(page, "Compare").focus()
    for key in ("Home", "Shift+ArrowDown", "Shift+ArrowDown"): page.keyboard.press(key)
    wait_until(page, f"{N_MARKED} === 3 && document.querySelector('{FIGURE}').src !== argument", figure)
    assert page.evaluate(SOURCES) != players
    n_cells = page.evaluate("() => jupyterapp.shell.currentWidget.content.selectedCells.length")
    assert n_cells == 1, "the keys act on the page, not on the notebook's cells"


def filter_and_compare(page):
    filter_runs(page, "bits=8 channels=mono")
    wait_until(page, f"{text_of('.swb-count')}.includes('2 of 4 runs shown, 2 hidden')")
    select(page, "Compare").focus()
    page.keyboard.press("Control+a")
    counts = ("document.querySelectorAll('.swb-commands pre').length === 2 && "
              "document.querySelectorAll('.swb-sounds audio').length === 3")
    wait_until(page, f"{N_MARKED} === 2 && {counts}")
    titles = [text.split(maxsplit=1)[1] for text in page.locator(".swb-sounds .swb-picks label").all_inner_texts()]
    assert titles[0] == "original" and set(titles[1:]) == {"codes: continuation", "raw: continuation"}
    page.locator(".swb-commands summary").click()
    assert "It repeats run" in page.locator(".swb-commands").inner_text()


def play_synchronized(page, form):
    """Play a clip, switch to the others by keys, pause: the position continues, and one clip is audible."""
    form.get_by_role("radio").first.focus()
    page.keyboard.press("Space")
    page.wait_for_function("() => document.querySelector('.swb-sounds audio').currentTime > 0.5")
    first = form.evaluate(PLAYERS)
    assert [s["silent"] for s in first] == [False, True, True]
    page.keyboard.press("2")
    second = form.evaluate(PLAYERS)
    assert [s["silent"] for s in second] == [True, False, True] and [s["shown"] for s in second] == [False, True, False]
    assert second[1]["at"] > first[0]["at"] - 0.2, "the second clip starts where the first one was"
    page.wait_for_function("at => document.querySelectorAll('.swb-sounds audio')[1].currentTime > at + 0.2",
                           arg=second[1]["at"])
    page.keyboard.press("ArrowRight")
    third = form.evaluate(PLAYERS)
    assert [s["silent"] for s in third] == [True, True, False] and third[2]["at"] > second[1]["at"]
    assert {s["volume"] for s in third} == {1}
    page.keyboard.press("Space")
    page.wait_for_timeout(300)
    paused = form.evaluate(PLAYERS)
    page.wait_for_timeout(300)
    assert all(s["silent"] for s in paused) and [s["at"] for s in form.evaluate(PLAYERS)] == [s["at"] for s in paused]


def sort_without_touching_the_players(page, form):
    page.get_by_label("Sort by").select_option(label="bits per sample, whole files")
    for index, first in ((1, "raw"), (0, "codes")):
        select(page, "Order").select_option(index=index)
        wait_until(page, f"{text_of('.swb-runs tbody tr')}.includes(argument)", first)
    assert form.evaluate(PLAYERS)[0]["at"] > 0, "sorting leaves the players alone"


def show_an_error_and_recover(notebook):
    page = notebook.page
    filter_runs(page, "depth=8")
    wait_until(page, "document.querySelector('[role=alert]')")
    assert "filter: unknown name 'depth'" in page.locator("[role=alert]").inner_text()
    assert page.locator(f".swb-old {FIGURE.split()[-1]}").count() > 0, "the last answer stays, marked"
    notebook.screenshot("runs-error")
    filter_runs(page, "")
    wait_until(page, f"!document.querySelector('[role=alert]') && document.querySelector('{FIGURE}')")
    notebook.theme(dark=True)
    notebook.screenshot("runs-dark")
    notebook.theme(dark=False)


def read_the_folder_again(page, folder):
    (folder / "holiday/beach.txt").unlink()
    (folder / "holiday").rmdir()
    page.get_by_role("button", name="Read again").click()
    wait_until(page, f"!{text_of('.swb-runs')}.includes('holiday')")


def copied(name, lab, folder):
    """Copy the notebook of the page, for a folder of runs. Returns its name."""
    copy_notebook(ROOT / "nbs/explore/runs.ipynb", lab.folder / name, {"runs": str(folder)})
    return name


def test_runs(lab):
    folder = lab.folder / "finished"
    fill(folder)
    with lab.open(copied("browse.ipynb", lab, folder)) as notebook:
        page = notebook.page
        list_all_runs(notebook)
        choose_by_keyboard(page)
        filter_and_compare(page)
        form = page.locator(".swb-sounds form.swb-steps")
        play_synchronized(page, form)
        sort_without_touching_the_players(page, form)
        show_an_error_and_recover(notebook)
        read_the_folder_again(page, folder)
        assert not notebook.problems()


def test_runs_of_a_study_that_is_going_on(lab):
    "The page is opened before a run can finish, follows the study, and lists the runs as they finish."
    folder, options = lab.folder / "going", {"grid": {"d_state": [4, 6]}, "seeds": 1, "audio": "digits"}
    jobs = Study(base="smoke", name="d_state", **options).jobs.values()
    runs = [Run(experiment, audio, folder) for seeds in jobs for experiment, audio in seeds]
    program = ("import sys; from sashimi_wb.studies.study import Study; "
               "from sashimi_wb.studies.study_results import run_study; "
               f"run_study(Study(base='smoke', name='d_state', **{options}), sys.argv[1], 1, False)")
    with ExitStack() as held, lab.open(copied("follow.ipynb", lab, folder)) as notebook:
        for run in runs: held.enter_context(holding(run.folder, "run"))   # until the page has been looked at
        study = subprocess.Popen([sys.executable, "-c", program, str(folder)])
        try:
            wait(lambda: any(state.going for state in study_states(folder)))
            page = notebook.page
            notebook.run_all()
            wait_until(page, f"{text_of('.swb-studies')}.includes('d_state')")
            assert "No run has finished yet" in page.locator(".swb-count").inner_text()
            notebook.screenshot("runs-of-a-study")
            held.close()
            wait_until(page, f"{text_of('.swb-count')}.startsWith('2 runs.')")
            wait_until(page, f"{text_of('.swb-runs')}.includes('d_state')")
            assert study.wait(60) == 0 and all(run.done for run in runs)
            assert select(page, "Compare").locator("option").count() == 2
            assert not notebook.problems()
        finally: end_tree(study.pid)
