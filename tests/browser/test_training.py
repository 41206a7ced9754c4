"""Training from the page, in a real browser: start, see it grow, stop, go on, hear, and see the result."""
import re

from made_audio import write

from browser import ROOT, changed, check_export, copy_notebook, enter


def fill(folder):
    """The page, with a folder of short noises to train on, and an empty one."""
    for i in range(6): write(folder / "audio", f"{i}.wav", frames=6000, channels=1, rate=4000, seed=i)
    (folder / "empty").mkdir()
    parameters = {"audio": str(folder / "audio"), "runs": str(folder / "runs"), "preset": "smoke"}
    copy_notebook(ROOT / "nbs/explore/training.ipynb", folder / "live.ipynb", parameters)


def step(live):
    """The step that the page says it is at."""
    return int(re.search(r"step (\d+) of", live.get_by_role("status").inner_text())[1])


def press(page, name): page.get_by_role("button", name=name, exact=True).click()


def test_training(lab):
    folder = lab.folder / "to_train"
    fill(folder)
    with lab.open("to_train/live.ipynb", height=1700) as notebook:
        page = notebook.page
        notebook.run_all()
        live = page.locator(".swb-training")
        plan, curves, alert = page.locator(".swb-plan"), page.locator(".swb-curves img"), page.locator(".swb-training [role=alert]")
        plan.get_by_text(re.compile("papermill .*train_arm")).wait_for()
        enter(page, "Own folder", folder / "empty")
        alert.first.wait_for()
        assert "is empty" in alert.first.inner_text()
        notebook.screenshot("training-error")
        enter(page, "Own folder", folder / "audio")
        alert.first.wait_for(state="detached")

        enter(page, "Steps", 200)
        enter(page, "Steps an epoch", 20)
        enter(page, "Bits", 6)
        plan.get_by_text("bits 6").first.wait_for()
        press(page, "Start")
        curves.wait_for()
        first = curves.get_attribute("src")
        page.locator(".swb-clips audio").first.wait_for()
        notebook.execute("1 + 1")   # the kernel stays usable: it answers before what follows stops the work
        notebook.screenshot("training-growing")
        press(page, "Stop")
        live.get_by_text("stopped after step").wait_for()
        stopped = step(live)
        assert stopped < 200
        changed(page, ".swb-curves img", [first])
        page.get_by_label("Bits", exact=True).and_(page.locator(":enabled")).wait_for()
        plan.get_by_text(f"{stopped} steps are done").wait_for()
        clip = page.locator(".swb-clips audio").first.get_attribute("src")

        press(page, "Start")
        live.get_by_text(re.compile("step .* of 200, epoch")).wait_for()
        assert step(live) >= stopped, "it goes on where it was"
        page.locator(".swb-result table").wait_for()
        assert "FLAC" in page.locator(".swb-result").inner_text()
        assert "done; " in live.get_by_role("status").inner_text()
        assert page.locator(".swb-clips audio").first.get_attribute("src") == clip
        assert page.locator(".swb-clips audio").count() > 2
        plan.get_by_text("trains nothing").wait_for()
        still = page.locator("div[class^=swb-static]")
        still.locator(".swb-table").wait_for(state="attached")
        assert still.is_hidden() and still.locator("img").count() >= 2 and still.locator("audio").count() > 2, "for where nothing is live"
        check_export(notebook)
        page.locator(".swb-result").scroll_into_view_if_needed()
        notebook.screenshot("training")
        notebook.theme(dark=True)
        page.get_by_label("Preset", exact=True).scroll_into_view_if_needed()
        notebook.screenshot("training-dark")
        assert not notebook.problems()
