"""Make the pictures of the explorations in nbs/images from the pages themselves, in a real browser: `make pictures`.

It needs Chromium, and runs of `make ablations` for the page that browses them.
"""
import io
import sys
import tempfile
from pathlib import Path

from browser import ROOT, Lab, copy_notebook, missing
from PIL import Image

IMAGES = ROOT / "nbs/images"
NAMES = ("quantization", "layouts", "state_space", "forward_pass", "training", "generation", "runs")
WIDTH, COLORS = 900, 255  # a small file: pixels across, entries of the palette


def wait_training(page):
    """Let a run begin and its first curves be drawn."""
    page.get_by_role("button", name="Start", exact=True).click()
    page.locator(".swb-clips audio").nth(1).wait_for()
    page.wait_for_timeout(5000)


def choose_runs(page):
    """Choose the arms of the first ablation."""
    box = page.get_by_role("textbox", name="Filter")
    box.fill("bits=8 channels=mono quantization=mu_law steps=240 seed=0")
    box.press("Enter")
    page.wait_for_timeout(2000)
    page.get_by_label("Compare", exact=True).and_(page.locator("select")).focus()
    page.keyboard.press("Control+a")
    page.wait_for_timeout(4000)


PREPARE = {"training": wait_training, "runs": choose_runs}


def take(lab: Lab, name: str) -> Path:
    """The page as it looks after all cells have run, scaled, with a palette of its own."""
    with lab.open(f"{name}.ipynb", width=1240, height=1500) as notebook:
        page = notebook.page
        notebook.command("application:toggle-left-area")
        notebook.run_all()
        PREPARE.get(name, lambda page: page.wait_for_timeout(1500))(page)
        if wrong := notebook.problems(): raise RuntimeError(f"{name}: {wrong}")
        box = page.locator(".jp-OutputArea-child .widget-vbox").first
        box.scroll_into_view_if_needed()
        shot = Image.open(io.BytesIO(box.screenshot())).convert("RGB")
    small = shot.resize((WIDTH, round(shot.height * WIDTH / shot.width)), Image.Resampling.LANCZOS)
    small = small.crop((0, 0, WIDTH, min(small.height, WIDTH)))
    path = IMAGES / f"explore_{name}.png"
    small.quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def main(names: list[str]) -> None:
    """Take the pictures of some pages, or of all."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            runs = str(Path(folder) / "runs" if name == "training" else ROOT / "runs")
            copy_notebook(ROOT / f"nbs/explore/{name}.ipynb", Path(folder) / f"{name}.ipynb", {"runs": runs})
        with Lab(Path(folder)) as lab:
            for name in names:
                path = take(lab, name)
                print(f"{path.relative_to(ROOT)}: {path.stat().st_size/1000:.0f} kB")


if __name__ == "__main__":
    if why := missing(): sys.exit(why)
    main(sys.argv[1:] or list(NAMES))
