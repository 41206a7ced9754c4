"""Build the package: metadata comes from settings.ini; the files that a wheel holds beside modules are listed here."""
import re
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
          "nbs/**/*.ipynb", "nbs/experiments/*.toml", "nbs/*.json", "nbs/images/*"]


CLASSIFIERS = [
    "Development Status :: 3 - Alpha",
    "Framework :: Jupyter",
    "Intended Audience :: Science/Research",
    "Natural Language :: English",
    "Programming Language :: Python :: 3 :: Only",
    *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)),
    "Topic :: Multimedia :: Sound/Audio :: Analysis",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
]


def readme() -> str:
    """The README with links and pictures that lead to the repository, since a registry has no files beside it."""
    def lead(match):
        kind = "raw" if match[1].startswith("!") else "blob"
        return f"{match[1]}({cfg['git_url']}/{kind}/{cfg['branch']}/{match[2]})"
    return re.sub(r"(!\[[^\]]*\]|\])\((?![a-z]+:|#)([^)\s]+)\)", lead, (here / "README.md").read_text(encoding="utf-8"))


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
    long_description=readme(),
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"].split(),
    author=cfg["author"],
    license_expression="Apache-2.0 AND CC0-1.0",    # code and notebooks; audio and checkpoints in data/
    classifiers=CLASSIFIERS,
    project_urls={"Documentation": cfg["doc_host"] + cfg["doc_baseurl"], "Source": cfg["git_url"],
                  "Changelog": f"{cfg['git_url']}/blob/{cfg['branch']}/CHANGELOG.md"},
    packages=find_packages(include=["sashimi_wb", "sashimi_wb.*"]),
    cmdclass={"build_py": BuildWithShared},
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={"dev": cfg["dev_requirements"].split(), "cluster": cfg["cluster_requirements"].split()},
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    zip_safe=False,
)
