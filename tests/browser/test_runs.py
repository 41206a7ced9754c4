"""Runs: filtered, sorted, chosen, compared; and heard in step, from one to the next while it plays."""
from made_runs import make_run

from browser import ROOT, check_export, copy_notebook

SOUNDS = "form => [...form.querySelectorAll('audio')].map(a => ({at: a.currentTime, silent: a.paused || a.muted, seen: !a.parentNode.hidden, volume: a.volume}))"
HEARD = "[...document.querySelectorAll('.swb-sounds audio')].map(a => a.src).join()"
MARKED = "document.querySelectorAll('.swb-runs tbody span').length"      # chosen runs in the table


def fill(folder):
    """Four runs, and what else may lie about."""
    for share, changes in ((0.6, {}), (0.57, {"input": "raw", "encoder": "linear_projection"}),
                           (0.5, {"bits": 16, "head": "dml"}),
                           (0.62, {"channels": "stereo", "sample_len": 256})):
        make_run(folder, share=share, continuation_s=3.7, **changes)
    for name, content in {"unfinished/identity.json": "{}", "damaged/result.json": '{"hash": ',
                          "holiday/beach.txt": "sand"}.items():
        (folder / name).parent.mkdir()
        (folder / name).write_text(content)


def until(page, what, than=None):
    """Wait for something to be true of the page, and for its answer to be whole."""
    page.wait_for_function(f"than => {what}", arg=than)
    page.wait_for_function("() => document.querySelector('.swb-status').innerText.startsWith('answered')")


def test_runs(lab):
    fill(lab.folder / "finished")
    copy_notebook(ROOT / "nbs/explore/runs.ipynb", lab.folder / "browse.ipynb", {"runs": str(lab.folder / "finished")})
    with lab.open("browse.ipynb", height=2600) as notebook:
        page = notebook.page
        notebook.run_all()
        picture = page.locator(".swb-curves img")
        picture.wait_for()
        said = page.locator(".swb-runs").inner_text()
        assert all(part in said
                   for part in ("4 runs.", "unfinished: not finished", "damaged: the record cannot be read",
                                "holiday: no run"))
        notebook.screenshot("runs")
        check_export(notebook)

        before = picture.get_attribute("src"), page.evaluate(HEARD)
        page.get_by_label("Compare", exact=True).and_(page.locator("select")).focus()
        for key in ("Home", "Shift+ArrowDown", "Shift+ArrowDown"): page.keyboard.press(key)
        until(page, f"{MARKED} === 3 && document.querySelector('.swb-curves img').src !== than", before[0])
        assert page.evaluate(HEARD) != before[1]
        assert page.evaluate("() => jupyterapp.shell.currentWidget.content.selectedCells.length") == 1, "the keys are the page's"
        box = page.get_by_role("textbox", name="Filter")
        box.fill("bits=8 channels=mono")
        box.press("Enter")
        until(page, "document.querySelector('.swb-runs').innerText.includes('2 of 4 runs shown, 2 hidden')")
        page.get_by_label("Compare", exact=True).and_(page.locator("select")).focus()
        page.keyboard.press("Control+a")
        until(page,
              f"{MARKED} === 2 && document.querySelectorAll('.swb-commands pre').length === 2 && document.querySelectorAll('.swb-sounds audio').length === 3")
        titles = [text.split(maxsplit=1)[1] for text in page.locator(".swb-sounds .swb-picks label").all_inner_texts()]
        assert titles[0] == "original" and set(titles[1:]) == {"codes: continuation", "raw: continuation"}
        assert "It gives run" in page.locator(".swb-commands").inner_text()

        form = page.locator(".swb-sounds form.swb-steps")
        play_in_step(page, form)
        page.get_by_label("Sort by").select_option(label="whole file")
        order = page.get_by_label("Order", exact=True).and_(page.locator("select"))
        for index, first in ((1, "raw"), (0, "codes")):
            order.select_option(index=index)
            until(page, "document.querySelector('.swb-runs tbody tr').innerText.includes(than)", f" {first}")
        assert form.evaluate(SOUNDS)[0]["at"] > 0, "sorting leaves the sounds alone"

        box.fill("depth=8")
        box.press("Enter")
        until(page, "document.querySelector('[role=alert]')")
        assert "filter: unknown name 'depth'" in page.locator("[role=alert]").inner_text()
        notebook.screenshot("runs-error")
        box.fill("")
        box.press("Enter")
        until(page, "!document.querySelector('[role=alert]') && document.querySelector('.swb-curves img')")
        notebook.theme(dark=True)
        notebook.screenshot("runs-dark")
        notebook.theme(dark=False)
        (lab.folder / "finished/holiday/beach.txt").unlink()
        (lab.folder / "finished/holiday").rmdir()
        page.get_by_role("button", name="Read again").click()
        until(page, "!document.querySelector('.swb-runs').innerText.includes('holiday')")
        assert not notebook.problems()


def play_in_step(page, form):
    """Play the first clip, go to the second and third by keys, pause: the position goes on, one clip is heard, all as loud."""
    form.get_by_role("radio").first.focus()
    page.keyboard.press("Space")
    page.wait_for_function("() => document.querySelector('.swb-sounds audio').currentTime > 0.5")
    one = form.evaluate(SOUNDS)
    assert [s["silent"] for s in one] == [False, True, True]
    page.keyboard.press("2")
    two = form.evaluate(SOUNDS)
    assert [s["silent"] for s in two] == [True, False, True] and [s["seen"] for s in two] == [False, True, False]
    assert two[1]["at"] > one[0]["at"] - 0.2, "from where the first one was"
    page.wait_for_function("at => document.querySelectorAll('.swb-sounds audio')[1].currentTime > at + 0.2",
                           arg=two[1]["at"])
    page.keyboard.press("ArrowRight")
    three = form.evaluate(SOUNDS)
    assert [s["silent"] for s in three] == [True, True, False] and three[2]["at"] > two[1]["at"]
    assert {s["volume"] for s in three} == {1}
    page.keyboard.press("Space")
    page.wait_for_timeout(300)
    held = form.evaluate(SOUNDS)
    page.wait_for_timeout(300)
    assert all(s["silent"] for s in held) and [s["at"] for s in form.evaluate(SOUNDS)] == [s["at"] for s in held]
