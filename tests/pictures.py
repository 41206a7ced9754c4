"""Make the pictures in nbs/images from the pages and the first lesson, in a real browser: `make pictures`.

This needs Chromium, and finished runs of `make ablations` for the page that shows runs; SASHIMI_WB_RUNS may name their
folder.
"""
import io
import os
import sys
import tempfile
from pathlib import Path

from browser import PATIENCE_MS, ROOT, Lab, copy_notebook, missing, press
from PIL import Image

from sashimi_wb.core.system import runs_folder

IMAGES = ROOT / "nbs/images"
NAMES = ("quantization", "layouts", "state_space", "forward_pass", "training", "generation", "runs", "compression",
         "first")
WIDTH, COLORS = 900, 255  # pixels across and entries of the palette, for small files
HEIGHT = {"first": 755}   # pixels down, at most; else as many as across


def wait_training(page):
    """Start a run and wait for its first curves."""
    page.get_by_role("button", name="Start", exact=True).click()
    page.locator(".swb-clips audio").nth(1).wait_for()
    page.wait_for_timeout(5000)


def choose_runs(page):
    """Select the arms of the first ablation."""
    box = page.get_by_role("textbox", name="Filter")
    box.fill("bits=8 channels=mono quantization=mu_law predictor=none seed=0")
    box.press("Enter")
    page.wait_for_timeout(2000)
    page.get_by_label("Compare", exact=True).and_(page.locator("select")).focus()
    page.keyboard.press("Control+a")
    page.wait_for_timeout(4000)


def show_results(page):
    """Scroll the lesson to its second model, whose bits and sound follow."""
    page.locator(".jp-Cell", has_text="the same model starts where the prediction ends").first.evaluate(
        "e => e.scrollIntoView()")
    page.wait_for_timeout(3000)


PREPARE = {"training": wait_training, "generation": lambda page: press(page, "Generate"), "runs": choose_runs,
           "first": show_results}
WIDGETS, NOTEBOOK = ".jp-OutputArea-child .widget-vbox", ".jp-NotebookPanel-notebook"


def take(lab: Lab, name: str) -> Path:
    """Run all cells of a page and save its picture, scaled and with a palette."""
    with lab.open(f"{name}.ipynb", width=1240, height=1500) as notebook:
        page = notebook.page
        page.set_default_timeout(10*PATIENCE_MS)     # the lesson trains two models
        notebook.command("application:toggle-left-area")
        notebook.run_all()
        PREPARE.get(name, lambda page: page.wait_for_timeout(1500))(page)
        if wrong := notebook.problems(): raise RuntimeError(f"{name}: {wrong}")
        box = page.locator(NOTEBOOK if name == "first" else WIDGETS).first
        if name != "first": box.scroll_into_view_if_needed()
        shot = Image.open(io.BytesIO(box.screenshot())).convert("RGB")
    small = shot.resize((WIDTH, round(shot.height * WIDTH / shot.width)), Image.Resampling.LANCZOS)
    small = small.crop((0, 0, WIDTH, min(small.height, HEIGHT.get(name, WIDTH))))
    path = IMAGES / ("first.png" if name == "first" else f"explore_{name}.png")
    small.quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def main(names: list[str]) -> None:
    """Take the pictures of the named pages. Raises: FileNotFoundError if a page of runs would be empty."""
    if "runs" in names and not any(runs_folder().glob("*/result.json")):
        raise FileNotFoundError(f"no finished runs in {runs_folder()}: call `make ablations` first, or name their "
                                "folder in SASHIMI_WB_RUNS")
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            runs = str(Path(folder) / "runs" if name == "training" else runs_folder())
            source = ROOT / ("nbs/first.ipynb" if name == "first" else f"nbs/explore/{name}.ipynb")
            copy_notebook(source, Path(folder) / source.name, {"runs": runs})
        os.environ["SASHIMI_WB_RUNS"] = str(Path(folder) / "runs")        # of the lesson
        with Lab(Path(folder)) as lab:
            for name in names:
                path = take(lab, name)
                print(f"{path.relative_to(ROOT)}: {path.stat().st_size/1000:.0f} kB")


if __name__ == "__main__":
    if why := missing(): sys.exit(why)
    main(sys.argv[1:] or list(NAMES))
