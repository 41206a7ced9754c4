"""Exported modules import only those that the module map allows; nbdev itself exports a cycle without complaint."""
import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sashimi_wb"
MODULES = sorted(p.stem for p in PACKAGE.glob("*.py") if p.stem not in ("__init__", "_modidx"))

# The module map: a module and what it may import. Every module may import core, which passes on the checks, and checks.
# `sashimi`, `model` and `interop` name `ssm` as well, for KernelConfig, of which other configurations are composed.
# Where one number has several notebooks they are an idea split in parts: `files` and `data`, `recipe`, `lit` and `trainer`.
EVERYTHING = "everything with a lower number"
MAP = {
    "checks": "",
    "core": "",
    "portable": "",
    "checkpoints": "",
    "locks": "",
    "children": "",
    "players": "",
    "in_step": "players",
    "visualise": "",
    "charts": "visualise",
    "widgets": "players",
    "live": "widgets",
    "quantization": "portable",
    "interleave": "",
    "layout_views": "interleave quantization visualise",
    "byte_tokens": "quantization",
    "folders": "",
    "lists": "",
    "resampling": "",
    "containers": "",
    "ffmpeg": "containers",
    "files": "folders resampling containers ffmpeg quantization",
    "writing": "quantization",
    "sounds": "files widgets",
    "index": "files",
    "account": "files",
    "datasets": "files folders index lists",
    "sampling": "",
    "data": "quantization interleave byte_tokens files index account datasets sampling",
    "encoders": "",
    "hippo": "",
    "kernels": "",
    "cauchy": "kernels",
    "vandermonde": "kernels cauchy",
    "convolution": "",
    "ssm": "hippo kernels cauchy vandermonde",
    "s4": "kernels convolution ssm",
    "state_space": "hippo kernels cauchy vandermonde ssm s4",
    "state_space_pictures": "visualise",
    "sashimi": "ssm s4",
    "sequence_decoder": "",
    "cross_entropy": "",
    "mixtures": "",
    "decoders": "quantization byte_tokens sequence_decoder cross_entropy mixtures",
    "model": "byte_tokens ssm encoders sashimi decoders",
    "metrics": "",
    "quantized": "charts metrics quantization visualise",
    "baselines": "",
    "evaluation": "interleave byte_tokens data metrics",
    "recipe": "",
    "lit": "checkpoints metrics evaluation recipe",
    "trainer": "checkpoints children locks metrics evaluation recipe lit",
    "stepping": "core quantization byte_tokens model",
    "lanes": "",
    "draws": "portable lanes",
    "compiled": "lanes draws",
    "engine": "core quantization byte_tokens model lanes compiled stepping",
    "generation": "quantization interleave byte_tokens model stepping engine",
    "compression": "quantization interleave byte_tokens model",
    "experiments": "data ssm model recipe sashimi",
    "runs": EVERYTHING,
    "batch": "children experiments locks runs",
    "results": "experiments metrics players",
    "report": "charts in_step interleave layout_views players quantization quantized results visualise",
    "trained": "checkpoints experiments files generation model quantization runs",
    "takes": "players trained visualise",
    "training_worker": "children experiments lit players runs trainer",
    "live_training": "batch charts players runs visualise",
    "activations": "data decoders experiments files interleave model quantization resampling s4 sounds trained",
    "stage_pictures": "charts players visualise",
    "run_table": "experiments files players results runs trained visualise",
    "run_views": "batch charts experiments players report results run_table runs visualise widgets",
    "explore_quantization": "charts in_step live players quantization quantized sounds visualise widgets",
    "explore_layouts": "charts in_step interleave layout_views live players quantization sounds visualise widgets",
    "explore_state_space": "live players sounds ssm state_space state_space_pictures widgets",
    "explore_forward_pass": "activations decoders encoders experiments live players quantization sequence_decoder sounds stage_pictures trained widgets",
    "explore_training": "experiments live live_training players runs widgets",
    "explore_generation": "players sounds takes trained widgets",
    "explore_runs": "live players run_table run_views widgets",
    "interop": "hippo kernels ssm s4 sashimi model",
    "cli": EVERYTHING,
}


def allowed(module: str) -> set[str]:
    """The modules that one module may import."""
    before = list(MAP)[: list(MAP).index(module)]
    if MAP[module] == EVERYTHING: return set(before)
    return set(MAP[module].split()) | ({"checks", "core"} & set(before))


def own_imports(source: str) -> set[str]:
    """Modules of this package that a source imports, at the top or inside a function, relative or by full name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.ImportFrom):
            full = ".".join(filter(None, ["sashimi_wb" if node.level else "", node.module]))
            names = [f"{full}.{a.name}" for a in node.names] if full == "sashimi_wb" else [full]
        elif isinstance(node, ast.Import): names = [a.name for a in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("sashimi_wb.")}
    return found - {"__version__"}


def test_parser_sees_every_form():
    source = "from .a import x\nfrom . import b\nimport sashimi_wb.c\nfrom sashimi_wb.d import y\n" \
             "def f():\n    from sashimi_wb import e, __version__\nimport torch\nfrom torch import nn"
    assert own_imports(source) == {"a", "b", "c", "d", "e"}


def test_map_has_no_cycle():
    assert list(TopologicalSorter({m: allowed(m) for m in MAP}).static_order())
    later = {m: [x for x in allowed(m) if list(MAP).index(x) >= list(MAP).index(m)] for m in MAP}
    assert not any(later.values()), f"listed below a module that imports them: {later}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_map(module):
    assert module in MAP, f"{module} is not in the module map: add a row to MAP in {Path(__file__).name}, with what it may import"
    extra = own_imports((PACKAGE / f"{module}.py").read_text(encoding="utf-8")) - allowed(module)
    assert not extra, f"{module} may import {sorted(allowed(module))}, not {sorted(extra)}"


@pytest.mark.parametrize("module", MODULES)
def test_notebook_is_named_for_its_module(module):
    source = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    assert f"_{module}.ipynb" in source.split("\n# %%")[0], f"{module} should come from nbs/NN_{module}.ipynb"


def test_numbers_follow_the_map():
    """The numbers of the notebooks are the import order."""
    number = {p.stem.split("_", 1)[1]: p.stem.split("_", 1)[0] for p in (ROOT / "nbs").glob("[0-9]*_*.ipynb")}
    for module in MODULES:
        for other in own_imports((PACKAGE / f"{module}.py").read_text(encoding="utf-8")):
            if module in number and other in number:
                assert number[other] <= number[module], f"{number[module]}_{module} imports {number[other]}_{other}"
