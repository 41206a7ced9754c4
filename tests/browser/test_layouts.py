"""Layouts: the token, the layout and the sound change pictures, words and players; a wrong path is said, and forgotten."""
from browser import changed, check_export, enter, forgotten, says, slide, sources


def test_layouts(lab):
    with lab.open("layouts.ipynb", height=2100) as notebook:
        page = notebook.page
        notebook.run_all()
        says(page, "words", "Token 25 of 64 comes next: sample 12 of the right channel")
        says(page, "status", "answered")
        moment, players = sources(page, ".swb-moment img"), sources(page, ".swb-sound audio")
        assert len(players) == 4
        notebook.screenshot("layouts")
        check_export(notebook)

        slide(page, "Token", "ArrowRight")
        says(page, "words", "Token 26 of 64 comes next: sample 13 of the left channel")
        changed(page, ".swb-moment img", moment)
        page.get_by_label("Layout", exact=True).select_option(label="blocking-N")
        says(page, "words", "sample 10 of the right channel")
        says(page, "trip", "blocking-16")
        assert page.locator(".swb-trip td", has_text=": all").count() == 2
        slide(page, "Bits of the codes", "Home")
        says(page, "trip", "codes, 1 bit")

        page.get_by_label("Sound", exact=True).select_option(label="own file, by its path")
        enter(page, "Own file", "nowhere.wav")
        page.locator("[role=alert]", has_text="no audio file nowhere.wav").wait_for()
        notebook.screenshot("layouts-error")
        page.get_by_label("Sound", exact=True).select_option(index=3)
        page.locator(".swb-stereo img").wait_for()
        forgotten(page, "[role=alert]")
        changed(page, ".swb-sound audio", players)
        notebook.theme(dark=True)
        page.locator(".swb-firsts img").scroll_into_view_if_needed()
        notebook.screenshot("layouts-dark")
        page.get_by_label("Sound", exact=True).select_option(label="digits: eight en-rp-m1")
        says(page, "stereo", "one channel")
        says(page, "status", "answered")
        page.set_viewport_size({"width": 900, "height": 2300})
        notebook.screenshot("layouts-mono")
        notebook.theme(dark=False)
        assert not notebook.problems()
