"""The training page: an error, start, stop, resume, the result, and the export."""
import re

from made_audio import write

from browser import ROOT, check_export, copy_notebook, enter, wait_for_new_data

STEPS, EPOCH = 600, 50


def fill(folder):
    """The notebook of the page, a folder of short noises to train on, and an empty folder."""
    for i in range(6): write(folder / "audio", f"{i}.wav", frames=6000, channels=1, rate=4000, seed=i)
    (folder / "empty").mkdir()
    parameters = {"audio": str(folder / "audio"), "runs": str(folder / "runs"), "preset": "smoke"}
    copy_notebook(ROOT / "nbs/explore/training.ipynb", folder / "live.ipynb", parameters)


def current_step(page):
    """The step that the status line shows."""
    return int(re.search(r"step (\d+) of", page.locator(".swb-training").get_by_role("status").inner_text())[1])


def press(page, name): page.get_by_role("button", name=name, exact=True).click()


def show_an_error_and_recover(notebook, folder):
    page = notebook.page
    alert = page.locator(".swb-training [role=alert]")
    page.locator(".swb-plan").get_by_text(re.compile("papermill .*train_arm")).wait_for()
    enter(page, "Own folder", folder / "empty")
    alert.first.wait_for()
    assert "is empty" in alert.first.inner_text()
    notebook.screenshot("training-error")
    enter(page, "Own folder", folder / "audio")
    alert.first.wait_for(state="detached")


def start(notebook):
    page = notebook.page
    enter(page, "Steps", STEPS)
    enter(page, "Steps per epoch", EPOCH)
    enter(page, "Bits", 6)
    page.locator(".swb-plan").get_by_text("bits 6").first.wait_for()
    press(page, "Start")
    page.locator(".swb-curves img").wait_for()
    page.locator(".swb-clips audio").first.wait_for()
    notebook.execute("1 + 1")   # the kernel stays usable: it answers while the run trains
    notebook.screenshot("training-growing")


def stop(page):
    first = page.locator(".swb-curves img").get_attribute("src")
    press(page, "Stop")
    page.locator(".swb-training").get_by_text("stopped after step").wait_for()
    stopped = current_step(page)
    assert stopped < STEPS
    wait_for_new_data(page, ".swb-curves img", [first])
    page.get_by_label("Bits", exact=True).and_(page.locator(":enabled")).wait_for()
    page.locator(".swb-plan").get_by_text(f"{stopped} steps are done").wait_for()
    return stopped


def resume_to_the_end(page, stopped):
    clip = page.locator(".swb-clips audio").first.get_attribute("src")
    press(page, "Start")
    page.locator(".swb-training").get_by_text(re.compile(f"step .* of {STEPS}, epoch")).wait_for()
    assert current_step(page) >= stopped, "the run resumes where it stopped"
    page.locator(".swb-result table").wait_for()
    result = page.locator(".swb-result").inner_text()
    assert "adaptive prediction" in result and "FLAC" in result
    assert "done; " in page.locator(".swb-training").get_by_role("status").inner_text()
    assert page.locator(".swb-clips audio").first.get_attribute("src") == clip
    assert page.locator(".swb-clips audio").count() > 2
    page.locator(".swb-plan").get_by_text("trains nothing").wait_for()


def keep_a_static_copy(notebook):
    copy = notebook.page.locator("div[class^=swb-static]")
    copy.locator(".swb-table").wait_for(state="attached")
    assert copy.is_hidden(), "the copy is for exports"
    assert copy.locator("img").count() >= 2 and copy.locator("audio").count() > 2
    check_export(notebook)


def test_training(lab):
    folder = lab.folder / "to_train"
    fill(folder)
    with lab.open("to_train/live.ipynb", height=1700) as notebook:
        page = notebook.page
        notebook.run_all()
        show_an_error_and_recover(notebook, folder)
        start(notebook)
        resume_to_the_end(page, stop(page))
        keep_a_static_copy(notebook)
        page.locator(".swb-result").scroll_into_view_if_needed()
        notebook.screenshot("training")
        notebook.theme(dark=True)
        page.get_by_label("Preset", exact=True).scroll_into_view_if_needed()
        notebook.screenshot("training-dark")
        assert not notebook.problems()
