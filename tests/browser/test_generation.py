"""The generation page: a clip grows, is stopped, and is compared with others."""
import re

from browser import check_export, check_first_screen, enter, press, slide, wait_until_gone

DURATION = """audio => new Promise(resolve => {
    if (audio.readyState) resolve(audio.duration)
    else audio.onloadedmetadata = () => resolve(audio.duration) })"""
# a growing clip with at least one second of the 100
GROWING = re.compile(r"[1-9][0-9]*(\.[0-9]+)? of 100 s, ")


def shown(page):
    """The figure and the player of the single clip."""
    return page.locator(".swb-one img").get_attribute("src"), page.locator(".swb-one audio").get_attribute("src")


def duration_s(page):
    """Length of the sound in the player of the single clip, as the browser decodes it."""
    return page.locator(".swb-one audio").evaluate(DURATION)


def show_a_first_clip(notebook):
    page = notebook.page
    notebook.run_all()
    page.locator(".swb-one audio").wait_for()
    check_first_screen(notebook, room=130)
    copy = page.locator("div[class^=swb-static]")
    assert copy.is_hidden(), "the copy is for exports"
    assert (copy.locator("img").count(), copy.locator("audio").count()) == (1, 1)


def generate_with_other_settings(notebook):
    page = notebook.page
    before = shown(page)
    slide(page, "Temperature", *["ArrowLeft"] * 6)
    slide(page, "New audio", "ArrowLeft", "ArrowLeft")
    page.get_by_text("made with other settings").wait_for()
    assert page.locator(".swb-one .swb-old img").count() == 1, "the clip of the old settings is marked"
    notebook.screenshot("generation-old")
    press(page, "Generate")
    assert page.locator(".swb-old").count() == 0
    after = shown(page)
    assert after[0] != before[0] and after[1] != before[1]
    assert "temperature 0.7" in page.locator(".swb-one figcaption").inner_text()
    assert abs(duration_s(page) - 0.5) < 0.01, "0.3 s of prompt and 0.2 s of new audio"
    notebook.screenshot("generation")
    check_export(notebook)


def stop_a_long_clip(notebook):
    page = notebook.page
    player_before = shown(page)[1]
    slide(page, "New audio", "End")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator(".swb-one", has_text=GROWING).wait_for()
    notebook.screenshot("generation-growing")
    notebook.execute("1 + 1")   # the kernel stays usable: it answers while the clip grows
    page.locator(".swb-one").get_by_role("button", name="Stop").click()
    page.locator(".swb-one", has_text=", stopped").wait_for()
    assert shown(page)[1] != player_before and 1 < duration_s(page) < 100, "the prompt and a part of the new audio"


def show_an_error_and_recover(notebook):
    page = notebook.page
    slide(page, "New audio", "Home")
    page.get_by_label("Prompt", exact=True).select_option(label="own file, by its path")
    enter(page, "Own file", "nowhere.wav")
    press(page, "Generate")
    message = page.locator(".swb-one [role=alert]").inner_text()
    assert f"no audio file nowhere.wav (looked for {notebook.lab.folder}" in message
    assert page.locator(".swb-one .swb-old audio").count() == 1, "the last clip stays, marked"
    notebook.screenshot("generation-error")
    page.get_by_label("Prompt", exact=True).select_option(index=2)
    press(page, "Generate")
    wait_until_gone(page, ".swb-one [role=alert]")


def compare(notebook):
    page = notebook.page
    press(page, "Compare")
    assert page.locator(".swb-many audio").count() == 4
    notebook.theme(dark=True)
    notebook.screenshot("generation-dark")
    page.get_by_label("Compare", exact=True).and_(page.locator("select")).select_option(label="models")
    press(page, "Compare")
    assert page.locator(".swb-many audio").count() == 2
    assert "temperature 0.7" in page.locator(".swb-many .swb-note").first.inner_text()
    notebook.theme(dark=False)
    notebook.screenshot("generation-models")
    assert re.search("bit.* kHz", page.locator(".swb-many figcaption").first.inner_text())


def test_generation(lab):
    with lab.open("generation.ipynb") as notebook:
        show_a_first_clip(notebook)
        generate_with_other_settings(notebook)
        stop_a_long_clip(notebook)
        show_an_error_and_recover(notebook)
        compare(notebook)
        assert not notebook.problems()
