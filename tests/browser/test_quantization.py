"""The quantization page: bits, law and zoom change its figures and players; errors appear and go."""
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

PARTS = ("whole", "zoom", "sound", "noise", "codes")


def test_quantization(lab):
    with lab.open("quantization.ipynb") as notebook:
        notebook.run_all()
        check_first_answer(notebook)
        check_first_screen(notebook, room=230)
        check_export(notebook)
        raise_bits(notebook.page)
        choose_mu_law(notebook.page)
        move_zoom(notebook.page)
        enter_wrong_path(notebook, "quantization-error")
        choose_another_sound(notebook.page)
        show_dark_theme_and_narrow_window(notebook)
        assert not notebook.problems()


def shown(page, *parts):
    """Figures and players of parts of the page, except the player of the original, which comes first."""
    return sources(page, ", ".join(f".swb-{part} img, .swb-{part} figure:not(:first-of-type) audio" for part in parts))


def check_first_answer(notebook):
    wait_for_text(notebook.page, "status", "answered")
    assert len(shown(notebook.page, *PARTS)) == 6 and notebook.page.locator(".swb-sound audio").count() == 3


def raise_bits(page):
    before = shown(page, *PARTS)
    slide(page, "Bits", "ArrowRight", "ArrowRight")
    wait_for_text(page, "sound", "6 bits, linear")
    wait_for_text(page, "status", "answered")
    after = shown(page, *PARTS)
    assert len(after) == 6 and all(a != b for a, b in zip(after, before))


def choose_mu_law(page):
    page.get_by_label("Law", exact=True).select_option(label="mu-law")
    wait_for_text(page, "sound", "6 bits, mu-law")
    wait_for_text(page, "numbers", "mu-law, chosen")
    wait_for_text(page, "status", "answered")


def move_zoom(page):
    zoom, players = shown(page, "zoom"), shown(page, "sound")
    slide(page, "Zoom at", "PageUp")
    wait_for_new_data(page, ".swb-zoom img", zoom)
    assert shown(page, "sound") == players, "moving the zoom leaves the players unchanged"


def choose_another_sound(page):
    before = shown(page, "codes")
    page.get_by_label("Sound", exact=True).select_option(index=3)
    wait_for_new_data(page, ".swb-codes img", before)
    wait_until_gone(page, "[role=alert]")


def show_dark_theme_and_narrow_window(notebook):
    notebook.theme(dark=True)
    notebook.page.locator(".swb-codes img").scroll_into_view_if_needed()
    notebook.screenshot("quantization-dark")
    notebook.page.set_viewport_size({"width": 900, "height": 2400})
    notebook.screenshot("quantization-narrow")
