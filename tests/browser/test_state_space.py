"""The state space page: matrix, discretization, step and readout change its parts; errors appear and go."""
from browser import (
    check_export,
    check_first_screen,
    enter,
    slide,
    sources,
    wait_for_new_data,
    wait_for_text,
    wait_until_gone,
)

PARTS = ("kernel", "eigenvalues", "sound", "past", "float32")


def test_state_space(lab):
    with lab.open("state_space.ipynb") as notebook:
        notebook.run_all()
        start = check_first_answer(notebook)
        check_first_screen(notebook, height=3200)
        check_export(notebook)
        slow = slow_down_time(notebook.page, start)
        aliased = choose_diagonal_matrix_and_large_step(notebook.page, slow)
        show_dark_theme(notebook)
        ask_for_an_echo_outside_the_window(notebook)
        ask_for_a_short_echo(notebook.page, aliased)
        show_narrow_window(notebook)
        assert not notebook.problems()


def answer(page, unit):
    """Figures and players of every part, once the answer for a step is complete."""
    page.get_by_text(f"1/dt = {unit} samples").wait_for()
    wait_for_text(page, "status", "answered")
    return shown(page)


def shown(page):
    """Figures and players of every part; the first player is the input."""
    return {part: sources(page, f".swb-{part} [src]") for part in PARTS}


def check_first_answer(notebook):
    start = answer(notebook.page, 100)
    assert [len(start[part]) for part in PARTS] == [1, 1, 3, 1, 1]
    return start


def slow_down_time(page, start):
    slide(page, "Step dt", *["ArrowLeft"] * 20)
    slow = answer(page, "1,000")
    assert slow["sound"].pop(0) == start["sound"].pop(0), "the input stays"
    assert all(a != b for part in PARTS for a, b in zip(start[part], slow[part]))
    return slow


def choose_diagonal_matrix_and_large_step(page, slow):
    page.get_by_label("Matrix A").select_option(label="diag: lin")
    page.get_by_label("Discretization").select_option(label="zoh")
    slide(page, "Step dt", *["ArrowRight"] * 40)
    aliased = answer(page, 10)
    assert aliased["eigenvalues"] != slow["eigenvalues"] and aliased["sound"][1:] != slow["sound"]
    wait_for_text(page, "memory", "42 of 64 eigenvalues have a frequency above half the sample rate")
    return aliased


def show_dark_theme(notebook):
    notebook.theme(dark=True)
    notebook.screenshot("state_space-dark")


def ask_for_an_echo_outside_the_window(notebook):
    page = notebook.page
    page.get_by_label("Readout C").select_option(label="an echo, fitted")
    enter(page, "Echo after (ms)", 500)
    page.locator("[role=alert]:visible", has_text="within the window of 1,024 samples").wait_for()
    page.locator(".swb-sound.swb-old audio").first.wait_for()   # the last answer stays
    notebook.screenshot("state_space-error")


def ask_for_a_short_echo(page, aliased):
    enter(page, "Echo after (ms)", 1)
    wait_until_gone(page, "[role=alert]:visible")
    wait_until_gone(page, ".swb-old")
    wait_for_new_data(page, ".swb-sound [src]", aliased["sound"][1:])


def show_narrow_window(notebook):
    notebook.page.set_viewport_size({"width": 900, "height": 3200})
    notebook.screenshot("state_space-narrow")
