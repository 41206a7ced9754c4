"""sashimi_wb.audio.corpora: a small tree in the layout of every data set, and the errors for wrong layouts."""
import csv
import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_audio import write

from sashimi_wb.audio.config import DataConfig
from sashimi_wb.audio.corpora import DATASETS, DIGITS, MUSDB_VALIDATION, PARTS, STEMS, find_parts, split_files
from sashimi_wb.audio.files import AudioInfo, read_span
from sashimi_wb.audio.loaders import AudioData


def make_tree(root, names, channels=1, **options):
    for i, name in enumerate(names): write(root, name, 200 + i, channels, seed=i, **options)
    return root


def names(parts): return [[i.name for i in p] for p in parts]


# ---- any folder

@given(st.integers(3, 60), st.floats(0.01, 0.99), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_split_is_a_partition_without_empty_parts(n, share, seed):
    files = [AudioInfo(f"/{i}", f"f{i:02}.wav", 10, 8000, 1, "PCM_16") for i in range(n)]
    parts = split_files(files, share, seed)
    assert all(parts) and sorted(f.name for p in parts for f in p) == [f.name for f in files]
    assert split_files(files[::-1], share, seed) == parts
    assert len(parts[2]) - len(parts[1]) in (0, 1)
    assert abs(len(parts[0]) - n*share) <= 2


def test_split_values():
    files = [AudioInfo(f"/{i}", f"f{i:03}.wav", 10, 8000, 1, "PCM_16") for i in range(100)]
    a, b = split_files(files), split_files(files, seed=1)
    assert [len(p) for p in a] == [88, 6, 6] and a != b
    with pytest.raises(ValueError, match="at least 3 files.*got 2"): split_files(files[:2])
    for share in (0, 1, 88, "0.88", True, float("nan")):
        with pytest.raises(ValueError, match="share between 0 and 1"): split_files(files, share)


def test_folder_is_the_default_and_unchanged(tmp_path):
    make_tree(tmp_path, [f"a/{i}.wav" for i in range(9)])
    data = AudioData(DataConfig(tmp_path, sample_len=50, seed=3))
    parts = [data.train.files, data.val.files, data.test.files]
    assert parts == list(split_files(data.files, 0.88, 3)) == list(find_parts("folder", tmp_path, seed=3))


# ---- small trees in the layouts of the data sets

TRACKS = ("train/A Classic Education - NightOwl", "train/Music Delta - Rock",
          "train/Leaf - Summerghost", "train/Actions - One Minute Smile",
          "test/AM Contra - Heart Peripheral", "test/Al James - Schoolboy Facination")


def musdb18hq(root):
    make_tree(root, [f"{t}/{s}.wav" for t in TRACKS for s in STEMS], channels=2, rate=44_100)
    return [[f"{t}/mixture.wav" for t in part] for part in (TRACKS[:2], sorted(TRACKS[2:4]), TRACKS[4:])]


def sc09(root):
    clips = [f"{d}/{speaker}_nohash_{k}.wav" for d in DIGITS
             for speaker, k in (("0a7c2a8d", 0), ("c50f55b8", 0), ("c50f55b8", 1), ("1ecfb537", 0))]
    make_tree(root, [*clips, "bed/0a7c2a8d_nohash_0.wav"])
    (root/"_background_noise_").mkdir()
    valid, test = ([c for c in clips if s in c] for s in ("c50f55b8", "1ecfb537"))
    listed = ["bed/c50f55b8_nohash_0.wav", *valid, "nine/ffffffff_nohash_0.wav"]
    (root/"validation_list.txt").write_text("\n".join(listed) + "\n")
    (root/"testing_list.txt").write_text("\n".join(test) + "\n")
    return [[c for c in clips if "0a7c2a8d" in c], valid, test]


def numbered(root):
    clips = [f"{i}.wav" for i in range(1, 35)]
    make_tree(root, clips[::-1])
    return [clips[:29], clips[29:31], clips[31:]]  # int(34*0.88), int(34*0.94)


def maestro(root, table="csv", version="3.0.0"):
    rows = [dict(canonical_composer="Franz Liszt", canonical_title="Étude, \"La\", 3", split=s, year=y,
                 midi_filename=f"{y}/{s}.midi", audio_filename=f"{y}/{s} {y}.wav", duration=1.5)
            for y in (2004, 2018) for s in ("train", "test", "validation")]
    make_tree(root, [r["audio_filename"] for r in rows], channels=2, rate=48_000)
    path = root/f"maestro-v{version}.{table}"
    if table == "csv":
        with open(path, "w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        by_column = {k: {str(i): r[k] for i, r in enumerate(rows)} for k in rows[0]}
        path.write_text(json.dumps(by_column if version == "3.0.0" else rows))
    return [[f"{y}/{s} {y}.wav" for y in (2004, 2018)] for s in ("train", "validation", "test")]


def ljspeech(root):
    ids = [f"LJ{c:03}-{k:04}" for c in (1, 2, 50) for k in range(1, 12)]
    make_tree(root, [f"wavs/{i}.wav" for i in ids], rate=22_050)
    (root/"metadata.csv").write_text("".join(f"{i}|Said \"so|{k}\n" for k, i in enumerate(ids)), encoding="utf-8")
    files = [f"wavs/{i}.wav" for i in ids]
    return [files[:29], files[29:31], files[31:]]


def librispeech(root):
    train = [f"train-clean-100/103/1240/103-1240-000{i}.flac" for i in range(3)]
    parts = [[*train, "train-other-500/20/205/20-205-0000.flac"],
             ["dev-clean/84/121123/84-121123-0000.flac"],
             ["test-clean/61/70968/61-70968-0000.flac", "test-other/367/130732/367-130732-0000.flac"]]
    make_tree(root, [n for p in parts for n in p])
    (root/"dev-clean/84/121123/84-121123.trans.txt").write_text("84-121123-0000 GO\n")
    (root/"README.TXT").write_text("x")
    return parts


TREES = dict(musdb18hq=musdb18hq, sc09=sc09, beethoven=numbered, youtubemix=numbered, maestro=maestro,
             ljspeech=ljspeech, librispeech=librispeech)


def test_every_data_set_is_tested():
    assert set(TREES) | {"folder", "musdb18"} == set(DATASETS)
    for data in DATASETS.values(): assert data.tree and data.rule and data.where


@pytest.mark.parametrize("name", TREES)
def test_layout_of_every_data_set(tmp_path, name):
    want = TREES[name](tmp_path)
    parts = find_parts(name, tmp_path)
    assert names(parts) == want == names(find_parts(name, tmp_path, seed=9))
    data = AudioData(DataConfig(tmp_path, dataset=name, sample_len=50))
    assert [[f.name for f in d.files] for d in (data.train, data.val, data.test)] == want
    assert len(data.fingerprint()) == 64 and len(data.test[0]["y"]) == 50
    for info in parts[2]: assert (tmp_path/info.name).samefile(info.path) and read_span(info).shape == (info.frames, 1)


@pytest.mark.parametrize("name", TREES)
def test_missing_folder_and_wrong_layout(tmp_path, name):
    data = DATASETS[name]
    with pytest.raises(FileNotFoundError) as e: find_parts(name, tmp_path/"none")
    assert data.tree.splitlines()[-1].strip() in str(e.value) and data.where in str(e.value)
    assert "no such folder" in str(e.value)
    TREES[name](tmp_path/"inner folder")
    reason = f"(?s)is not the data set '{name}': .*Expected.*Found in it: inner folder/\nGet it from"
    with pytest.raises(ValueError, match=reason) as e: find_parts(name, tmp_path)
    assert data.tree.splitlines()[0] in str(e.value) and data.where in str(e.value)
    (tmp_path/"file").write_text("x")
    with pytest.raises(ValueError, match="is not the data set"): find_parts(name, tmp_path/"file")


@pytest.mark.parametrize("stem", STEMS)
def test_stems_of_musdb18hq(tmp_path, stem):
    musdb18hq(tmp_path)
    parts = find_parts("musdb18hq", tmp_path, stem)
    assert [[n.replace(stem, "mixture") for n in p] for p in names(parts)] == names(find_parts("musdb18hq", tmp_path))
    assert all(stem in i.path for p in parts for i in p)
    with pytest.raises(ValueError,
                       match="unknown stem of musdb18hq 'piano'; known: mixture, drums, bass, other, vocals"):
        find_parts("musdb18hq", tmp_path, "piano")


def test_validation_tracks_are_those_of_the_musdb_package():
    assert len(set(MUSDB_VALIDATION)) == 14 and "Johnny Lokke - Promises & Lies" in MUSDB_VALIDATION
    assert "ANiMAL - Rockshow" in MUSDB_VALIDATION


def test_musdb_without_its_validation_tracks(tmp_path):
    make_tree(tmp_path, [f"{t}/{s}.wav" for t in (*TRACKS[:2], *TRACKS[4:]) for s in STEMS])
    with pytest.raises(ValueError, match="none of the 14 validation tracks is in train"):
        find_parts("musdb18hq", tmp_path)


@pytest.mark.parametrize("name,lost,match", [
    ("musdb18hq", "test/AM Contra - Heart Peripheral/mixture.wav",
     "1 of its 6 files are missing, such as test/AM Contra"),
    ("maestro", "2004/test 2004.wav", "1 of its 6 files are missing, such as 2004/test 2004.wav"),
    ("ljspeech", "wavs/LJ002-0003.wav", "1 of its 33 files are missing, such as wavs/LJ002-0003.wav")])
def test_an_incomplete_download(tmp_path, caplog, name, lost, match):
    want = TREES[name](tmp_path)
    (tmp_path/lost).unlink()
    with pytest.raises(ValueError, match=match): find_parts(name, tmp_path)
    with caplog.at_level(logging.WARNING, "sashimi_wb"): parts = find_parts(name, tmp_path, skip_bad=True)
    assert names(parts) == [[n for n in p if n != lost] for p in want] and f"left out: {lost}: missing" in caplog.text


@pytest.mark.parametrize("name,lost,match", [
    ("sc09", "testing_list.txt", "no readable testing_list.txt"),
    ("ljspeech", "metadata.csv", "no readable metadata.csv"),
    ("maestro", "maestro-v3.0.0.csv", "no maestro-v\\*.csv or maestro-v\\*.json")])
def test_missing_lists(tmp_path, name, lost, match):
    TREES[name](tmp_path)
    (tmp_path/lost).unlink()
    with pytest.raises(ValueError, match=match): find_parts(name, tmp_path)


def test_empty_parts_are_named(tmp_path):
    sc09(tmp_path/"sc09")
    maestro(tmp_path/"maestro")
    make_tree(tmp_path/"beethoven", ["1.wav", "2.wav", "3.wav"])
    librispeech(tmp_path/"librispeech")
    (tmp_path/"sc09"/"testing_list.txt").write_text("")
    table = tmp_path/"maestro"/"maestro-v3.0.0.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("validation", "valid"), encoding="utf-8")
    (tmp_path/"librispeech"/"dev-clean").rename(tmp_path/"librispeech"/"dev")
    for name, match in dict(sc09="it has no test files", maestro="it has no validation files",
                            beethoven="3 files at train_percentage=0.88 leave a part empty",
                            librispeech="it holds no dev-\\*").items():
        with pytest.raises(ValueError, match=match): find_parts(name, tmp_path/name)
    assert [len(p) for p in find_parts("beethoven", tmp_path/"beethoven", train_percentage=0.4)] == [1, 1, 1]


def test_no_file_is_in_two_parts(tmp_path):
    sc09(tmp_path)
    with open(tmp_path/"testing_list.txt", "a") as f: f.write("zero/c50f55b8_nohash_0.wav\n")
    with pytest.raises(ValueError, match="its lists name a file twice"): find_parts("sc09", tmp_path)


@pytest.mark.parametrize("table,version", (("json", "3.0.0"), ("json", "2.0.0"), ("csv", "1.0.0")))
def test_tables_of_maestro(tmp_path, table, version):
    want = maestro(tmp_path, table, version)
    assert names(find_parts("maestro", tmp_path, train_percentage=0.5)) == want
    for content in ("{}", "[]", "x,y\n1,2\n", "{", "[1, 2]", '{"split": 3}'):
        (tmp_path/f"maestro-v{version}.{table}").write_text(content)
        reason = "it has no training files|.* has no columns split and audio_filename"
        with pytest.raises(ValueError, match=f"is not the data set 'maestro': ({reason})"):
            find_parts("maestro", tmp_path)


@given(st.integers(1, 400), st.floats(0.05, 0.98))
@settings(max_examples=100, deadline=None)
def test_parts_in_order_are_those_of_the_public_loader(n, share):
    """Names in natural order, cut where the public loader cuts: int(share*n) and int((share + (1 - share)/2)*n)."""
    from sashimi_wb.audio.corpora import _in_order, _WrongLayout
    files = [f"{i}.wav" for i in range(n)]
    cuts = [0, int(share*n), int((share + (1 - share)/2)*n), n]
    want = [files[a:b] for a, b in zip(cuts, cuts[1:])]
    if all(want): assert list(_in_order(files, share)) == want
    else:
        with pytest.raises(_WrongLayout, match="leave a part empty"): _in_order(files, share)


def test_damaged_files_of_a_data_set(tmp_path):
    want = librispeech(tmp_path)
    (tmp_path/want[0][1]).write_bytes(b"no audio")
    with pytest.raises(ValueError, match="103-1240-0001.flac"): find_parts("librispeech", tmp_path)
    without = [[n for n in p if n != want[0][1]] for p in want]
    assert names(find_parts("librispeech", tmp_path, skip_bad=True)) == without


def test_only_the_files_of_the_data_set_are_checked(tmp_path):
    """A damaged file beside the digits, or of another stem, is ignored."""
    sc09(tmp_path/"sc09")
    musdb18hq(tmp_path/"hq")
    (tmp_path/"sc09"/"bed"/"0a7c2a8d_nohash_0.wav").write_bytes(b"no audio")
    (tmp_path/"hq"/TRACKS[0]/"vocals.wav").write_bytes(b"no audio")
    assert len(find_parts("sc09", tmp_path/"sc09")[0]) == 10
    assert len(find_parts("musdb18hq", tmp_path/"hq", "bass")[0]) == 2
    with pytest.raises(ValueError, match="vocals.wav"): find_parts("musdb18hq", tmp_path/"hq", "vocals")


def test_unknown_names(tmp_path):
    known = "folder, musdb18hq, musdb18, sc09, beethoven, youtubemix, maestro, ljspeech, librispeech"
    with pytest.raises(ValueError, match=f"unknown dataset 'timit'; known: {known}"): find_parts("timit", tmp_path)
    with pytest.raises(ValueError, match="unknown stem of folder 'drums'; known: mixture"):
        find_parts("folder", tmp_path, "drums")
    with pytest.raises(ValueError, match="share between 0 and 1"): find_parts("sc09", tmp_path, train_percentage=88)
    assert PARTS == ("training", "validation", "test")


# ---- MUSDB18 as .stem.mp4

def stem_file(path, seconds=0.5, rate=44_100):
    """Write five stereo AAC streams of sines; the frequency rises from mixture to vocals."""
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(int(seconds*rate))/rate
    with av.open(str(path), "w", format="mp4") as out:
        streams = [out.add_stream("aac", rate=rate, layout="stereo") for _ in STEMS]
        for k, stream in enumerate(streams):
            wave = np.repeat(0.4*np.sin(2*np.pi*220*(k + 1)*t)[None], 2, axis=0).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="stereo")
            frame.sample_rate = rate
            for packet in (*stream.encode(frame), *stream.encode(None)): out.mux(packet)


@pytest.fixture(scope="module")
def stems(tmp_path_factory):
    root = tmp_path_factory.mktemp("musdb18")
    for t in (TRACKS[0], TRACKS[2], TRACKS[4]): stem_file(root/f"{t}.stem.mp4")
    return root


@pytest.mark.parametrize("stem", STEMS)
def test_streams_of_musdb18(stems, stem):
    parts, k = find_parts("musdb18", stems, stem), STEMS.index(stem)
    assert names(parts) == [[f"{t}.stem.mp4"] for t in (TRACKS[0], TRACKS[2], TRACKS[4])]
    info = parts[2][0]
    assert (info.stream, info.channels, info.sample_rate, info.bits) == (k, 2, 44_100, None)
    wave = read_span(info, 4000, 8820)[:, 0]
    assert abs(np.abs(np.fft.rfft(wave)).argmax()*5 - 220*(k + 1)) <= 5  # bins of 5 Hz
    data = AudioData(DataConfig(stems, dataset="musdb18", stem=stem, sample_len=1000, channels="stereo"))
    assert data.reductions() and "lossy" in data.reductions()[0] and len(data.fingerprint()) == 64


def test_workers_read_the_same_stems(stems):
    base = dict(path=stems, dataset="musdb18", stem="drums", sample_len=3000, channels="stereo", batch_size=2,
                target_sr=16_000)
    plain, spread = (AudioData(DataConfig(**base, num_workers=n)) for n in (0, 2))
    for a, b in zip(plain.train_loader(), spread.train_loader(), strict=True):
        assert all((a[k] == b[k]).all() for k in a)


def test_wrong_layout_of_musdb18(stems, tmp_path):
    musdb18hq(tmp_path)
    with pytest.raises(ValueError,
                       match="(?s)it holds no train/\\*.stem.mp4\nExpected.*Found in it: test/, train/"):
        find_parts("musdb18", tmp_path)
    with pytest.raises(ValueError, match="unknown stem of musdb18 'piano'"): find_parts("musdb18", stems, "piano")
    prints = {AudioData(DataConfig(stems, dataset="musdb18", stem=s, sample_len=1000)).fingerprint() for s in STEMS}
    assert len(prints) == len(STEMS)
