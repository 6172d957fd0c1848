"""What goes into the worker's environment, and on which machines (build.py test tests/core/test_environment.py)."""

from __future__ import annotations

import re

import pytest

from lgm_blender.core import environment


@pytest.mark.parametrize(
    ("system", "machine", "libc", "said"),
    [
        ("darwin", "x86_64", None, "Intel"),
        ("darwin", "arm64", None, ""),
        ("win32", "ARM64", None, "Windows on ARM"),
        ("win32", "AMD64", None, ""),
        ("linux", "x86_64", ("glibc", "2.28"), ""),
        ("linux", "aarch64", ("glibc", "2.41"), ""),
        ("linux", "x86_64", ("glibc", "2.17"), r"glibc 2\.28 or newer, and this one has glibc 2\.17\. Use Debian"),
        ("linux", "x86_64", ("", ""), "this one has another C library"),
        ("linux", "x86_64", ("musl", "1.2.5"), "this one has another C library"),
        ("linux", "riscv64", ("glibc", "2.41"), "riscv64 processors"),
    ],
)
def test_machines_that_have_no_torch_are_told(system, machine, libc, said):
    sentence = environment.unsupported(system, machine, libc)
    assert re.search(said, sentence) if said else sentence == ""


def test_a_package_whose_wheels_ask_for_more_is_left_out():
    """pymeshlab's need glibc 2.35; the rest is the same, torch first."""
    new = environment.requirements(libc=("glibc", "2.35"))
    old = environment.requirements(libc=("glibc", "2.28"))
    assert new[0].startswith("torch")
    (left_out,) = {*new} - {*old}
    assert left_out.startswith("pymeshlab")
    assert old == [line for line in new if line != left_out]


def test_lists_have_no_comments_and_modules_have_import_names(tmp_path):
    (tmp_path / "requirements.txt").write_text("# about\n\nscikit-image>=0.25,<1  # because\nTorch\n")
    assert environment.read_requirements(tmp_path / "requirements.txt") == ["scikit-image>=0.25,<1", "Torch"]
    assert environment.package_name("scikit-image>=0.25") == "scikit-image"
    assert environment.package_name("Torch") == "torch"
    assert {"torch", "PIL", "skimage", "tokenizers"} <= {*environment.modules()}
    assert "pymeshlab" not in environment.modules()  # without it the worker works
