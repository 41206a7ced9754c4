"""The layouts page: token, layout, sound and theme change its figures, text and players; errors appear and go."""
from browser import (
    check_export,
    check_first_screen,
    enter_wrong_path,
    slide,
    sources,
    wait_for_new_data,
    wait_for_text,
    wait_until_gone,
)


def test_layouts(lab):
    with lab.open("layouts.ipynb") as notebook:
        notebook.run_all()
        check_first_answer(notebook)
        check_first_screen(notebook, room=290)
        check_export(notebook)
        step_to_next_token(notebook.page)
        change_layout_and_bits(notebook.page)
        players = sources(notebook.page, ".swb-sound audio")
        enter_wrong_path(notebook, "layouts-error")
        choose_another_sound(notebook.page, players)
        show_dark_theme(notebook)
        choose_mono_sound(notebook)
        assert not notebook.problems()


def check_first_answer(notebook):
    wait_for_text(notebook.page, "words", "Token 25 of 64 comes next: sample 12 of the right channel")
    wait_for_text(notebook.page, "status", "answered")
    assert len(sources(notebook.page, ".swb-sound audio")) == 4


def step_to_next_token(page):
    figure = sources(page, ".swb-moment img")
    slide(page, "Token", "ArrowRight")
    wait_for_text(page, "words", "Token 26 of 64 comes next: sample 13 of the left channel")
    wait_for_new_data(page, ".swb-moment img", figure)


def change_layout_and_bits(page):
    page.get_by_label("Layout", exact=True).select_option(label="blocking-N")
    wait_for_text(page, "words", "sample 10 of the right channel")
    wait_for_text(page, "trip", "blocking-16")
    assert page.locator(".swb-trip td", has_text=": all").count() == 2
    slide(page, "Bits", "Home")
    wait_for_text(page, "trip", "codes, 1 bit")


def choose_another_sound(page, players):
    page.get_by_label("Sound", exact=True).select_option(index=3)
    page.locator(".swb-stereo img").wait_for()
    wait_until_gone(page, "[role=alert]")
    wait_for_new_data(page, ".swb-sound audio", players)


def show_dark_theme(notebook):
    notebook.theme(dark=True)
    notebook.page.locator(".swb-overview img").scroll_into_view_if_needed()
    notebook.screenshot("layouts-dark")


def choose_mono_sound(notebook):
    page = notebook.page
    page.get_by_label("Sound", exact=True).select_option(label="digits: eight en-rp-m1")
    wait_for_text(page, "stereo", "one channel")
    wait_for_text(page, "status", "answered")
    page.set_viewport_size({"width": 900, "height": 2300})
    notebook.screenshot("layouts-mono")
