"""Compiled functions on disk: outdated or damaged code is never used, and a problem with the files only costs time."""
import importlib.util
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from numba.core.errors import NumbaError

from sashimi_wb.core import compiled, sources
from sashimi_wb.core.compiled import jit
from sashimi_wb.core.system import package_folder

SOURCE = """
from sashimi_wb.core.compiled import jit

@jit
def inner(x): return x.sum()

@jit
def outer(x): return 2*inner(x)
"""


def lines(caplog): return [r.getMessage() for r in caplog.records if r.name == "sashimi_wb"]


@pytest.fixture
def kept(tmp_path, monkeypatch, caplog):
    """A function that loads a module of two compiled functions anew, as if it were one of the package; returns a result
    and the number of cache hits."""
    monkeypatch.setattr(compiled, "_reported", [])
    monkeypatch.setattr(compiled, "code_sources", lambda *names: dict.fromkeys(names, SOURCE))
    caplog.set_level(logging.INFO, "sashimi_wb")
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path/"code"))
    (tmp_path/"small.py").write_text(SOURCE)
    def load():
        spec = importlib.util.spec_from_file_location("sashimi_wb.small", tmp_path/"small.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = module.outer(np.arange(16.0))
        return found, sum(module.outer.whole.stats.cache_hits.values())
    load.folder = tmp_path/"code"
    return load


def cut(path): path.write_bytes(path.read_bytes()[:-9])
def empty(path): path.write_bytes(b"")
def flip(path):
    code = bytearray(path.read_bytes())
    code[len(code)*2//3] ^= 16
    path.write_bytes(code)
def text(path): path.write_text("damaged\n")


@pytest.mark.slow
@pytest.mark.parametrize("damage", (cut, empty, flip, text))
@pytest.mark.parametrize("suffix", ("nbi", "nbc"))
def test_damaged_code_is_compiled_again_and_replaced(suffix, damage, kept, caplog, monkeypatch):
    assert kept() == (240, 0) and kept() == (240, 1) and not lines(caplog)
    files = sorted(kept.folder.rglob(f"*.{suffix}"))
    assert len(files) == 1                # `inner` is a part of `outer`
    for path in files: damage(path)
    assert kept() == (240, 0)
    assert len(lines(caplog)) == 1 and "cannot be read and is compiled again" in lines(caplog)[0]
    assert "is damaged" in lines(caplog)[0]
    monkeypatch.setattr(compiled, "_reported", [])
    assert kept() == (240, 1) and len(lines(caplog)) == 1  # the damaged files were replaced


@pytest.mark.slow
def test_without_a_folder_for_code_there_is_one_line_in_the_log(kept, caplog, monkeypatch):
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    for _ in range(2): assert kept() == (240, 0)
    assert len(lines(caplog)) == 1 and "no locator available" in lines(caplog)[0]


@pytest.mark.slow
def test_a_full_disk_gives_one_line_in_the_log(kept, caplog, monkeypatch):
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile._save_data", full)
    assert kept() == (240, 0)
    assert len(lines(caplog)) == 1 and "cannot be stored" in lines(caplog)[0] and "No space left" in lines(caplog)[0]


@jit
def halved(x):
    if x < 0: raise ValueError("expected no negative number")
    return x/2


@jit
def factorial(n): return 1 if n <= 1 else n*factorial(n - 1)


@jit
def of_three(): return factorial(3)


@jit
def added(x):
    total = 0.0
    for i in range(len(x)): total += halved(x[i]) + WEIGHTS[1]
    return total


WEIGHTS = np.array([1.0, 8.0])


def test_a_function_is_a_part_of_others_and_a_whole_for_python():
    assert added(np.array([4.0, 6.0])) == 21
    if not hasattr(added, "whole"): pytest.skip("numba is switched off")
    assert len(added.whole.signatures) == 1 and not halved.whole.signatures
    assert halved(3.0) == 1.5
    for f, x in ((added, np.array([1.0, -1.0])), (halved, -1.0)):
        with pytest.raises(ValueError, match="no negative"): f(x)


def test_a_function_that_calls_itself_is_refused():
    if not hasattr(of_three, "whole"): pytest.skip("numba is switched off")
    with pytest.raises(NumbaError, match="cannot call itself"): of_three()


@pytest.fixture
def edited(monkeypatch):
    """Returns a function: the fingerprint of a module, if another one had one more line."""
    def fingerprint(module, changed=None):
        def read(*starts): return {k: v + "\n"*(k == f"sashimi_wb.{changed}") for k, v in found(*starts).items()}
        found = sources.code_sources
        compiled._fingerprint.cache_clear()
        with monkeypatch.context() as m:
            m.setattr(compiled, "code_sources", read)
            return compiled._fingerprint(f"sashimi_wb.{module}")
    yield fingerprint
    compiled._fingerprint.cache_clear()


# functions that are called and constants that are read, directly or through another module
@pytest.mark.parametrize("changed", ["core.compiled", "tokens.portable", "models.mixtures", "core.simd",
                                     "synthesis.compiled_draws", "synthesis.packing", "synthesis.compiled_step"])
def test_code_is_outdated_if_anything_that_it_contains_has_changed(changed, edited):
    assert edited("synthesis.compiled_step", changed) != edited("synthesis.compiled_step")


def test_code_stays_valid_if_something_else_has_changed(edited):
    assert edited("synthesis.compiled_draws", "audio.windows") == edited("synthesis.compiled_draws")


def test_every_module_that_compiles_is_found():
    "The compiled functions of a module are stored under its own fingerprint, also if another module compiles them."
    from sashimi_wb.synthesis import compiled_draws, compiled_step
    if not hasattr(compiled_step.run, "py_func"): pytest.skip("numba is switched off")
    for function in (compiled_step.run, compiled_draws.exp):
        f = function.py_func
        assert f.__qualname__ == f"{f.__name__}_{compiled._fingerprint(f.__module__)}"


def test_a_missing_source_file_is_an_error():
    with pytest.raises(FileNotFoundError, match="no_such_module"):
        compiled._fingerprint("sashimi_wb.synthesis.no_such_module")


@pytest.mark.slow
def test_outside_the_package_a_function_calls_what_is_there_now(tmp_path):
    step = "from sashimi_wb.core.compiled import jit\n@jit\ndef step(x): return {}*x\n"
    (tmp_path/"program.py").write_text("from sashimi_wb.core.compiled import jit\nfrom steps import step\n"
                                       "@jit\ndef run(x): return step(x)\nprint(run(10.0))\n")
    for factor in (2, 3):
        (tmp_path/"steps.py").write_text(step.format(factor))
        env = os.environ | {"PYTHONPATH": str(package_folder().parent), "PYTHONDONTWRITEBYTECODE": "1"}
        shown = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, env=env, capture_output=True, text=True,
                               check=True)
        assert float(shown.stdout) == 10*factor
