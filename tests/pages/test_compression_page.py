"""The compression page on files of every depth, on models of every kind, and where something is wrong."""
import numpy as np
import pytest
import soundfile as sf
from made_models import save_model

from sashimi_wb.pages import compression_page
from sashimi_wb.pages.compression_page import (
    excerpt,
    explore_compression,
    model_bits,
    predictor_bits,
    proof_html,
    prove,
)
from sashimi_wb.pages.sound_picker import as_sound, read_sound
from sashimi_wb.studies.trained_models import load_model


def tone(n: int = 2000, c: int = 1) -> np.ndarray:
    """A tone with some noise (n, c)."""
    noise = np.random.Generator(np.random.PCG64(0)).uniform(-0.01, 0.01, (n, c))
    return 0.5*np.sin(np.arange(n)/7)[:, None] + noise


def answered(page):
    """The page after its answer."""
    page.begin()
    page.latest.wait(120)
    return page


@pytest.mark.parametrize("subtype, bits", [("PCM_U8", 8), ("PCM_16", 16), ("PCM_24", 24), ("FLOAT", 16)])
def test_every_depth(tmp_path, subtype, bits):
    sf.write(tmp_path/"a.wav", tone(c=2), 8000, subtype)
    x = excerpt(read_sound(tmp_path/"a.wav"))
    proof = prove(x)
    assert (x.bits, proof.n_bytes, proof.same) == (bits, 44 + 2*2000*bits//8, True)
    assert abs(8*proof.n_coded - predictor_bits(x).sum()) < 8*300


def test_a_file_that_comes_back_changed_is_said(monkeypatch):
    x = excerpt(as_sound(tone(), 8000))
    monkeypatch.setattr("sashimi_wb.coding.compression.decompress", lambda source, target, model: target.write(b"x"))
    proof = prove.__wrapped__(x)
    assert not proof.same and "came back changed" in proof_html(proof) and "alert" in proof_html(proof)


@pytest.mark.slow
def test_where_the_predictor_needs_fewer_bytes_the_page_says_so(tmp_path):
    save_model(tmp_path/"runs/a/model.safetensors", bits=16, head="dml", channels="mono")
    page = explore_compression(tone(), 8000, runs=tmp_path/"runs")
    page.by.value = page.by.options[-1][1]
    assert not answered(page).error.value
    assert "so it coded this" in page.parts["numbers"].value and "bytes → the same" in page.parts["proof"].value


def test_a_model_that_cannot_code_leaves_the_last_answer(tmp_path):
    trained = load_model(save_model(tmp_path/"runs/a/model.safetensors", scaling="clip_minmax", channels="mono"))
    with pytest.raises(ValueError, match="other samples in every clip"):
        model_bits(excerpt(as_sound(tone(), 8000), trained), trained)
    page = answered(explore_compression(tone(), 8000, runs=tmp_path/"runs"))
    proof = page.parts["proof"].value
    page.by.value = page.by.options[-1][1]
    page.latest.wait(120)
    assert "other samples in every clip" in page.error.value and page.parts["proof"].value == proof


def test_models_of_two_channels_are_not_offered(tmp_path):
    save_model(tmp_path/"runs/a/model.safetensors", channels="stereo")
    offered = compression_page.explore_compression(tone(), 8000, runs=tmp_path/"runs").by.options
    assert offered and not any("stereo" in name for name, _ in offered)
