"""The forward pass: stages by button and by keyboard, another way to feed the model, a refusal that passes, a full-size pass that is overtaken."""
from browser import changed, check_export, forgotten, says, slide, sources


def test_forward_pass(lab):
    with lab.open("forward_pass.ipynb", height=3150) as notebook:
        page = notebook.page
        notebook.run_all()
        says(page, "about", "encoder: RMS")
        says(page, "status", "answered")
        unet, stage, heard = sources(page, ".swb-unet img"), sources(page,
                                                                     ".swb-stage img"), sources(page, ".swb-sound audio")
        assert (len(unet), len(stage), len(heard)) == (1, 1, 2)
        check_export(notebook)

        page.get_by_role("button", name="centre", exact=True).click()
        says(page, "about", "centre: RMS")
        says(page, "status", "answered")
        assert sources(page, ".swb-stage img") != stage and sources(page, ".swb-sound audio")[1] != heard[1]
        assert sources(page, ".swb-unet img") == unet and sources(page,
                                                                  ".swb-sound audio")[0] == heard[0], "one pass, kept"
        assert page.locator(".swb-unet .swb-at").evaluate_all("all => all.map(e => getComputedStyle(e).display)").count("block") == 1
        notebook.screenshot("forward-pass")
        stage = sources(page, ".swb-stage img")
        slide(page, "Feature, by strength", "ArrowRight")
        changed(page, ".swb-stage img", stage)
        page.get_by_role("button", name="Next ▸").press("Enter")
        says(page, "about", "up 2: RMS")

        page.get_by_label("Channels", exact=True).select_option(label="stereo")
        says(page, "stages", "16,000 × 32")
        assert sources(page, ".swb-unet img") != unet
        page.get_by_label("Input", exact=True).select_option(label="raw")
        page.locator(".jupyter-widgets [role=alert]", has_text="embedding takes codes").wait_for()
        page.locator(".swb-unet img").wait_for(state="detached")
        notebook.screenshot("forward-pass-error")
        page.get_by_label("Input", exact=True).select_option(label="codes")
        page.locator(".swb-sound audio").nth(1).wait_for()
        forgotten(page, ".jupyter-widgets [role=alert]")

        model = page.get_by_label("Model", exact=True)
        model.select_option(label="preset, fresh weights: sashimi-musdb18stereo")
        says(page, "pass", "of 10:")
        model.select_option(label="preset, fresh weights: small")               # overtakes
        says(page, "pass", "through 230,304 parameters")
        page.get_by_role("button", name="head", exact=True).click()
        page.get_by_label("Bits", exact=True).select_option(label="16")
        says(page, "about", "head: RMS")
        says(page, "stages", "1,024 × 65,536")
        says(page, "status", "answered")
        notebook.theme(dark=True)
        notebook.screenshot("forward-pass-dark")
        page.get_by_label("Decoder mode", exact=True).select_option(label="last")
        page.get_by_label("Steps kept", exact=True).select_option(label="one, no time axis")
        says(page, "sound", "too short to be heard")
        says(page, "status", "answered")
        page.set_viewport_size({"width": 900, "height": 2600})
        notebook.screenshot("forward-pass-narrow")
        assert not notebook.problems()
