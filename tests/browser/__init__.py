"""JupyterLab in a real browser: a local server in temporary folders, and Chromium driven by playwright.

    with Lab(folder) as lab, lab.open("generation.ipynb") as notebook:
        notebook.run_all()
        notebook.page.get_by_role("button", name="Generate").click()
        assert not notebook.problems()
"""
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "screenshots"
PATIENCE_MS = 120_000
TOKEN = "only-for-this-test"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update",
         "--disable-sync", "--no-proxy-server", "--autoplay-policy=no-user-gesture-required"]
CURRENT = "window.jupyterapp?.shell?.currentWidget"


def chromium() -> str | None:
    """Path of the browser: $CHROMIUM, or the first of its usual names that is installed."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def missing() -> str:
    """Why the browser tests cannot run here and how to change that; empty if they can run."""
    if not find_spec("playwright"): return "no browser tests: playwright is not installed (`make setup` installs it)"
    if not chromium():
        return ("no browser tests: Chromium was not found; install it (Debian, Ubuntu: apt install chromium) "
                "or give its path: CHROMIUM=/path/to/chrome")
    return ""


def free_port() -> int:
    """A port that is free at the moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def copy_notebook(source: Path, target: Path, parameters: dict) -> None:
    """Copy a notebook and set those of the parameters that it has, in a cell after its parameters, like papermill."""
    notebook = nbformat.read(source, 4)
    tagged = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    for at in tagged[:1]:
        present = notebook.cells[at].source
        lines = [f"{name} = {value!r}" for name, value in parameters.items() if re.search(rf"\b{name}\b", present)]
        if lines: notebook.cells.insert(at + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)


class Lab:
    """A JupyterLab server on a folder, and a browser; the `with` block ends both.

    The notebooks share one browser context, so that JupyterLab's own files are loaded once and then cached.
    Every kernel imports the package when it starts, while JupyterLab is still drawing the notebook."""

    def __init__(self, folder: Path):
        self.folder, self.port = Path(folder), free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        self.settings = Path(tempfile.mkdtemp(prefix="sashimi_wb_lab_"))
        startup = self.settings / "ipython/profile_default/startup/import_package.py"
        startup.parent.mkdir(parents=True)
        startup.write_text("import sashimi_wb.explore\n")
        names = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
                 "IPYTHONDIR": "ipython",
                 "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
        env = os.environ | {k: str(self.settings / v) for k, v in names.items()}
        quiet = self.settings / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
        quiet.parent.mkdir(parents=True)
        quiet.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
        self.log = self.settings / "lab.log"
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={self.port}",
                   "--ServerApp.port_retries=0",
                   f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={self.folder}",
                   "--expose-app-in-browser", "--LabApp.news_url=",
                   "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
                   "--LabApp.extension_manager=readonly"]
        if hasattr(os, "geteuid") and os.geteuid() == 0: command.append("--allow-root")
        with open(self.log, "wb") as log:
            self.server = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=self.folder)
        try:
            self._wait()
            from playwright.sync_api import sync_playwright
            self.playwright = sync_playwright().start()
            sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
            self.browser = self.playwright.chromium.launch(executable_path=chromium(), args=FLAGS + sandbox)
            self.context = self.browser.new_context()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait(self, seconds: float = 180.0) -> None:
        opener, end = urllib.request.build_opener(urllib.request.ProxyHandler({})), time.monotonic() + seconds
        while time.monotonic() < end and self.server.poll() is None:
            try: return opener.open(f"{self.url}/api/status?token={TOKEN}", timeout=5).close()
            except OSError: time.sleep(0.2)
        raise RuntimeError(f"JupyterLab does not answer:\n{self.log.read_text()[-4000:]}")

    def open(self, name: str, width: int = 1280, height: int = 900) -> "Notebook":
        """A notebook of the folder in a window of its own."""
        return Notebook(self, name, width, height)

    def __exit__(self, *error):
        if browser := getattr(self, "browser", None): browser.close()
        if playwright := getattr(self, "playwright", None): playwright.stop()
        self.server.terminate()
        try: self.server.wait(20)
        except subprocess.TimeoutExpired: self.server.kill()
        shutil.rmtree(self.settings, ignore_errors=True)


class Notebook:
    """A notebook in the browser: `page` is playwright's, `problems()` lists errors."""

    def __init__(self, lab: Lab, name: str, width: int, height: int):
        self.lab, self.name, self.seen = lab, name, []
        self.page = lab.context.new_page()
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("pageerror", lambda e: self.seen.append(f"page error: {e}"))
        self.page.on("request", lambda r: self._check(r.url))

    def _check(self, url):
        if not url.startswith((self.lab.url, self.lab.url.replace("http", "ws"), "data:", "blob:")):
            self.seen.append(f"fetched from outside: {url}")

    def __enter__(self):
        self.page.goto(f"{self.lab.url}/lab/tree/{self.name}?token={TOKEN}&reset")
        self.page.wait_for_function(f"() => {CURRENT}?.sessionContext?.session?.kernel?.status === 'idle'")
        if self.page.evaluate("document.body.dataset.jpThemeLight") != "true":
            self.theme(dark=False)   # an earlier test may have left the dark theme
        return self

    def __exit__(self, *error):
        # kernels that are not shut down would pile up
        try: self.page.evaluate(f"() => {CURRENT}.sessionContext.shutdown().then(() => null)")
        finally: self.page.close()

    def command(self, name: str, **arguments) -> None:
        """Run one of JupyterLab's commands and wait for its end."""
        self.page.evaluate("([name, args]) => jupyterapp.commands.execute(name, args).then(() => null)",
                           [name, arguments])

    def run_all(self) -> None:
        """Run every cell and wait until the kernel is idle."""
        self.command("notebook:run-all-cells")
        self.page.wait_for_function(f"() => {CURRENT}.sessionContext.session.kernel.status === 'idle'")

    def execute(self, code: str) -> None:
        """Run code in the kernel without a cell, and wait for its end."""
        kernel = f"{CURRENT}.sessionContext.session.kernel"
        run = f"code => {kernel}.requestExecute({{code}}).done.then(m => m.content.status)"
        status = self.page.evaluate(run, code)
        if status != "ok": raise RuntimeError(f"{code!r} ended with {status}")

    def problems(self) -> list[str]:
        """Page errors, requests that left this machine, and tracebacks and broken widgets in the notebook."""
        cells = self.page.evaluate(f"() => {CURRENT}.content.model.toJSON().cells")
        outputs = [o for c in cells for o in c.get("outputs", [])]
        errors = [f"{o['ename']}: {o['evalue']}" for o in outputs if o["output_type"] == "error"]
        stderr = ["".join(o["text"]) for o in outputs if o["output_type"] == "stream" and o["name"] == "stderr"]
        widgets = self.page.get_by_text("Click to show javascript error").all_inner_texts()
        return [*self.seen, *errors, *(text for text in stderr if "Traceback" in text), *widgets]

    def theme(self, dark: bool) -> None:
        """Change JupyterLab's theme."""
        self.command("apputils:change-theme", theme="JupyterLab Dark" if dark else "JupyterLab Light")
        self.page.wait_for_function(f"() => document.body.dataset.jpThemeLight === '{str(not dark).lower()}'")
        self.page.locator("#jupyterlab-splash").wait_for(state="detached")

    def exported(self) -> "playwright.sync_api.Page":  # noqa: F821
        """The notebook in its present state, exported to HTML and opened in a window without a network."""
        from nbconvert import HTMLExporter

        content = nbformat.from_dict(self.page.evaluate(f"() => {CURRENT}.content.model.toJSON()"))
        for cell in content.cells: cell.pop("attachments", None)   # null in cells without attachments
        path = self.lab.folder / f"{Path(self.name).stem}.html"
        path.write_text(HTMLExporter().from_notebook_node(content)[0], encoding="utf-8")
        page = self.lab.context.new_page()
        page.route(lambda url: not url.startswith(("file:", "data:", "blob:")), lambda route: route.abort())
        page.goto(path.as_uri(), wait_until="domcontentloaded")
        return page

    def screenshot(self, name: str) -> Path:
        """Save the window as a PNG in the ignored folder `screenshots`."""
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")
        return SCREENSHOTS / f"{name}.png"


def slide(page, label: str, *keys: str) -> None:
    """Move a slider by keys."""
    handle = page.locator(".widget-hslider", has_text=label).locator(".noUi-handle")
    for key in keys: handle.press(key)


def enter(page, label: str, value) -> None:
    """Type a value into a control and press Enter."""
    page.get_by_label(label, exact=True).fill(str(value))
    page.get_by_label(label, exact=True).press("Enter")


def enter_wrong_path(notebook: Notebook, screenshot: str) -> None:
    """Choose an own file that does not exist as the sound, and wait for the error."""
    page = notebook.page
    page.get_by_label("Sound", exact=True).select_option(label="own file, by its path")
    enter(page, "Own file", "nowhere.wav")
    page.locator("[role=alert]", has_text="no audio file nowhere.wav").wait_for()
    notebook.screenshot(screenshot)


def wait_for_text(page, part: str, text) -> None:
    """Wait until a part of a page contains a text."""
    page.locator(f".swb-{part}", has_text=text).wait_for()


def sources(page, selector: str) -> list[str]:
    """The data of the images and players that match a selector."""
    return page.locator(selector).evaluate_all("all => all.map(e => e.getAttribute('src'))")


def wait_for_new_data(page, selector: str, before: list[str]) -> None:
    """Wait until all images and players that match a selector have new data."""
    page.wait_for_function("""([selector, before]) => {
        const now = [...document.querySelectorAll(selector)].map(e => e.getAttribute('src'))
        return now.length && !now.some(source => before.includes(source)) }""", arg=[selector, before])


def wait_until_gone(page, selector: str) -> None:
    """Wait until nothing on a page matches a selector."""
    from playwright.sync_api import expect
    expect(page.locator(selector)).to_have_count(0, timeout=PATIENCE_MS)


def press(page, name: str) -> None:
    """Press a button, and wait until its work is done."""
    page.get_by_role("button", name=name, exact=True).click()
    time.sleep(0.3)
    page.wait_for_function("""() => [...document.querySelectorAll('button')]
        .filter(button => button.innerText.trim() === 'Stop').every(button => button.disabled)""")


SEEN = """() => {
    const page = document.querySelector('.swb-page'), place = e => e.getBoundingClientRect()
    const shown = [...page.querySelectorAll('img[src^="data:image"]')].filter(e => place(e).height)
    const inputs = [...page.querySelectorAll('select, input, .widget-slider, .widget-button')]
        .filter(e => place(e).width)
    const cut = inputs.filter(e => place(e).right > place(page).right + 1).map(e => e.ariaLabel || e.innerText)
    const unfolded = [...page.querySelectorAll('.swb-scroll')].filter(e => !e.closest('details:not([open])'))
    const wide = unfolded.filter(e => e.scrollWidth > e.clientWidth + 1)
    const panel = place(page.closest('.jp-WindowedPanel-outer, .jp-Notebook'))
    return {top: shown.length ? place(shown[0]).top : null, end: panel.bottom, scrolled: place(page).top < panel.top,
            overflow: page.scrollWidth - page.clientWidth, cut,
            wide: wide.map(e => (e.innerText || e.querySelector('img').alt).slice(0, 40)
                + ` ${e.scrollWidth} > ${e.clientWidth}`)}}"""


def check_first_screen(notebook: Notebook, room: int = 150, may_scroll: bool = False, height: int = 2400) -> None:
    """Check that controls and picture are on the first screen, alone and beside the file browser, and nothing is cut.

    The first `room` pixels of the first picture must be visible without scrolling; `may_scroll` allows tables and
    figures that scroll sideways. The window then has a width of 1,280 and a height of `height` pixels."""
    for width, browser in ((1280, False), (1000, True)):
        notebook.page.set_viewport_size({"width": width, "height": 900})
        if notebook.page.locator("#jp-left-stack").is_visible() != browser:
            notebook.command("application:toggle-left-area")
        notebook.page.wait_for_timeout(500)   # until JupyterLab has laid the window out
        seen = notebook.page.evaluate(SEEN)
        notebook.screenshot(f"{Path(notebook.name).stem}-{width}")
        assert not seen["scrolled"] and seen["top"] + room <= seen["end"], f"{notebook.name} at {width}: {seen}"
        assert seen["overflow"] <= 1 and not seen["cut"], f"{notebook.name} at {width}: {seen}"
        assert may_scroll or not seen["wide"], f"{notebook.name} at {width}: {seen}"
    notebook.command("application:toggle-left-area")
    notebook.page.set_viewport_size({"width": 1280, "height": height})


def check_export(notebook: Notebook) -> None:
    """Check that the HTML export shows an image and a player of some size without network or kernel."""
    page = notebook.exported()
    static_copy = page.locator("div[class^=swb-static]")
    for kind in ("img", "audio"):
        box = static_copy.locator(kind).first.bounding_box()
        assert box and box["width"] > 100 and box["height"] > 20, f"{notebook.name}: no {kind} in the export"
    page.close()
