"""Without compiled code everything works, only slower: no numba, no pykeops."""
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sashimi_wb.models.sashimi import SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.ssm.kernel_cauchy import cauchy, cauchy_nodes, cauchy_ref, keops_works
from sashimi_wb.ssm.learned import KernelConfig
from sashimi_wb.synthesis import engine
from sashimi_wb.synthesis.engine import make_engine
from sashimi_wb.synthesis.packing import Unsupported
from sashimi_wb.synthesis.stepping import Sampling, TracedStepper
from sashimi_wb.tokens.quantization import Quantizer

pytestmark = pytest.mark.slow


def model():
    torch.manual_seed(0)
    return WaveModel(ModelConfig(4, backbone=SaShiMiConfig(8, 1, (2,), kernel=KernelConfig("diag", 4)))).eval()


def engine_of(name): return make_engine(name, model(), 2, Sampling(seed=1), Quantizer(bits=4))


def lines(caplog): return [r.getMessage() for r in caplog.records if r.name == "sashimi_wb"]


@pytest.fixture
def anew(monkeypatch, caplog):
    """Forget what is known of numba and pykeops, as in a process that has just begun."""
    engine.load_compiled.cache_clear()
    keops_works.cache_clear()
    caplog.set_level(logging.INFO, "sashimi_wb")
    yield
    engine.load_compiled.cache_clear()
    keops_works.cache_clear()


class Broken:
    """A module of compiled functions that fails at its first call."""
    def __init__(self, error): self.error = error

    def run(self, **_): raise self.error


class Plain:
    """The module of compiled functions with numba switched off."""
    run = staticmethod(lambda **_: (-1, -1))


@pytest.mark.parametrize("found", [None, Broken(RuntimeError("LLVM cannot\nselect")),
                                   Broken(OSError(28, "No space left on device")), Plain()],
                         ids=("missing", "refused", "full", "disabled"))
def test_the_traced_engine_draws_the_same_and_the_log_has_the_reason(found, anew, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "sashimi_wb.synthesis.compiled_step", found)
    monkeypatch.delattr("sashimi_wb.synthesis.compiled_step", raising=False)
    if isinstance(found, Plain): monkeypatch.setattr("numba.config.DISABLE_JIT", 1)
    stepper = engine_of("auto")
    assert type(stepper) is TracedStepper
    assert torch.equal(stepper.draw(12), engine_of("plain").draw(12))
    assert len(lines(caplog)) == 1 and "which is slower: numba" in lines(caplog)[0] and "\n" not in lines(caplog)[0]
    with pytest.raises(Unsupported, match="numba"): engine_of("compiled")


@pytest.mark.parametrize("error", [RuntimeError("cannot\ntrace"), TypeError(), NotImplementedError("no tracer")])
def test_steps_that_cannot_be_traced_run_as_they_are(error, monkeypatch, caplog):
    def fail(*_, **__): raise error
    monkeypatch.setattr(torch.jit, "trace", fail)
    with caplog.at_level(logging.INFO, "sashimi_wb"): drawn = engine_of("traced").draw(12)
    assert torch.equal(drawn, engine_of("plain").draw(12))
    assert len(lines(caplog)) == 1 and type(error).__name__ in lines(caplog)[0]


def test_truncated_code_of_pykeops_does_not_end_the_process(anew, tmp_path, monkeypatch, caplog):
    library = next((Path(torch.__file__).parent/"lib").glob("libtorch_python*")).read_bytes()
    (tmp_path/"name").mkdir()
    (tmp_path/"name"/"cut.so").write_bytes(library[:20_000])
    monkeypatch.setenv("KEOPS_CACHE_FOLDER", str(tmp_path))
    v, w, nodes = torch.ones(1, 1, 2, dtype=torch.complex64), torch.tensor([[-1 + 1j, -2 + 0j]]), cauchy_nodes(8)
    for _ in range(2): torch.testing.assert_close(cauchy(v, nodes, w, "keops"), cauchy_ref(v, nodes, w))
    assert len(lines(caplog)) == 1 and "cut.so is damaged" in lines(caplog)[0]


def test_a_process_with_numba_switched_off():
    code = """
import logging; logging.basicConfig(level=logging.INFO, format="LOG %(name)s %(message)s")
import sys; sys.path.insert(0, "tests/synthesis")
from test_without_compiler import engine_of
print(type(engine_of("auto")).__name__, engine_of("auto").draw(6).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
                          capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert done.returncode == 0 and "TracedStepper torch.Size([2, 6])" in done.stdout, done.stderr
    assert "NUMBA_DISABLE_JIT" in done.stderr
