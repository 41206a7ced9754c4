"""One JupyterLab for all pages, on copies of the notebooks in a temporary folder."""
import pytest
from made_models import save_model

from browser import ROOT, Lab, copy_notebook, missing


@pytest.fixture(scope="package")
def lab(tmp_path_factory):
    """A server, and untrained models to choose from; skips where there is no browser."""
    if why := missing(): pytest.skip(why)
    folder = tmp_path_factory.mktemp("lab")
    for name, changes in (("a", {}), ("b", {"bits": 16, "head": "dml"})):
        save_model(folder / "runs" / name / "model.safetensors", **changes)
    for source in (ROOT / "nbs/explore").glob("*.ipynb"):
        copy_notebook(source, folder / source.name, {"runs": str(folder / "runs")})
    with Lab(folder) as lab: yield lab
