"""The training page: an error, start, stop, resume, the result without Start, and the export."""
import re

from made_audio import write

from browser import ROOT, check_export, check_first_screen, copy_notebook, enter, wait_for_new_data, wait_until_gone

STEPS, EPOCH = 600, 50


def fill(folder):
    """The notebook of the page, a folder of short noises to train on, and an empty folder."""
    for i in range(6): write(folder / "audio", f"{i}.wav", frames=6000, channels=1, rate=4000, seed=i)
    (folder / "empty").mkdir()
    parameters = {"audio": str(folder / "audio"), "runs": str(folder / "runs"), "preset": "smoke"}
    copy_notebook(ROOT / "nbs/explore/training.ipynb", folder / "live.ipynb", parameters)


def status(page):
    """The status line of the run."""
    return page.locator(".swb-training").get_by_role("status").inner_text()


def current_step(page):
    """The step that the status line shows."""
    return int(re.search(r"step (\d+) of", status(page))[1])


def show_the_finished_run_again(notebook):
    """The same cell, run again, shows the run without Start."""
    page = notebook.page
    for name, value in (("Steps", STEPS), ("Epoch", EPOCH), ("Width", 12), ("Bits", 6)):
        if name == "Epoch": page.get_by_text("Learning rate, width").click()
        enter(page, name, value)
    page.locator(".swb-result table").wait_for()
    assert page.locator(".swb-curves img").count() == 1 and page.locator(".swb-clips audio").count() > 2


def press(page, name): page.get_by_role("button", name=name, exact=True).click()


def show_an_error_and_recover(notebook, folder):
    page = notebook.page
    alert = page.locator(".swb-training [role=alert]")
    assert "Start trains" in status(page)
    axes = page.locator(".swb-curves img")
    axes.wait_for()
    enter(page, "Own folder", "empty")      # relative to the folder of the notebook
    alert.first.wait_for()
    assert str(folder / "empty") in alert.first.inner_text() and "is empty" in alert.first.inner_text()
    assert axes.count() == 1, "the last answer stays"
    notebook.screenshot("training-error")
    enter(page, "Own folder", folder / "audio")
    alert.first.wait_for(state="detached")


def start(notebook):
    page = notebook.page
    enter(page, "Steps", STEPS)
    page.get_by_text("Learning rate, width").click()
    enter(page, "Epoch", EPOCH)
    enter(page, "Width", 12)
    enter(page, "Bits", 6)
    for text in ("d_model 12", "bits 6", "papermill"):
        page.locator(".swb-plan").get_by_text(text).first.wait_for(state="attached")     # folded
    axes = page.locator(".swb-curves img").get_attribute("src")
    press(page, "Start")
    page.locator(".swb-training").get_by_text(re.compile(f"step [1-9].* of {STEPS}.* left")).wait_for()
    wait_for_new_data(page, ".swb-curves img", [axes])
    page.locator(".swb-clips audio").first.wait_for()
    notebook.execute("1 + 1")   # the kernel stays usable: it answers while the run trains
    notebook.screenshot("training-growing")


def stop(page):
    first = page.locator(".swb-curves img").get_attribute("src")
    press(page, "Stop")
    page.locator(".swb-training").get_by_text(re.compile("of 600 steps are done; Start resumes there")).wait_for()
    stopped = int(re.search(r": (\d+) of", status(page))[1])
    assert stopped < STEPS
    wait_for_new_data(page, ".swb-curves img", [first])
    page.get_by_label("Bits", exact=True).and_(page.locator(":enabled")).wait_for()
    return stopped


def choose_another_run_and_come_back(page):
    """Another setting shows the empty axes of a new run; the first setting shows the curves of the stopped one."""
    curves, clips = page.locator(".swb-curves img").get_attribute("src"), page.locator(".swb-clips audio")
    assert clips.count() > 0
    enter(page, "Seed", 1)
    page.locator(".swb-training").get_by_text("Start trains").wait_for()
    wait_for_new_data(page, ".swb-curves img", [curves])
    wait_until_gone(page, ".swb-clips audio")
    enter(page, "Seed", 0)
    page.locator(".swb-training").get_by_text("Start resumes there").wait_for()
    clips.first.wait_for()


def resume_to_the_end(page, stopped):
    clip = page.locator(".swb-clips audio").first.get_attribute("src")
    press(page, "Start")
    page.locator(".swb-training").get_by_text(re.compile(f"step .* of {STEPS}")).wait_for()
    assert current_step(page) >= stopped, "the run resumes where it stopped"
    assert page.locator(".swb-curves img").count() == 1, "the curves stay"
    page.locator(".swb-result table").wait_for()
    result = page.locator(".swb-result").inner_text()
    assert "adaptive prediction" in result and "FLAC" in result
    page.locator(".swb-training").get_by_text(re.compile("done; .* bits per sample over whole test files")).wait_for()
    assert page.locator(".swb-clips audio").first.get_attribute("src") == clip
    assert page.locator(".swb-clips audio").count() > 2
    assert page.get_by_role("button", name="Start", exact=True).is_disabled(), "there is nothing left to train"


def keep_a_static_copy(notebook):
    copy = notebook.page.locator("div[class^=swb-static]")
    copy.locator(".swb-table").wait_for(state="attached")
    assert copy.is_hidden(), "the copy is for exports"
    assert copy.locator("img").count() >= 2 and copy.locator("audio").count() > 2
    check_export(notebook)


def test_training(lab):
    folder = lab.folder / "to_train"
    fill(folder)
    with lab.open("to_train/live.ipynb") as notebook:
        page = notebook.page
        notebook.run_all()
        check_first_screen(notebook)
        show_an_error_and_recover(notebook, folder)
        start(notebook)
        stopped = stop(page)
        choose_another_run_and_come_back(page)
        resume_to_the_end(page, stopped)
        keep_a_static_copy(notebook)
        notebook.run_all()
        show_the_finished_run_again(notebook)
        page.locator(".swb-result").scroll_into_view_if_needed()
        notebook.screenshot("training")
        notebook.theme(dark=True)
        page.get_by_label("Preset", exact=True).scroll_into_view_if_needed()
        notebook.screenshot("training-dark")
        assert not notebook.problems()
