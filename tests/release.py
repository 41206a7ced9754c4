"""Build the source distribution and the wheel, check them, install the wheel and use it: `make release-check`.

Everything lies in a temporary folder. The new environment contains the wheel alone and finds its dependencies in the
development environment, so this proves that the wheel is complete, not that pip can fetch its requirements. pip fetches
twine only. `test_wheel.py` does the checks that need no network and no compiled functions.
"""
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import venv
import zipfile
from configparser import ConfigParser
from pathlib import Path

from packaging.metadata import Metadata

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 25e6                              # bytes of a wheel or a source distribution
# folders of a clone that no distribution needs
LEFT_OUT = (".git", ".venv*", "runs", "build", "dist", "*.egg-info", "__pycache__", "tests", "lightning_logs", "docs")
SHARED = ("data/README.md", "data/music/*.flac", "data/digits/*.flac", "data/checkpoints/*", "nbs/**/*.ipynb",
          "nbs/experiments/*.toml", "nbs/*.json", "nbs/images/*")     # what a wheel contains beside modules
PLACEHOLDER = "example.org"


def call(*words, timeout: float = 300, **options) -> str:
    """What a command prints. Raises: AssertionError with its end, if it fails."""
    done = subprocess.run([str(w) for w in words], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=timeout, **options)
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def build(top: Path) -> tuple[Path, Path]:
    """A source distribution of a copy of this clone, and the wheel that is built from it, both in `top`."""
    shutil.copytree(ROOT, top/"clone", ignore=shutil.ignore_patterns(*LEFT_OUT))
    (top/"clone/nbs/.ipynb_checkpoints").mkdir()                        # what a working clone may hold
    (top/"clone/nbs/.ipynb_checkpoints/start-checkpoint.ipynb").write_text("{}")
    call(sys.executable, "setup.py", "-q", "sdist", "-d", top, cwd=top/"clone")
    source, = top.glob("*.tar.gz")
    call(sys.executable, "-m", "pip", "wheel", source, "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w",
         top)
    return source, next(top.glob("*.whl"))


def names_in(archive: Path) -> set[str]:
    """The files of a wheel, or of a source distribution without its top folder."""
    if archive.suffix == ".whl": return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as tar:
        return {m.name.partition("/")[2] for m in tar.getmembers() if m.isfile()}


def files_of(*kinds: str) -> set[str]:
    """Visible files of this clone by patterns."""
    found = {p.relative_to(ROOT) for kind in kinds for p in ROOT.glob(kind) if p.is_file()}
    return {p.as_posix() for p in found if not any(part[0] == "." or part == "__pycache__" for part in p.parts)}


def check_wheel(wheel: Path) -> None:
    """A wheel holds the modules and the shared files, no more, and is small."""
    names = {name for name in names_in(wheel) if not name.split("/")[0].endswith(".dist-info")}
    shared = {name.removeprefix("sashimi_wb/_share/") for name in names}
    _same(shared, files_of("sashimi_wb/**/*.py", *SHARED), wheel)


def check_source(source: Path) -> None:
    """A source distribution holds what a wheel is built from, with its texts, no more, and is small."""
    names = {name for name in names_in(source) if ".egg-info/" not in name} - {"PKG-INFO", "setup.cfg"}
    texts = ("README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "NOTICE", "MANIFEST.in",
             "settings.ini", "constraints.txt", "setup.py", "pyproject.toml")
    _same(names, files_of("sashimi_wb/**/*.py", "data/**/*", "nbs/**/*", *texts), source)


def _same(found, wanted, archive):
    "Raise an error that names files too many or too few, or a size over the limit."
    assert found == wanted, f"{archive.name}: too many {sorted(found - wanted)}, missing {sorted(wanted - found)}"
    assert archive.stat().st_size < LARGEST, f"{archive.name}: {archive.stat().st_size:,} bytes"


def metadata(wheel: Path) -> bytes:
    """What a registry reads from a wheel."""
    name, = (name for name in names_in(wheel) if name.endswith(".dist-info/METADATA"))
    return zipfile.ZipFile(wheel).read(name)


def settings() -> dict[str, str]:
    """The project's settings."""
    config = ConfigParser(delimiters=["="])
    config.read(ROOT/"settings.ini", encoding="utf-8")
    return dict(config["DEFAULT"])


def check_metadata(wheel: Path) -> None:
    """The metadata follow the standard; name, version, licence, links, and a description that shows alone are there."""
    found, cfg = Metadata.from_email(metadata(wheel), validate=True), settings()
    assert (found.name, str(found.version), str(found.requires_python)) == \
        (cfg["lib_name"], cfg["version"], f">={cfg['min_python']}")
    assert found.license_expression and {"LICENSE", "NOTICE"} <= set(found.license_files)
    assert {"Documentation", "Source", "Changelog"} <= set(found.project_urls) and found.classifiers and found.keywords
    relative = re.findall(r"\]\((?!https?:|#)[^)]*\)", found.description)
    assert not relative, f"the long description has links that lead nowhere on a registry: {relative}"


def check_by_twine(top: Path, *archives: Path) -> None:
    """Twine, which pip fetches into an environment of its own, accepts the archives."""
    venv.create(top, with_pip=True, symlinks=os.name != "nt")
    python = Path(sysconfig.get_path("scripts", vars={"base": str(top)}))/"python"
    call(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "twine")
    call(python, "-m", "twine", "check", "--strict", *archives)


class Installed:
    """The scripts of a new environment with a wheel, called in an empty folder inside another project's repository."""

    def __init__(self, wheel: Path, top: Path, **environment: str):
        for folder in ("home", "work"): (top/folder).mkdir(parents=True)
        self.work = top/"work"
        (self.work/"sashimi_wb.py").write_text("raise SystemExit('a module of the current folder was imported')")
        keep = ("PATH", "LANG", "SYSTEMROOT", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        self.env = {k: os.environ[k] for k in keep if k in os.environ} | {"HOME": str(top/"home")} | environment
        venv.create(top/"env", with_pip=False, symlinks=os.name != "nt")
        paths = sysconfig.get_paths(vars={"base": str(top/"env"), "platbase": str(top/"env")})
        self.scripts, site = Path(paths["scripts"]), Path(paths["purelib"])
        self.package = site/"sashimi_wb"
        call(sys.executable, "-m", "pip", "--python", self.scripts/"python", "install", "--no-deps", "--no-index", "-q",
             wheel, env=self.env)
        others = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
        # the development environment's packages, without its editable install, which is not a folder
        (site/"dependencies.pth").write_text("\n".join(others))
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        call("git", "init", "-q", top)
        call("git", "-C", top, *identity, "commit", "-q", "--allow-empty", "-m", "of another project")

    def __call__(self, script: str, *words) -> str:
        """What a script of the environment prints."""
        return call(self.scripts/script, *words, cwd=self.work, env=self.env, timeout=900)

    def places(self) -> dict[str, str]:
        """What `sashimi-wb where` prints, by name."""
        return dict(line.split(": ", 1) for line in self("sashimi-wb", "where").splitlines())


def use(installed: Installed) -> None:
    """Import the package, list presets, and compress a file and get it back, as a new user would."""
    version = installed("python", "-P", "-c", "import sashimi_wb; print(sashimi_wb.__version__, sashimi_wb.__file__)")
    assert version.split() == [settings()["version"], str(installed.package/"__init__.py")], version
    assert "small" in installed("sashimi-wb", "presets")
    digits = Path(installed.places()["digits"])
    program = """if True:
        import sys, soundfile
        soundfile.write(sys.argv[2], soundfile.read(sys.argv[1], dtype="int16")[0], 16000, "PCM_16")"""
    installed("python", "-P", "-c", program, next(iter(sorted(digits.glob("*.flac")))), "it.wav")
    installed("sashimi-wb", "compress", "it.wav", "it.swb")
    installed("sashimi-wb", "decompress", "it.swb", "back.wav")
    sizes = [(installed.work/name).stat().st_size for name in ("it.wav", "it.swb")]
    assert (installed.work/"it.wav").read_bytes() == (installed.work/"back.wav").read_bytes()
    assert sizes[1] < sizes[0]


def main() -> None:
    """Do all of it, and say what was done."""
    start = time.monotonic()
    def say(text): print(f"{time.monotonic() - start:5.0f} s  {text}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        source, wheel = build(top)
        say("built " + " and ".join(f"{p.name} ({p.stat().st_size/1e6:.1f} MB)" for p in (source, wheel)))
        check_source(source)
        check_wheel(wheel)
        say(f"{len(names_in(source))} and {len(names_in(wheel))} files: those that belong there, no others")
        check_metadata(wheel)
        check_by_twine(top/"twine", source, wheel)
        say("metadata are complete, and twine accepts them")
        installed = Installed(wheel, top/"away")
        say("installed the wheel in a new environment, beside the dependencies of the development environment")
        use(installed)
        say("the installed package imports, lists presets, and compresses a file that comes back byte for byte")
        if PLACEHOLDER.encode() in metadata(wheel):
            say(f"before an upload: set git_url and doc_host in settings.ini, which still name {PLACEHOLDER}")


if __name__ == "__main__": main()
