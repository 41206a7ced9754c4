"""The compression page: coder, average and sound change its figure, proof and players; errors appear and go."""
from browser import (
    ROOT,
    check_export,
    check_first_screen,
    enter,
    enter_wrong_path,
    slide,
    sources,
    wait_for_new_data,
    wait_for_text,
    wait_until_gone,
)

FIGURE, PLAYERS = ".swb-bits img", ".swb-sound audio"


def test_compression(lab):
    with lab.open("compression.ipynb") as notebook:
        notebook.run_all()
        check_first_answer(notebook)
        check_first_screen(notebook, room=300)
        check_export(notebook)
        average_longer(notebook.page)
        proof = notebook.page.locator(".swb-proof").inner_text()
        enter_wrong_path(notebook, "compression-error")
        assert notebook.page.locator(".swb-proof").inner_text() == proof, "the last answer stays"
        let_a_model_code_a_digit(notebook)
        type_an_own_file(notebook.page)
        show_dark_theme_and_narrow_window(notebook)
        assert not notebook.problems()


def check_first_answer(notebook):
    wait_for_text(notebook.page, "status", "answered")
    wait_for_text(notebook.page, "proof", "352,844 bytes → ")
    wait_for_text(notebook.page, "proof", "the same 352,844 bytes")
    assert len(sources(notebook.page, FIGURE)) == 1 and len(sources(notebook.page, PLAYERS)) == 2


def average_longer(page):
    figure, players = sources(page, FIGURE), sources(page, PLAYERS)
    slide(page, "Average", "ArrowRight")
    wait_for_new_data(page, FIGURE, figure)
    wait_for_text(page, "status", "answered")
    assert sources(page, PLAYERS) == players, "another average leaves the players unchanged"


def let_a_model_code_a_digit(notebook):
    page, players = notebook.page, sources(notebook.page, PLAYERS)
    page.get_by_label("Sound", exact=True).select_option(label="digits: eight en-rp-m1")
    page.get_by_label("Coded by", exact=True).select_option(index=1)
    wait_until_gone(page, "[role=alert]")
    wait_for_text(page, "numbers", "model")
    wait_for_text(page, "proof", "the same 16,044 bytes")
    wait_for_new_data(page, PLAYERS, players)
    wait_for_text(page, "status", "answered")
    notebook.screenshot("compression-model")


def type_an_own_file(page):
    coder = page.get_by_label("Coded by", exact=True)
    coder.select_option(index=0)
    page.get_by_label("Sound", exact=True).select_option(label="own file, by its path")
    enter(page, "Own file", ROOT / "data/music/satie_gymnopedie_1.flac")
    wait_until_gone(page, "[role=alert]")
    wait_for_text(page, "proof", "the same 352,844 bytes")
    wait_for_text(page, "status", "answered")
    assert coder.input_value() == "the predictor: samples as they are"


def show_dark_theme_and_narrow_window(notebook):
    notebook.theme(dark=True)
    notebook.page.set_viewport_size({"width": 1280, "height": 900})
    notebook.screenshot("compression-dark")
    notebook.page.set_viewport_size({"width": 1000, "height": 1400})
    notebook.screenshot("compression-narrow")
