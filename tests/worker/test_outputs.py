"""worker/outputs.py: names, and files of one result that are all there or none."""

from __future__ import annotations

import numpy as np
import pytest

from lgm_blender.core import files as core_files
from lgm_blender.core.errors import LGMError
from lgm_blender.core.system.names import file_stem
from lgm_blender.worker.outputs import Previews, save_together


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("żółw 亀 — ok", "żółw 亀 — ok"),
        ("../../etc/passwd", ".._.._etc_passwd"),
        ("a<b>c:d|e?f*g", "a_b_c_d_e_f_g"),
        ("con", "_con"),
        ("LPT1.x", "_LPT1.x"),
        ("dots... ", "dots"),
        ("...", "untitled"),
        ("\x00\x1f", "__"),
        ("x" * 300, "x" * 200),
        ("亀" * 100, "亀" * 66),
    ],
)
def test_names_that_every_system_can_have(name, stem):
    assert file_stem(name, None) == stem


def test_names_from_image_or_text():
    assert file_stem("", "/a/b.c.jpeg", "a text") == "b.c"
    assert file_stem("", None, " a  b\nc d e f g h") == "a b c d e f"


def contents(name: str) -> dict[str, bytes]:
    return {".ply": name.encode(), ".json": name.upper().encode()}


def test_a_number_is_appended_where_any_file_of_a_result_is_there(tmp_path):
    (tmp_path / "a.png").touch()  # not one of the two that are written
    suffixes = (".ply", ".json", ".png")
    paths = save_together(tmp_path / "sub" / "..", "a", suffixes, contents)
    assert [path.name for path in paths.values()] == ["a_001.ply", "a_001.json"]
    assert paths[".ply"].read_bytes() == b"a_001"
    paths = save_together(tmp_path, "a", suffixes, contents, overwrite=True)
    assert [path.name for path in paths.values()] == ["a.ply", "a.json"]


def test_the_source_is_never_replaced(tmp_path):
    (tmp_path / "a.ply").write_bytes(b"mine")
    paths = save_together(tmp_path, "a", (".ply",), contents, overwrite=True, source=tmp_path / "a.ply")
    assert paths[".ply"].name == "a_001.ply"
    assert (tmp_path / "a.ply").read_bytes() == b"mine"


def test_another_process_that_takes_the_name_meanwhile_keeps_it(tmp_path, monkeypatch):
    """Between the look and the writing: both results are whole in the end."""
    take = core_files.take_name

    def late(temporary, path):
        if path.name == "a.json":
            path.write_bytes(b"theirs")
        take(temporary, path)

    monkeypatch.setattr(core_files, "take_name", late)
    paths = save_together(tmp_path, "a", (".ply", ".json"), contents)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a_001.json", "a_001.ply"]
    assert (tmp_path / "a.json").read_bytes() == b"theirs"
    assert paths[".json"].read_bytes() == b"A_001"


def test_a_folder_that_can_not_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LGMError, match="is not a folder") as caught:
        save_together(tmp_path / "file" / "x", "a", (), contents)
    assert caught.value.kind == "output"


def test_previews_keep_the_last_two_and_their_distance(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("lgm_blender.worker.outputs.time.monotonic", lambda: now[0])
    previews = Previews(tmp_path)

    def decode():
        now[0] += 0.1  # takes a tenth of a second, so that the next may come after one
        return np.zeros((4, 8, 8, 3))

    assert previews.write(1, decode).endswith("_0001.png")
    now[0] += 0.9
    assert previews.write(2, decode) is None
    for step in (3, 4, 5):
        now[0] += 1.1
        assert previews.write(step, decode)
    assert sorted(path.name.partition("_")[2] for path in tmp_path.iterdir()) == ["0004.png", "0005.png"]
