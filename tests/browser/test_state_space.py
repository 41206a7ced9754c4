"""State spaces: matrix, rule, step and readout change pictures and players; an echo beyond the window is said, and forgotten."""
from browser import changed, check_export, enter, forgotten, says, slide, sources

PARTS = ("kernel", "eigenvalues", "sound", "past", "float32")


def shown(page):
    """Pictures and players of every part; the first player is the input."""
    return {part: sources(page, f".swb-{part} [src]") for part in PARTS}


def test_state_space(lab):
    with lab.open("state_space.ipynb", height=3200) as notebook:
        page = notebook.page
        def answer(unit):
            page.get_by_text(f"one unit of time is {unit} samples").wait_for()
            says(page, "status", "answered")
            return shown(page)
        notebook.run_all()
        start = answer(100)
        assert [len(start[part]) for part in PARTS] == [1, 1, 3, 1, 1]
        notebook.screenshot("state_space")
        check_export(notebook)

        slide(page, "Step dt", *["ArrowLeft"] * 20)
        slow = answer("1,000")
        assert slow["sound"].pop(0) == start["sound"].pop(0), "the input stays"
        assert all(a != b for part in PARTS for a, b in zip(start[part], slow[part]))

        page.get_by_label("State matrix A").select_option(label="diag: lin")
        page.get_by_label("Discretization").select_option(label="zoh")
        slide(page, "Step dt", *["ArrowRight"] * 40)
        folded = answer(10)
        assert folded["eigenvalues"] != slow["eigenvalues"] and folded["sound"][1:] != slow["sound"]
        assert "42 of 64 eigenvalues turn faster than half the sample rate" in page.locator(".swb-kernel").inner_text()
        notebook.theme(dark=True)
        notebook.screenshot("state_space-dark")

        page.get_by_label("Readout C").select_option(label="an echo, fitted")
        enter(page, "Echo after (ms)", 500)
        page.locator("[role=alert]:visible", has_text="within the window of 1,024 samples").wait_for()
        assert shown(page)["sound"] == []
        notebook.screenshot("state_space-error")
        enter(page, "Echo after (ms)", 1)
        page.locator(".swb-float32 img").wait_for()
        forgotten(page, "[role=alert]:visible")
        changed(page, ".swb-sound [src]", folded["sound"][1:])
        notebook.theme(dark=False)
        page.set_viewport_size({"width": 900, "height": 3200})
        notebook.screenshot("state_space-narrow")
        assert not notebook.problems()
