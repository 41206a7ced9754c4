"""Generation: a clip grows, is stopped, and stands beside others."""
import re

from browser import check_export, enter, forgotten, press, slide


def shown(page):
    """The picture and the player of the upper half."""
    return page.locator(".swb-one img").get_attribute("src"), page.locator(".swb-one audio").get_attribute("src")


def seconds_heard(page):
    """Length of the sound in the player, as the browser decodes it."""
    return page.locator(".swb-one audio").evaluate("a => new Promise(done => a.readyState ? done(a.duration) : a.onloadedmetadata = () => done(a.duration))")


def test_generation(lab):
    with lab.open("generation.ipynb", height=1500) as notebook:
        page = notebook.page
        notebook.run_all()
        page.locator(".swb-one audio").wait_for()
        still = page.locator("div[class^=swb-static]")
        assert still.is_hidden() and (still.locator("img").count(),
                                      still.locator("audio").count()) == (1, 1), "for where nothing is live"
        before = shown(page)
        slide(page, "Temperature", *["ArrowLeft"] * 6)
        slide(page, "New audio", "ArrowLeft", "ArrowLeft")
        press(page, "Generate")
        after = shown(page)
        assert after[0] != before[0] and after[1] != before[1]
        assert "temperature 0.7" in page.locator(".swb-one figcaption").inner_text()
        assert abs(seconds_heard(page) - 0.5) < 0.01, "0.3 s of prompt and 0.2 s"
        notebook.screenshot("generation")
        check_export(notebook)

        slide(page, "New audio", "End")                      # 100 s, stopped on the way
        page.get_by_role("button", name="Generate", exact=True).click()
        page.locator(".swb-one", has_text=re.compile(r"[1-9][0-9]*(\.[0-9]+)? of 100 s, ")).wait_for()
        notebook.screenshot("generation-growing")
        # the kernel stays usable: it answers before what follows stops the work
        notebook.execute("1 + 1")
        page.locator(".swb-one").get_by_role("button", name="Stop").click()
        page.locator(".swb-one", has_text=", stopped").wait_for()
        assert shown(page)[1] != after[1] and 1 < seconds_heard(page) < 100, "the prompt, and some more"

        slide(page, "New audio", "Home")
        page.get_by_label("Prompt", exact=True).select_option(label="own file, by its path")
        enter(page, "Own file", "nowhere.wav")
        press(page, "Generate")
        assert "no audio file nowhere.wav" in page.locator(".swb-one [role=alert]").inner_text()
        notebook.screenshot("generation-error")
        page.get_by_label("Prompt", exact=True).select_option(index=2)
        press(page, "Generate")
        forgotten(page, ".swb-one [role=alert]")

        press(page, "Compare")
        assert page.locator(".swb-many audio").count() == 4
        notebook.theme(dark=True)
        notebook.screenshot("generation-dark")
        page.get_by_label("Compare", exact=True).and_(page.locator("select")).select_option(label="models")
        press(page, "Compare")
        assert page.locator(".swb-many audio").count() == 2
        notebook.theme(dark=False)
        notebook.screenshot("generation-models")
        assert re.search("bit.* kHz", page.locator(".swb-many figcaption").first.inner_text())
        assert not notebook.problems()
