"""Figures, players and tables: exact sound, escaped text, honest numbers, legible pictures."""
import base64
import io
import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.display import HTML

from sashimi_wb.show import charts, figures, players
from sashimi_wb.show.charts import (
    plot_bits,
    plot_codes,
    plot_curves,
    plot_histogram,
    plot_layout,
    plot_unet,
)
from sashimi_wb.show.figures import arm_color, arm_colors, figure_png, mel_sizes, plot_clips, plot_mel, plot_wave
from sashimi_wb.show.html import figure_html, mean_spread, table
from sashimi_wb.show.players import pcm16, player, player_row

RATE = 8_000
WAVE = 0.5 * np.sin(np.arange(RATE) * 0.2)[:, None] * np.array([1, 0.5])


# --- sound

def test_pcm16_is_exact_for_every_16_bit_value():
    k = np.arange(-32768, 32768)
    np.testing.assert_array_equal(pcm16(k / 32768)[:, 0], k)
    assert pcm16(np.array([1.0]))[0, 0] == 32767


@pytest.mark.parametrize("wave", [[1.0001], [-1.5], [np.nan], [np.inf]])
def test_wave_outside_the_range_is_an_error_that_names_the_sample(wave):
    with pytest.raises(ValueError, match="in \\[-1, 1\\], got .* at sample 1"):
        player(np.array([0.0, *wave]), RATE)


@pytest.mark.parametrize("wave, message", [
    (np.zeros(0), "t >= 1"),
    (np.zeros((2, 9)), "transposed"),
    (np.zeros((1, 2, 3)), "shape"),
    (np.zeros(4, np.int16), "divide integer PCM")])
def test_wrong_waves(wave, message):
    with pytest.raises(ValueError, match=message): player(wave, RATE)


@pytest.mark.parametrize("rate", [0, -8000, 2_999, 384_001, 8000.5, True])
def test_wrong_rates(rate):
    with pytest.raises(ValueError, match="sample rate"): player(WAVE, rate)


@pytest.mark.parametrize("n, channels, rate", itertools.product((1, 15, 5000), (1, 2), (3_000, 44_100)))
def test_player_holds_exactly_the_samples(n, channels, rate):
    wave = np.random.default_rng(n).uniform(-1, 1, (n, channels)).astype(np.float32)
    html = player(wave, rate, "a clip").data
    data = re.search(r'src="data:audio/wav;base64,([^"]+)"', html)[1]
    back, got_rate = soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="int16", always_2d=True)
    assert got_rate == rate
    np.testing.assert_array_equal(back, pcm16(wave))


def test_player_is_self_contained_labelled_and_silent_until_asked():
    html = player_row({"<b>&\"quoted\"": WAVE, "other": WAVE[:, 0]}, RATE).data
    assert html.count("<audio controls") == 2 and "autoplay" not in html and "http" not in html
    assert "<b>" not in html and 'aria-label="&lt;b&gt;&amp;&#34;quoted&#34;"' in html
    assert "1.00 s, 8,000 Hz, stereo" in html and "mono" in html
    with pytest.raises(ValueError, match="clip 'loud'"): player_row({"loud": WAVE * 3}, RATE)


def test_flac_is_smaller_and_unknown_encodings_are_refused():
    assert len(players.sound_bytes(WAVE, RATE)) < len(players.sound_bytes(WAVE, RATE, "wav"))
    with pytest.raises(ValueError, match="'flac' or 'wav', got 'mp3'"): players.sound_bytes(WAVE, RATE, "mp3")


# --- numbers

@pytest.mark.parametrize("values, text", [
    ([3.40, 3.42, 3.44], "3.420 ± 0.020 (n = 3)"),
    ([3.4123], "3.412 (n = 1)"),
    (3.4123, "3.412 (n = 1)"),
    ([2.0, 2.0], "2.000 ± 0.000 (n = 2)"),
    ([], "– (n = 0)"),
    ([np.nan], "– (n = 0, 1 not finite)"),
    ([None, 1.0], "1.000 (n = 1, 1 not finite)"),
    ([1000.0, 3000.0], "2,000 ± 1,414 (n = 2)"),
    ([1.0, 1.0 + 1e-9], "1.0000 ± <0.0001 (n = 2)")])
def test_mean_spread(values, text): assert mean_spread(values) == text


def test_table_ranks_means_marks_ties_and_shows_what_is_missing():
    html = table([{"arm": "a", "bits": [1.0, 3.0]}, {"arm": "b", "bits": 2.0}, {"arm": "c", "bits": float("nan")},
                  {"arm": "d"}],
                 best={"bits": "min"}).data
    assert html.count('class="n best"') == 2 and html.count(">–<") == 2
    assert "2.0 ± 1.4 (n = 2)" in html


def test_table_escapes_text_formats_numbers_and_keeps_html():
    html = table([{"x": "<script>", "n": 1234567, "f": 0.5, "ok": True, "h": HTML("<i>raw</i>")}], formats={"f": ".1%"},
                 caption="a & b").data
    assert "<script>" not in html and "1,234,567" in html and "50.0%" in html and ">yes<" in html
    assert "<i>raw</i>" in html
    assert "a &amp; b" in html and "overflow-x:auto" in html
    assert "<td class=\"n\">0x10<" in table([{"n": 16}], formats={"n": lambda n: hex(n)}).data


@pytest.mark.parametrize("arguments, message", [
    (dict(rows=[]), "at least one row"),
    (dict(rows=[{"a": 1}], columns={"b": "B"}), "'b'; the columns are a"),
    (dict(rows=[{"a": 1}], formats={"b": ".1f"}), "'b'"),
    (dict(rows=[{"a": 1}], best={"a": "least"}), "'min' or 'max'")])
def test_wrong_tables(arguments, message):
    with pytest.raises(ValueError, match=message): table(**arguments)


# --- colors

def _linear_rgb(color, matrix):
    rgb = np.array([int(color[i:i + 2], 16) / 255 for i in (1, 3, 5)])
    return matrix @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("arms", [
    ("codes", "dequantized", "raw"),
    ("left", "right", "mid", "side", "temporal", "blocking-16", "blocking-1024")])
def test_colors_of_compared_arms_are_distinct_for_color_blind_readers(arms):
    # matrices of Machado, Oliveira and Fernandes (2009)
    deutan = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                       [-0.011820, 0.042940, 0.968881]])
    protan = np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                       [-0.003882, -0.048116, 1.051998]])
    for matrix, (a, b) in itertools.product((np.eye(3), deutan, protan), itertools.combinations(arms, 2)):
        lightness = [np.cbrt(np.clip(_linear_rgb(arm_color(arm), matrix), 0, 1)) for arm in (a, b)]
        assert np.linalg.norm(lightness[0] - lightness[1]) > 0.1, (a, b)


def test_arm_colors_are_stable_and_visible_on_white():
    assert (arm_color("codes"), arm_color("raw"), arm_color("temporal")) == ("#0072B2", "#D55E00", "#000000")
    for name in ("blocking-1", "blocking-16", "blocking-65536"):
        assert 1.05 / (_linear_rgb(arm_color(name), np.eye(3)) @ [0.2126, 0.7152, 0.0722] + 0.05) > 1.9, name
    for name, color in arm_colors(f"arm {i}" for i in range(40)).items():
        assert re.fullmatch("#[0-9a-fA-F]{6}", color)
        assert 1.05 / (_linear_rgb(color, np.eye(3)) @ [0.2126, 0.7152, 0.0722] + 0.05) > 1.9, name


@pytest.mark.parametrize("arms", [
    [f"d_state {2**k}" for k in range(8)], ["mid", "mono"], ["sample_len 1024", "codes", "linear", "raw"],
    [*figures.ARM_COLORS, *(f"blocking-{2**k}" for k in range(17)), *(f"arm {i}" for i in range(40))]])
def test_no_two_arms_of_a_figure_share_a_color(arms):
    colors = arm_colors(arms)
    assert list(colors) == arms and len(set(colors.values())) == len(arms)
    assert all(colors[name] == arm_color(name) for name in arms if name in ("codes", "raw", "blocking-16"))


def test_the_curves_and_the_bits_of_an_arm_have_one_color():
    arms = ["d_state 16", "d_state 32"]
    curves = plot_curves({name: (np.arange(3), np.arange(3.0)) for name in arms})
    bits = plot_bits([{"arm": name, "bits": 1.0} for name in arms])
    drawn = [line.get_color() for line in curves.axes[0].lines], [line.get_color() for line in bits.axes[0].lines]
    assert drawn[0] == drawn[1] == list(arm_colors(arms).values())
    one = plot_curves({"d_state 32": (np.arange(3), np.arange(3.0))}, colors=arm_colors(arms))
    assert one.axes[0].lines[0].get_color() == arm_colors(arms)["d_state 32"]


# --- waveforms and spectrograms

@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 5000), bins=st.integers(1, 300), seed=st.integers(0, 99))
def test_envelope_keeps_the_peaks(n, bins, seed):
    x = np.random.default_rng(seed).standard_normal(n)
    at, low, high = figures.envelope(x, bins)
    assert (low.min(), high.max()) == (x.min(), x.max()) and (low <= high).all()
    assert len(at) <= max(bins, min(n, 2 * bins))


@pytest.mark.parametrize("rate", [2_000, 3_000, 4_000, 8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_no_mel_band_is_empty(rate):
    for n_samples in (64, 1000, rate, 100 * rate):
        n_fft, hop, n_mels = mel_sizes(rate, n_samples)
        assert n_fft <= n_samples and n_samples / hop <= 1501 and 1 <= n_mels <= 128
        assert (figures.mel_filters(rate, n_fft, n_mels).max(1) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_mel_power_equals_librosa(rate):
    librosa = pytest.importorskip("librosa")
    x = np.random.default_rng(0).standard_normal(9_001)
    n_fft, hop, n_mels = mel_sizes(rate, len(x))
    expected = librosa.feature.melspectrogram(y=x, sr=rate, n_fft=n_fft, hop_length=hop, n_mels=n_mels)
    got = figures.mel_power(x, rate)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-4)  # the bank is float32


# --- figures

def _texts(fig):
    "Bounding boxes in pixels of every visible text."
    fig.canvas.draw()
    found = [t for t in fig.findobj(lambda o: hasattr(o, "get_text")) if t.get_visible() and t.get_text().strip()]
    return [(t.get_text(), t.get_window_extent()) for t in found]


def _unet(n_pools, down_blocks, width=64, length=8192, name="8 blocks"):
    shape = lambda d: (1, length // 4 ** d, width * 2 ** d)
    row = lambda name, d, kind: dict(name=name, depth=d, kind=kind, shape=shape(d), params=2_900_000, bytes=84_000_000,
                                     ms=450.3)
    stages = [row("encoder", 0, "encoder")]
    for d in range(n_pools):
        stages += [row(name, d, "blocks")] * down_blocks + [row("down pool 4", d + 1, "down")]
    stages.append(row("center, 8 blocks", n_pools, "center"))
    for d in reversed(range(n_pools)): stages += [row("up pool 4", d, "up"), row(name, d, "blocks")]
    return [*stages, row("norm", 0, "norm"), row("head", 0, "head") | dict(shape=(1, length, 65536))]


@pytest.mark.parametrize("n_pools, down_blocks, length", [
    (0, 0, 64), (1, 0, 1024), (2, 0, 8192), (2, 1, 131072), (3, 1, 65536)])
def test_unet_is_legible(n_pools, down_blocks, length):
    fig = plot_unet(_unet(n_pools, down_blocks, length=length), "title:")
    texts, (width, height) = _texts(fig), fig.get_size_inches() * fig.dpi
    for text, box in texts: assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
    for (a, p), (b, q) in itertools.combinations(texts, 2): assert not p.overlaps(q), (a, b)
    assert sum("2,900,000" in text for text, _ in texts) == len(_unet(n_pools, down_blocks))


@pytest.mark.slow
def test_figures_draw_themselves_leave_their_input_alone_and_repeat():
    codes, levels = np.arange(200) % 16, np.arange(-8, 8) / 8
    wave = levels[codes] + 0.01
    before = wave.copy()
    draw = {"wave": lambda: plot_wave(WAVE, RATE), "mel": lambda: plot_mel(WAVE, RATE),
            "codes": lambda: plot_codes(wave, codes, levels, RATE),
            "clips": lambda: plot_clips({"one": WAVE, "two": WAVE[:, 0]}, RATE, {"two": 0.5}),
            "histogram": lambda: plot_histogram(codes, 1024),
            "layout": lambda: plot_layout({"temporal": np.arange(9)}), "unet": lambda: plot_unet(_unet(1, 0)),
            "curves": lambda: plot_curves({"a": [([0, 1], [1, np.nan]), ([0, 1], [2, 3])]}, {"FLAC": 1.0}),
            "bits": lambda: plot_bits([{"arm": "a", "bits": 2}])}
    for name, make in draw.items():
        fig = make()
        png, size = fig._repr_png_()
        assert png.startswith(b"\x89PNG") and fig.get_facecolor() == (1, 1, 1, 1), name
        assert figure_png(make(), 40) == figure_png(make(), 40), name
    np.testing.assert_array_equal(wave, before)
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_silence_one_sample_and_one_step_can_be_drawn():
    for fig in (plot_wave(np.zeros(1), RATE), plot_mel(np.zeros(RATE), RATE),
                plot_clips({"silence": np.zeros(64)}, RATE),
                plot_curves({"raw": ([5], [1.0])}), plot_histogram([0], 2)):
        assert figure_png(fig, 40)


def test_histogram_prints_the_entropy():
    text = lambda fig: " ".join(t for t, _ in _texts(fig))
    assert "order-0 entropy 2.000 of 8 bits" in text(plot_histogram(np.arange(100) % 4, 256))
    assert "order-0 entropy 0.000 of 16 bits" in text(plot_histogram(np.full(9, 65535), 65536))


def test_layout_numbers_and_colors_follow_the_order():
    fig = plot_layout({"blocking-2": [0, 2, 1, 3]})
    ax = fig.axes[0]
    assert [t.get_text() for t in ax.texts] == ["0", "1", "0", "1"]
    assert [tuple(np.round(p.get_facecolor()[:3], 2))
            for p in ax.patches[:1] + ax.patches[2:3]] == [(0.34, 0.71, 0.91), (0.9, 0.62, 0.0)]


def test_mean_curve_uses_only_the_common_range():
    runs = [(np.array([0.0, 10.0]), np.array([0.0, 10.0])), (np.array([5.0, 15.0]), np.array([7.0, 17.0]))]
    steps, values = charts.mean_curve(runs)
    assert (steps.tolist(), values.tolist()) == ([5, 10], [6, 11])
    assert len(charts.mean_curve([(np.array([0.0]), np.array([1.0])), (np.array([5.0]), np.array([1.0]))])[0]) == 0
    assert len(charts.mean_curve([(np.array([0.0]), np.array([np.nan]))])[0]) == 0


def test_figure_html_needs_an_alternative_text():
    fig = figures.new_figure(6, 1)
    assert 'alt="a &lt; b"' in figure_html(fig, "a < b").data and "max-width:576px" in figure_html(fig, "x").data
    with pytest.raises(ValueError, match="a sentence"): figure_html(fig, "")


@pytest.mark.parametrize("draw, message", [
    (lambda: plot_wave(np.zeros((3, 3)), RATE), "got \\(3, 3\\)"),
    (lambda: plot_wave([np.nan], RATE), "finite"),
    (lambda: plot_mel(np.zeros(63), RATE), "at least 64"),
    (lambda: plot_clips({"a": WAVE}, RATE, {"a": 1.5}), "within the 1.000 s"),
    (lambda: plot_histogram([-1], 4), "from -1"),
    (lambda: plot_histogram([1.0], 4), "integer"),
    (lambda: plot_layout({}), "layouts"),
    (lambda: plot_curves({"a": ([1, 1], [1, 2])}), "rising"),
    (lambda: plot_bits([{"arm": "a"}]), "finite bits"),
    (lambda: plot_unet([]), "at least one stage"),
    (lambda: plot_unet([dict(name="a", depth=0, kind="up", shape=(1, 0, 2))]), "shape \\(b, l, h\\)")])
def test_errors_of_wrong_input_name_what_was_expected(draw, message):
    with pytest.raises(ValueError, match=message): draw()


@pytest.mark.slow
def test_importing_the_figures_is_light():
    code = ("import sys, sashimi_wb.show.charts, sashimi_wb.show.players\n"
            "heavy = ('torch', 'librosa', 'matplotlib.pyplot', 'nbdev', 'fastcore')\n"
            "print([m for m in heavy if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=True).stdout.strip() == "[]"
