"""Package metadata comes from settings.ini, the one place where it is written down; what else goes into a wheel is listed here."""
from configparser import ConfigParser
from pathlib import Path
from shutil import copyfile, rmtree

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

# What the commands and pages of an installed package need beside its modules; `core.system.bundled` finds it again.
SHARED = ["data/README.md", "data/music/*.flac", "data/digits/*.flac", "data/checkpoints/*", "nbs/**/*.ipynb", "nbs/*.json",
          "nbs/images/*.png"]


class BuildWithShared(build_py):
    """The modules, and in `sashimi_wb/_share` what stands beside the package in a clone; an editable install uses the clone."""

    def run(self):
        if not self.editable_mode: rmtree(Path(self.build_lib) / "sashimi_wb", ignore_errors=True)  # left by an earlier build
        super().run()
        if self.editable_mode: return
        for source in sorted(path for pattern in SHARED for path in here.glob(pattern)):
            if any(part.startswith(".") for part in source.relative_to(here).parts): continue
            target = Path(self.build_lib, "sashimi_wb", "_share", source.relative_to(here))
            target.parent.mkdir(parents=True, exist_ok=True)
            copyfile(source, target)


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8") if (here / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"],
    author=cfg["author"],
    license="Apache-2.0",
    packages=find_packages(include=["sashimi_wb", "sashimi_wb.*"]),
    cmdclass={"build_py": BuildWithShared},
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={"dev": cfg["dev_requirements"].split()},
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    zip_safe=False,
)
