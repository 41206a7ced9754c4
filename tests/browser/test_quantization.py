"""Quantization: bits, law and place of the zoom change pictures and players; a wrong path is said, and forgotten."""
from browser import changed, check_export, enter, forgotten, says, slide, sources


def shown(page, *parts):
    """Pictures and players of parts of the page; the player of the original, which comes first, is none of them."""
    return sources(page, ", ".join(f".swb-{part} img, .swb-{part} figure:not(:first-of-type) audio" for part in parts))


def test_quantization(lab):
    with lab.open("quantization.ipynb", height=2100) as notebook:
        page = notebook.page
        notebook.run_all()
        says(page, "status", "answered")
        before = shown(page, "whole", "zoom", "sound", "noise", "codes")
        assert len(before) == 6 and page.locator(".swb-sound audio").count() == 3
        notebook.screenshot("quantization")
        check_export(notebook)

        slide(page, "Bits", "ArrowRight", "ArrowRight")
        says(page, "sound", "6 bits, linear")
        says(page, "status", "answered")
        after = shown(page, "whole", "zoom", "sound", "noise", "codes")
        assert len(after) == 6 and all(a != b for a, b in zip(after, before))
        page.get_by_label("Law", exact=True).select_option(label="mu-law")
        says(page, "sound", "6 bits, mu-law")
        says(page, "numbers", "mu-law, chosen")
        says(page, "status", "answered")
        before = shown(page, "zoom"), shown(page, "sound")
        slide(page, "Zoom at", "PageUp")
        changed(page, ".swb-zoom img", before[0])
        assert shown(page, "sound") == before[1], "moving the zoom leaves the players as they are"

        page.get_by_label("Sound", exact=True).select_option(label="own file, by its path")
        enter(page, "Own file", "nowhere.wav")
        page.locator("[role=alert]", has_text="no audio file nowhere.wav").wait_for()
        notebook.screenshot("quantization-error")
        page.get_by_label("Sound", exact=True).select_option(index=3)
        page.locator(".swb-codes img").wait_for()
        forgotten(page, "[role=alert]")
        notebook.theme(dark=True)
        page.locator(".swb-codes img").scroll_into_view_if_needed()
        notebook.screenshot("quantization-dark")
        page.set_viewport_size({"width": 900, "height": 2400})
        notebook.screenshot("quantization-narrow")
        notebook.theme(dark=False)
        assert not notebook.problems()
