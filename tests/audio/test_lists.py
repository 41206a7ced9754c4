"""sashimi_wb.audio.lists and the data sets that use it.

However a list is written, every clip stays in its part, or an error names file and line."""
import csv
import json
import logging
import os
import sys
import unicodedata

import pytest
from made_audio import write
from test_corpora import TREES, names

from sashimi_wb.audio.corpora import MUSDB_VALIDATION, find_parts
from sashimi_wb.audio.lists import Names, alike, read_lines, read_table

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be")
LISTS = {"sc09": ("validation_list.txt", "testing_list.txt"), "ljspeech": ("metadata.csv",),
         "maestro": ("maestro-v3.0.0.csv",)}
# what programs do to the text of a list
WRITERS = {
    "unchanged": lambda s: s, "Windows line ends": lambda s: s.replace("\n", "\r\n"),
    "old Macintosh line ends": lambda s: s.replace("\n", "\r"),
    "empty lines": lambda s: "\n\n" + s.replace("\n", "\n\n \n"), "no last line end": lambda s: s.rstrip("\n"),
    "zero at the end": lambda s: s + "\x1a",
    "spaces": lambda s: "".join(f"{line} \t\n" for line in s.splitlines()),
}


def rewrite(path, change, encoding):
    path.write_bytes(change(path.read_text(encoding="utf-8")).encode(encoding))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", LISTS)
def test_encodings_move_no_clip(tmp_path, name, encoding):
    want = TREES[name](tmp_path)
    for file in LISTS[name]: rewrite(tmp_path/file, WRITERS["unchanged"], encoding)
    assert names(find_parts(name, tmp_path)) == want


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", LISTS)
def test_writers_move_no_clip(tmp_path, name, writer):
    want = TREES[name](tmp_path)
    for file in LISTS[name]:
        rewrite(tmp_path/file, WRITERS[writer], "utf-8-sig" if writer == "empty lines" else "utf-8")
    assert names(find_parts(name, tmp_path)) == want


ENTRIES = {
    "backslashes": lambda n: n.replace("/", "\\"), "quotes": lambda n: f'"{n}"', "a dot before": lambda n: f"./{n}",
    "capitals": str.upper,
    "a byte-order mark in every line": lambda n: "\ufeff" + n, "two slashes": lambda n: n.replace("/", "//"),
    "a space inside": lambda n: n.replace("/", " /"),
}


@pytest.mark.parametrize("how", ENTRIES)
def test_entries_mean_the_same_clip(tmp_path, how):
    want = TREES["sc09"](tmp_path)
    for file in LISTS["sc09"]:
        entries = [ENTRIES[how](line) for line in (tmp_path/file).read_text().split()]
        (tmp_path/file).write_text("\n".join(["# a comment", *entries, *entries, ""]))
    assert names(find_parts("sc09", tmp_path)) == want


def test_a_byte_order_mark_does_not_hide_the_first_clip(tmp_path):
    want = TREES["sc09"](tmp_path)
    text = (tmp_path/"testing_list.txt").read_text()
    (tmp_path/"testing_list.txt").write_text(text, encoding="utf-8-sig")
    assert text.split()[0] in [i.name for i in find_parts("sc09", tmp_path)[2]]
    assert names(find_parts("sc09", tmp_path)) == want


def test_capitals_of_a_disk_move_no_clip(tmp_path):
    want = TREES["sc09"](tmp_path)
    for path in [*tmp_path.glob("three/*.wav")]: path.rename(path.with_name(path.name.upper()))
    (tmp_path/"four").rename(tmp_path/"Four")
    (tmp_path/"testing_list.txt").rename(tmp_path/"Testing_List.TXT")
    found = [sorted(n.lower() for n in part) for part in names(find_parts("sc09", tmp_path))]
    assert found == [sorted(n.lower() for n in part) for part in want]


CAFE = (b"caf\xe9", "caf\u00e9".encode(), "cafe\u0301".encode(), "CAF\u00c9".encode())
CAFE_IDS = ("Latin-1", "composed", "decomposed", "capitals")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux allows names of any bytes")
@pytest.mark.parametrize("disk", CAFE[:3], ids=CAFE_IDS[:3])
@pytest.mark.parametrize("listed", CAFE, ids=CAFE_IDS)
def test_accents_of_list_and_disk_may_differ(tmp_path, disk, listed):
    TREES["sc09"](tmp_path)
    own = os.fsdecode(disk)
    write(tmp_path, "zero/plain.wav", 300).rename(tmp_path/"zero"/f"{own}.wav")
    with open(tmp_path/"testing_list.txt", "ab") as f: f.write(b"\nzero/" + listed + b".wav\n")
    assert f"zero/{own}.wav" in [i.name for i in find_parts("sc09", tmp_path)[2]]


def test_two_files_that_one_entry_may_mean(tmp_path):
    TREES["sc09"](tmp_path)
    for name in ("zero/x.wav", "zero/X.wav"): write(tmp_path, name, 300)
    lines = (tmp_path/"testing_list.txt").read_text().count("\n")
    with open(tmp_path/"testing_list.txt", "a") as f: f.write("\nzero/x.wav\n")
    assert "zero/x.wav" in [i.name for i in find_parts("sc09", tmp_path)[2]]
    assert "zero/X.wav" in [i.name for i in find_parts("sc09", tmp_path)[0]]
    with open(tmp_path/"testing_list.txt", "a") as f: f.write("ZERO/X.wav\n")
    with pytest.raises(ValueError,
                       match=f"testing_list.txt, line {lines + 3}: 'ZERO/X.wav' may mean 'zero/X.wav' or 'zero/x.wav'"):
        find_parts("sc09", tmp_path)


def test_a_clip_in_both_lists_is_an_error_however_it_is_written(tmp_path):
    want = TREES["sc09"](tmp_path)
    with open(tmp_path/"testing_list.txt", "a") as f: f.write("\n" + want[1][0].upper().replace("/", "\\") + "\n")
    with pytest.raises(ValueError, match=f"its lists name a file twice: {want[1][0]}"): find_parts("sc09", tmp_path)


def test_missing_clips_are_logged(tmp_path, caplog):
    TREES["sc09"](tmp_path)
    with caplog.at_level(logging.WARNING, "sashimi_wb"): find_parts("sc09", tmp_path)
    line = (tmp_path/"validation_list.txt").read_text().split("\n").index("nine/ffffffff_nohash_0.wav") + 1
    clip = f"nine/ffffffff_nohash_0.wav (validation_list.txt, line {line})"
    assert f"1 listed clips are missing, such as {clip}" in caplog.text


@pytest.mark.parametrize("entry", ("../outside.wav", "/etc/passwd", "zero/../../outside.wav"))
def test_entries_outside_the_folder_are_not_read(tmp_path, entry):
    want = TREES["maestro"](tmp_path/"m")
    write(tmp_path, "outside.wav")
    table = tmp_path/"m"/"maestro-v3.0.0.csv"
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    rows[1]["audio_filename"] = entry
    with open(table, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(ValueError, match=r"1 of its 6 files are missing, such as .* \(maestro-v3.0.0.csv, line 3\)"):
        find_parts("maestro", tmp_path/"m")
    assert sum(map(len, names(find_parts("maestro", tmp_path/"m", skip_bad=True)))) == sum(map(len, want)) - 1


def test_tables_of_other_programs(tmp_path):
    """Separators, spaces in headings, titles of several lines and with Unicode line separators, JSON rows in any order.

    Capitals in splits are accepted too."""
    want = TREES["maestro"](tmp_path)
    path = tmp_path/"maestro-v3.0.0.csv"
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    for row in rows: row["canonical_title"] = "\u00c9tude\u2028in\x85two\nlines"
    for delimiter in ",;\t":
        with open(path, "w", newline="", encoding="utf-8-sig") as f:
            writer = csv.DictWriter(f, list(rows[0]), delimiter=delimiter)
            f.write(delimiter.join(f" {h.upper()} " for h in rows[0]) + "\r\n")
            writer.writerows([row | {"split": f" {row['split'].title()}",
                                     "audio_filename": row["audio_filename"].replace("/", "\\")} for row in rows])
        assert names(find_parts("maestro", tmp_path)) == want
    path.unlink()
    by_column = {k: {str(i): rows[i][k] for i in (range(6) if k == "split" else reversed(range(6)))} for k in rows[0]}
    for content in (by_column, rows[::-1]):
        (tmp_path/"maestro-v3.0.0.json").write_text(json.dumps(content), encoding="utf-16")
        assert names(find_parts("maestro", tmp_path)) == want
    del by_column["split"]["3"]
    (tmp_path/"maestro-v3.0.0.json").write_text(json.dumps(by_column))
    with pytest.raises(ValueError, match="maestro-v3.0.0.json has no columns split and audio_filename"):
        find_parts("maestro", tmp_path)


@pytest.mark.parametrize("value, message", (
    ("tst", "expected a split of train, validation, test, got 'tst'"), ("", "expected split and audio_filename, got")))
def test_rows_without_a_valid_split_are_named(tmp_path, value, message):
    TREES["maestro"](tmp_path)
    path = tmp_path/"maestro-v3.0.0.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:3], lines[3].replace(",validation,", f",{value},"), *lines[4:]]),
                    encoding="utf-8")
    assert ",validation," in lines[3]
    with pytest.raises(ValueError, match=f"maestro-v3.0.0.csv, line 4: {message}"): find_parts("maestro", tmp_path)


def test_a_line_that_is_not_a_row_is_named(tmp_path):
    want = TREES["ljspeech"](tmp_path)
    path = tmp_path/"metadata.csv"
    text = path.read_text(encoding="utf-8")
    path.write_text(text + text.split("\n")[0] + "\n", encoding="utf-8")  # a repeated row does not change the split
    assert names(find_parts("ljspeech", tmp_path)) == want
    path.write_text("\n" + text.replace("LJ001-0002|", "LJ001-0002 "*2), encoding="utf-8")
    reason = "1 of its 33 files are missing, such as wavs/LJ001-0002 LJ001-0002 .*metadata.csv, line 3"
    with pytest.raises(ValueError, match=reason): find_parts("ljspeech", tmp_path)
    path.write_text(text + "no separator here\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"metadata.csv, line 34: expected id\|text\|text, got 'no separator here'"):
        find_parts("ljspeech", tmp_path)


def test_validation_tracks_of_musdb_are_held_out_however_a_disk_writes_them(tmp_path):
    TREES["musdb18hq"](tmp_path)
    for old in ("Leaf - Summerghost", "Actions - One Minute Smile"):
        (tmp_path/"train"/old).rename(tmp_path/"train"/old.upper())
    validation = [n.split("/")[1].lower() for n in names(find_parts("musdb18hq", tmp_path))[1]]
    assert validation == ["actions - one minute smile", "leaf - summerghost"]
    assert len({alike(t) for t in MUSDB_VALIDATION}) == 14


def test_capital_suffixes_and_hidden_folders(tmp_path):
    want = TREES["librispeech"](tmp_path)
    first = tmp_path/want[0][0]
    first.rename(first.with_suffix(".FLAC"))
    write(tmp_path, "train-clean-100/@eaDir/1240/x.flac")
    write(tmp_path, "train-clean-100/.trash/1240/x.flac")
    found = [[n.lower() for n in part] for part in names(find_parts("librispeech", tmp_path))]
    assert found == [[n.lower() for n in part] for part in want]


def test_linked_folders_of_a_data_set_are_followed(tmp_path):
    want = TREES["librispeech"](tmp_path/"disk")
    (tmp_path/"set").mkdir()
    for part in (tmp_path/"disk").iterdir(): (tmp_path/"set"/part.name).symlink_to(part)
    assert names(find_parts("librispeech", tmp_path/"set")) == want


@pytest.mark.parametrize("content", (
    b"\xff\xfea", b"\xff\xfe\x00\xd8", b"\xef\xbb\xbf\xff", b"\x00\x00\xfe\xff\0", b"", b"\0", b"\xff\xfe"))
def test_damaged_text_is_named_or_empty(tmp_path, content):
    (tmp_path/"list.txt").write_bytes(content)
    try: assert read_lines(tmp_path/"list.txt") in ([], [os.fsdecode(b"\xff")])
    except ValueError as e: assert "list.txt: expected text, got bytes that are not utf" in str(e)


def test_names_are_alike_if_they_differ_only_in_notation():
    for a, b in (("a/B.wav", "A\\b.WAV"), ("\u00e9", "E\u0301"), ("./x", "x"), ("x ", "x"),
                 (os.fsdecode(b"\xe9"), "\u00e9"), ("stra\u00dfe", "STRASSE")):
        assert alike(a) == alike(b), (a, b)
    for a, b in (("a", "b"), ("1.wav", "01.wav"), ("a/b", "ab"), ("e", "\u00e9"), ("\ud800", "\ud801")):
        assert alike(a) != alike(b), (a, b)
    every = [chr(i) for i in range(1, 0x3000) if i not in range(0xd800, 0xe000)]
    assert all(alike(unicodedata.normalize("NFD", c.upper())) == alike(unicodedata.normalize("NFC", c.upper()))
               for c in every)
    assert Names(["x"]).find("y") is None


def test_a_table_without_its_columns(tmp_path):
    for name, text in (("t.csv", ""), ("t.csv", "a,b\n"), ("t.csv", "\0"), ("t.json", "["*100_000), ("t.json", "null"),
                       ("t.json", "3"), ("t.json", '[{"a": 1}]'), ("t.json", '{"a": {}, "b": []}')):
        (tmp_path/name).write_text(text)
        with pytest.raises(ValueError, match=f"{name} has no columns a and c"): read_table(tmp_path/name, ("a", "c"))
