"""The page of the forward pass: stages, settings, an error, a pass that the next change cancels, decoder modes."""
from browser import (
    check_export,
    check_first_screen,
    slide,
    sources,
    wait_for_new_data,
    wait_for_text,
    wait_until_gone,
)

UNET, STAGE, AUDIO = ".swb-unet img", ".swb-stage img", ".swb-sound audio"
ALERT = ".jupyter-widgets [role=alert]"
VISIBLE_FRAMES = "all => all.filter(frame => getComputedStyle(frame).display === 'block').length"


def choose(page, label, option): page.get_by_label(label, exact=True).select_option(label=option)


def wait_for_first_pass(notebook):
    page = notebook.page
    notebook.run_all()
    wait_for_text(page, "about", "encoder: RMS")
    wait_for_text(page, "status", "answered")
    assert [len(sources(page, part)) for part in (UNET, STAGE, AUDIO)] == [1, 1, 2]
    check_first_screen(notebook, room=200, height=3150)
    head = page.locator(UNET).bounding_box()
    assert head["width"] > 700, "the U is not cut, so its head is seen"
    check_export(notebook)


def step_through_stages(notebook):
    page = notebook.page
    unet, stage, (played, feature) = sources(page, UNET), sources(page, STAGE), sources(page, AUDIO)
    page.get_by_role("button", name="center", exact=True).click()
    wait_for_text(page, "about", "center: RMS")
    wait_for_text(page, "status", "answered")
    assert sources(page, STAGE) != stage and sources(page, AUDIO)[1] != feature
    assert sources(page, UNET) == unet and sources(page, AUDIO)[0] == played, "the stages are those of one pass"
    assert page.locator(".swb-unet .swb-at").evaluate_all(VISIBLE_FRAMES) == 1
    notebook.screenshot("forward-pass")
    stage = sources(page, STAGE)
    slide(page, "Feature, by strength", "ArrowRight")
    wait_for_new_data(page, STAGE, stage)
    page.get_by_role("button", name="Next ▸").press("Enter")
    wait_for_text(page, "about", "up 2: RMS")


def feed_stereo(page):
    unet = sources(page, UNET)
    choose(page, "Channels", "stereo")
    wait_for_text(page, "stages", "16,000 × 32")
    assert sources(page, UNET) != unet


def show_an_error_and_recover(notebook):
    page = notebook.page
    choose(page, "Input", "codes")
    page.locator(ALERT, has_text="linear_projection takes").wait_for()
    page.locator(".swb-unet.swb-old").wait_for()
    notebook.screenshot("forward-pass-error")
    choose(page, "Input", "dequantized")
    wait_until_gone(page, ALERT)
    wait_until_gone(page, ".swb-old")


def cancel_a_full_size_pass(page):
    choose(page, "Model", "preset, fresh weights: sashimi-musdb18stereo")
    wait_for_text(page, "status", "of 10:")
    choose(page, "Model", "preset, fresh weights: small")
    wait_for_text(page, "stages", "230,304")


def change_depth_and_decoder_mode(notebook):
    page = notebook.page
    page.get_by_role("button", name="head", exact=True).click()
    choose(page, "Bits", "16")
    wait_for_text(page, "about", "head: RMS")
    wait_for_text(page, "stages", "1,024 × 65,536")
    wait_for_text(page, "status", "answered")
    notebook.theme(dark=True)
    notebook.screenshot("forward-pass-dark")
    choose(page, "Decoder mode", "last")
    choose(page, "Output steps", "one, no time axis")
    wait_for_text(page, "sound", "too short to play")
    wait_for_text(page, "status", "answered")
    page.set_viewport_size({"width": 900, "height": 2600})
    notebook.screenshot("forward-pass-narrow")


def test_forward_pass(lab):
    with lab.open("forward_pass.ipynb") as notebook:
        wait_for_first_pass(notebook)
        step_through_stages(notebook)
        feed_stereo(notebook.page)
        show_an_error_and_recover(notebook)
        cancel_a_full_size_pass(notebook.page)
        change_depth_and_decoder_mode(notebook)
        assert not notebook.problems()
