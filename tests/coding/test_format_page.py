"""The page on the coded file agrees with the files and with the package, and is enough to decode them."""
import ast
import importlib
import io
import json
import re
from hashlib import sha256
from pathlib import Path

import independent_decoder
import numpy as np
import pytest
from fuzz_coded import wav

from sashimi_wb.compression import compress
from sashimi_wb.core.system import bundled

FROZEN, PAGE = Path(__file__).parent / "frozen", bundled("docs/format.md").read_text(encoding="utf-8")


def coded(data: bytes) -> bytes:
    """The coded form of a file."""
    out = io.BytesIO()
    compress(io.BytesIO(data), out, verify=False, workers=1)
    return out.getvalue()


@pytest.mark.portable
@pytest.mark.parametrize("name", ["text", "noise", "wav32_padded"])
def test_a_decoder_made_from_the_page_reads_frozen_files(name):
    found = independent_decoder.decode((FROZEN / f"{name}.swb").read_bytes())
    assert sha256(found).hexdigest() == json.loads((FROZEN / "sha256.json").read_text())[name]


@pytest.mark.parametrize("n, channels, width", [(150, 2, 2), (40, 10, 2), (40, 3, 3), (60, 1, 4), (0, 1, 1), (1, 1, 1)])
def test_it_reads_other_files(n, channels, width):
    """Channels that see each other, groups of channels, and low bits that are stored."""
    rng = np.random.default_rng(0)
    steps = rng.integers(-2**(8*width - 8), 2**(8*width - 8) + 1, (n, channels))
    x = np.cumsum(steps, 0) + 2**(8*width - 2)
    data = wav(np.ascontiguousarray(x, "<i8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes(), width, channels)
    found = coded(data)
    assert independent_decoder.decode(found) == data
    if n > 1: assert b"SWBs\2" in found                                    # by the predictor
    for at in range(0, len(found), len(found)//7):
        with pytest.raises(ValueError, match="damaged"):
            independent_decoder.decode(found[:at] + bytes([found[at] ^ 1]) + found[at + 1:])


def test_it_knows_nothing_of_the_package():
    tree = ast.parse(Path(independent_decoder.__file__).read_text())
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    assert imported == {"hashlib", "lzma", "math", "struct", "sys", "zlib"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]


def test_bytes_on_the_page_are_those_of_a_frozen_file():
    blocks = dict(re.findall(r"```text\n(header|segment|end)\n([0-9a-f\s]+)```", PAGE))
    data = (FROZEN / "wav8.swb").read_bytes()
    second = data.index(b"SWBs\2")
    for name, where in (("header", data[:48]), ("segment", data[second:second + 33]), ("end", data[-44:])):
        assert bytes.fromhex(blocks[name]) == where


def test_constants_on_the_page_are_those_of_the_package():
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| `(\w+)\.(\w+)` \|$", PAGE, re.MULTILINE)
    assert len(rows) == 25
    folders = {"portable": "tokens", "segments": "coding", "file_format": "coding", "range_coder": "coding"}
    for value, module, name in rows:
        package = importlib.import_module(f"sashimi_wb.{folders.get(module, 'prediction')}.{module}")
        assert getattr(package, name) == ast.literal_eval(value.strip()), name
