"""Layouts: the token, the layout and the sound change pictures, words and players; a wrong path is said, and forgotten."""
from browser import check_export, slide


def sources(page, part, kind):
    """Pictures or players of a part of the page."""
    return page.locator(f".swb-{part} {kind}").evaluate_all("all => all.map(e => e.getAttribute('src'))")


def test_layouts(lab):
    with lab.open("layouts.ipynb", height=2100) as notebook:
        page = notebook.page
        says = lambda part, text: page.locator(f".swb-{part}", has_text=text).wait_for()
        notebook.run_all()
        says("words", "Token 25 of 64 comes next: sample 12 of the right channel")
        says("said", "answered")
        moment, players = sources(page, "moment", "img"), sources(page, "sound", "audio")
        assert len(players) == 4
        notebook.screenshot("layouts")
        check_export(notebook)

        slide(page, "Token", "ArrowRight")
        says("words", "Token 26 of 64 comes next: sample 13 of the left channel")
        assert sources(page, "moment", "img") != moment
        page.get_by_label("Layout", exact=True).select_option(label="blocking-N")
        says("words", "sample 10 of the right channel")
        says("trip", "blocking-16")
        assert page.locator(".swb-trip td", has_text=": all").count() == 2
        slide(page, "Bits of the codes", "Home")
        says("trip", "codes, 1 bit")

        page.get_by_label("Sound", exact=True).select_option(label="own file, by its path")
        page.get_by_label("Own file").fill("nowhere.wav")
        page.get_by_label("Own file").press("Enter")
        page.locator("[role=alert]", has_text="no audio file nowhere.wav").wait_for()
        notebook.screenshot("layouts-error")
        page.get_by_label("Sound", exact=True).select_option(index=3)
        page.locator(".swb-stereo img").wait_for()
        assert page.locator("[role=alert]").count() == 0 and sources(page, "sound", "audio") != players
        notebook.theme(dark=True)
        page.locator(".swb-firsts img").scroll_into_view_if_needed()
        notebook.screenshot("layouts-dark")
        page.get_by_label("Sound", exact=True).select_option(label="digits: eight en-rp-m1")
        says("stereo", "one channel")
        says("said", "answered")
        page.set_viewport_size({"width": 900, "height": 2300})
        notebook.screenshot("layouts-mono")
        notebook.theme(dark=False)
        assert not notebook.problems()
