"""Build the package: metadata comes from settings.ini; the files that a wheel holds beside modules are listed here."""
from configparser import ConfigParser
from pathlib import Path
from shutil import copyfile, rmtree

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

# Files that the commands and pages of an installed package need; `core.system.bundled` finds them.
SHARED = ["data/README.md", "data/music/*.flac", "data/digits/*.flac", "data/checkpoints/*",
          "nbs/**/*.ipynb", "nbs/*.json", "nbs/images/*.png"]


class BuildWithShared(build_py):
    """Build the modules, and copy the shared files of a clone into `sashimi_wb/_share`.

    An editable install copies nothing: it uses the files of the clone."""

    def run(self):
        if not self.editable_mode:    # an earlier build may have left files
            rmtree(Path(self.build_lib) / "sashimi_wb", ignore_errors=True)
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
