"""Make the film of a page in use, in a real browser: `make film`. It needs Chromium.

A frame is taken after an action has been answered, so that nothing flickers; an arrow marks the control in use.
"""
import io
import sys
import tempfile
from pathlib import Path

from browser import ROOT, Lab, copy_notebook, missing, slide, sources
from PIL import Image

from sashimi_wb.core.system import write_atomic

FILM = ROOT / "nbs/images/explore.webp"
WIDTH, HEIGHT = 1000, 860       # of the window
FRAME_HEIGHT = 640              # of the film, whose pixels are those of the screen, so that text is sharp
LARGEST = 1_000_000             # bytes
FIGURES = ".swb-page img[src^='data:image']"
ARROW = """([x, y]) => {
    const arrow = document.getElementById('film-arrow') ?? document.body.appendChild(document.createElement('div'))
    arrow.id = 'film-arrow'
    arrow.style = `position:fixed;z-index:9999;pointer-events:none;left:${x}px;top:${y}px`
    arrow.innerHTML = `<svg width="20" height="26"><path fill="#000" stroke="#fff" stroke-width="1.4"
        d="M1 1v19l5-4.6 3.4 8 3.4-1.5-3.4-7.7h7z"/></svg>` }"""
# control, key or option, and for how many milliseconds the answer is shown
ACTIONS = (("Bits", "ArrowRight", 900), ("Bits", "ArrowRight", 1200), *[("Bits", "ArrowLeft", 800)]*3,
           ("Bits", "ArrowLeft", 1300), ("clip", "error", 1300), ("Law", "mu-law", 1500), ("clip", "mu-law", 1200),
           *[("Zoom at", "PageUp", 900)]*2, ("Sound", "digits: seven en-gb-f2", 1800))


def act(page, control: str, value: str) -> None:
    """Use a control and point at it."""
    if control == "clip":
        used = page.locator(".swb-sound label", has_text=value).first
        used.click()
    elif value.startswith(("Arrow", "Page")):
        slide(page, control, value)
        used = page.locator(".widget-hslider", has_text=control).locator(".noUi-handle")
    else:
        used = page.get_by_label(control, exact=True)
        used.select_option(label=value)
    box = used.bounding_box()
    page.evaluate(ARROW, [box["x"] + min(box["width"]/2, 60), box["y"] + box["height"]/2])


def wait_for_answer(page, before: list[str]) -> None:
    """Wait until the figures are others than before, the page says that it has answered, and players have loaded."""
    page.wait_for_function("""([selector, before]) => {
        const now = [...document.querySelectorAll(selector)].map(e => e.getAttribute('src'))
        return now[0] != before[0] || now[1] != before[1] }""", arg=[FIGURES, before])
    page.locator(".swb-status", has_text="answered").wait_for()


def take() -> list[tuple[Image.Image, int]]:
    """The frames of the film, and for how many milliseconds each is shown."""
    frames = []
    with tempfile.TemporaryDirectory() as folder:
        copy_notebook(ROOT / "nbs/explore/quantization.ipynb", Path(folder) / "quantization.ipynb", {})
        with Lab(Path(folder)) as lab, lab.open("quantization.ipynb", WIDTH, HEIGHT) as notebook:
            page = notebook.page
            notebook.command("application:toggle-left-area")
            notebook.run_all()
            page.locator(".swb-status", has_text="answered").wait_for()
            page.add_style_tag(content=".swb-status{opacity:0}")     # the film does not run as fast as the page
            for control, value, ms in (("", "", 1200), *ACTIONS):
                before = sources(page, FIGURES)
                if control: act(page, control, value)
                if control not in ("", "clip"): wait_for_answer(page, before)
                page.wait_for_timeout(1500)
                frames.append((picture(page), ms))
            if wrong := notebook.problems(): raise RuntimeError(f"the page has problems: {wrong}")
    return frames


def picture(page) -> Image.Image:
    """The upper part of the page as it is on the screen."""
    widgets = page.locator(".swb-page").first
    widgets.evaluate("e => e.scrollIntoView()")
    box = widgets.bounding_box()
    clip = box | {"width": int(box["width"]), "height": FRAME_HEIGHT}
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def main() -> None:
    """Take the film and write it. Raises: ValueError if the file is too large."""
    frames, durations = zip(*take())
    data = io.BytesIO()
    frames[0].save(data, "WebP", save_all=True, append_images=frames[1:], duration=list(durations), loop=0, quality=70,
                   method=6)
    size = len(data.getvalue())
    if size > LARGEST: raise ValueError(f"the film has {size:,} bytes, more than {LARGEST:,}: take fewer frames")
    write_atomic(FILM, data.getvalue())
    print(f"{FILM.relative_to(ROOT)}: {len(frames)} frames, {sum(durations)/1000:.1f} s, {size/1000:.0f} kB")


if __name__ == "__main__":
    if why := missing(): sys.exit(why)
    main()
