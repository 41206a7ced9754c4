"""Check a built site: links and sizes from its files; in a browser players, pictures, widths and requests."""
import hashlib
import json
import sys
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "tests"))
from browser import FLAGS, chromium, missing

from sashimi_wb.core.system import write_atomic

SITE_MB, PAGE_MB = 120, 5      # largest sizes


class _Page(HTMLParser):
    "The links of a page, the files it loads, those of them that are sounds or pictures, and its anchors."
    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.media, self.anchors = [], [], set(), {""}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[k] for k in ("id", "name") if found.get(k)}
        if tag == "a" and found.get("href"): self.links.append(found["href"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon"): self.loads.append(found["href"])
        if tag in ("script", "img", "audio", "source", "video", "iframe") and found.get("src"):
            self.loads.append(found["src"])
            if tag != "script": self.media.add(found["src"])


def html_pages(site: Path) -> list[Path]:
    """The pages of a site."""
    return sorted(p for p in site.rglob("*.html") if "_static" not in p.parts)


def size_mb(files: Iterable[Path]) -> float:
    """The size of files in MB."""
    return sum(p.stat().st_size for p in files if p.is_file()) / 1e6


def summary(site: Path) -> str:
    """The number of pages of a site, and its size."""
    return f"{len(html_pages(site))} pages, {size_mb(p for p in site.rglob('*') if '.doctrees' not in p.parts):.0f} MB"


def page_mb(path: Path, media: set[str]) -> float:
    """The size of a page with the sounds and pictures that it loads, in MB."""
    return size_mb([path, *(path.parent / unquote(m) for m in media if not m.startswith("data:"))])


def check_files(site: Path) -> list[str]:
    """Links and files that are missing, things loaded from a network, and what is too large, one line each."""
    wrong, pages = [], {p: _Page(p.read_text(encoding="utf-8")) for p in html_pages(site)}
    for path, page in pages.items():
        name = path.relative_to(site)
        size = page_mb(path, page.media)
        for link in [*page.loads, *page.links]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loads and parts.scheme != "data": wrong.append(f"{name}: loads {link[:100]}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file(): wrong.append(f"{name}: {link} leads nowhere")
            elif parts.fragment and link in page.links and target in pages:
                if unquote(parts.fragment) not in pages[target].anchors: wrong.append(f"{name}: no anchor {link}")
        if size > PAGE_MB: wrong.append(f"{name}: {size:.1f} MB with sounds and pictures, more than {PAGE_MB}")
    total = size_mb(p for p in site.rglob("*") if ".doctrees" not in p.parts)
    return wrong + ([f"the site has {total:.0f} MB, more than {SITE_MB}"] if total > SITE_MB else [])


SEEN = """() => {
    const shown = e => e.getClientRects().length && !e.closest('details:not([open])')
    const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth
    const pictures = [...document.querySelectorAll('main img, article img')].filter(shown)
    const outside = wide > 0 && [...document.querySelectorAll('article *')].filter(
        e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    return {wide, widest: outside ? outside.slice(0, 3).map(e => e.tagName + '.' + e.className) : [],
            broken: pictures.filter(e => e.complete && !e.naturalWidth).map(e => e.src.slice(-60)),
            unset: [...document.querySelectorAll('mjx-merror')].map(e => e.innerText)}}"""

PLAY = """async () => {
    const wrong = []
    for (const player of document.querySelectorAll('audio')) {
        for (let e = player.closest('details'); e; e = e.parentElement.closest('details')) e.open = true
        player.muted = true
        player.preload = 'auto'
        try {
            await player.play()
            const end = Date.now() + 5000
            while (!(player.currentTime > 0) && Date.now() < end) await new Promise(done => setTimeout(done, 20))
        } catch (e) { wrong.push('a player fails: ' + e) }
        if (!(player.duration > 0)) wrong.push('a player has the duration ' + player.duration)
        if (!(player.currentTime > 0)) wrong.push('a player stands still')
        player.pause()
    }
    return {wrong, players: document.querySelectorAll('audio').length}}"""


def check_page(context, site: Path, path: Path, play: bool = True) -> tuple[list[str], int]:
    """What is wrong with a page at the width and in the theme of a browser context, and the number of its players."""
    page, name, wrong = context.new_page(), path.relative_to(site), []
    page.on("console", lambda m: wrong.append(f"{name}: console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda e: wrong.append(f"{name}: {e}"))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:"))
            else wrong.append(f"{name}: asks the network for {r.url}"))
    try:
        page.goto(path.as_uri(), wait_until="load")
        page.evaluate("() => window.MathJax?.startup?.promise?.then(() => null)")
        page.evaluate("() => document.querySelectorAll('img').forEach(e => { e.loading = 'eager' })")
        page.wait_for_function("() => [...document.images].every(e => e.complete)")
        seen = page.evaluate(SEEN)
        if seen["wide"] > 0: wrong.append(f"{name}: {seen['wide']} pixels wider than the window: {seen['widest']}")
        wrong += [f"{name}: no picture {source}" for source in seen["broken"]]
        wrong += [f"{name}: formula: {text}" for text in seen["unset"]]
        played = page.evaluate(PLAY) if play else {"wrong": [], "players": 0}
        return wrong + [f"{name}: {text}" for text in played["wrong"]], played["players"]
    finally: page.close()


def check_changed(site: Path, record: Path) -> list[str]:
    """Look in a browser at the pages that have changed since nothing was wrong with them, as the file `record` says."""
    style = b"".join(p.read_bytes() for p in sorted(site.glob("_static/*.css")))
    hashes = {p.relative_to(site).as_posix(): hashlib.sha256(style + p.read_bytes()).hexdigest()
              for p in html_pages(site)}
    good = json.loads(record.read_text()) if record.exists() else {}
    changed = [name for name, value in hashes.items() if good.get(name) != value]
    wrong = check_in_browser(site, [site / name for name in changed]) if changed else []
    bad = {text.split(": ")[0] for text in wrong}
    write_atomic(record, json.dumps({name: value for name, value in hashes.items() if name not in bad}))
    return wrong


def check_in_browser(site: Path, pages: list[Path]) -> list[str]:
    """Look at pages in Chromium without a network, on a desktop in light and on a phone in dark colors."""
    if why := missing(): return [why]
    from playwright.sync_api import sync_playwright
    wrong, players = [], 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=[*FLAGS, "--no-sandbox"])
        for width, colors in ((1280, "light"), (400, "dark")):
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=colors, offline=True)
            for path in pages:
                found, number = check_page(context, site, path, play=colors == "light")
                wrong += [f"{text} ({width} px, {colors})" for text in found]
                players += number
            context.close()
        browser.close()
    print(f"looked at {len(pages)} pages in a browser, played {players} players")
    return wrong
