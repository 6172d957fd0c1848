"""The lock fits the worker's list, and every system has its files (build.py test tests/core/test_lock.py)."""

from __future__ import annotations

import re

import pytest

from lgm_blender.core import environment, lock

HERE = lock.marker_values("linux", "x86_64", (3, 13, 5))
TARGETS = [
    pytest.param(system, machine, python, id=f"{name}, {python[0]}.{python[1]}")
    for (system, machine), name in lock.SYSTEMS.items()
    for python in lock.PYTHONS
]


def versions(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def satisfies(version: str, requirement: str) -> bool:
    """Whether '2.4.6' is what 'numpy>=1.26,<3' asks for."""
    found = versions(version)
    for operator, bound in re.findall(r"(==|>=|<)([\d.*]+)", requirement):
        wanted = versions(bound)
        if operator == "==" and found[: len(wanted)] != wanted:
            return False
        if operator == ">=" and found < wanted:
            return False
        if operator == "<" and found >= wanted:
            return False
    return True


@pytest.mark.parametrize(("system", "machine", "python"), TARGETS)
@pytest.mark.parametrize("build", ["cpu", "cu130"])
def test_the_lock_fits_the_list(system, machine, python, build):
    """Each package that the worker needs is there for each system, in a version that its list allows."""
    if system == "darwin" and build != "cpu":
        return
    here = lock.marker_values(system, machine, (*python, 5))
    files = [*lock.files(("glibc", "99.0")), lock.torch_file(build)]
    locked = {package.name: package for package in lock.wanted(files, here)}
    for line in environment.read_requirements(environment.PACKAGE / "worker" / "requirements.txt"):
        name = environment.package_name(line).replace("_", "-")
        assert satisfies(locked[name].version, line), line
    assert all(package.hashes for package in locked.values())


def test_every_file_is_named_by_its_hash():
    paths = sorted(lock.FOLDER.glob("*.txt"))
    assert [path.stem for path in paths] == ["optional", "packages", "torch_cpu", "torch_cu130", "uv"]
    for path in paths:
        for package in lock.read(path):
            assert package.hashes, package
            assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in package.hashes), package
            assert re.fullmatch(r"[\w.+]+", package.version), package
    assert sum(path.stat().st_size for path in lock.FOLDER.iterdir()) < 60_000


def test_old_glibc_does_without_what_is_optional():
    assert lock.files(("glibc", "2.28")) == [lock.FOLDER / "packages.txt"]
    assert lock.files(("glibc", "2.35")) == [lock.FOLDER / "packages.txt", lock.FOLDER / "optional.txt"]
    assert {package.name for package in lock.read(lock.FOLDER / "optional.txt")} == {*environment.OPTIONAL}


@pytest.mark.parametrize(
    ("marker", "true"),
    [
        ("", True),
        ("sys_platform == 'linux'", True),
        ("sys_platform == 'win32' or platform_machine == 'x86_64'", True),
        ("(platform_machine == 'aarch64' or platform_machine == 'x86_64') and sys_platform == 'linux'", True),
        ("python_full_version < '3.9'", False),  # and not by their letters
        ("python_version >= '3.9'", True),
        ("'3.13' != python_version", False),
        ("sys_platform in 'linux darwin'", True),
        ("os_name not in 'nt'", True),
    ],
)
def test_markers(marker, true):
    assert lock.fits(marker, HERE) is true


@pytest.mark.parametrize("marker", ["__import__('os')", "sys_platform == 1", "not sys_platform == 'linux'"])
def test_what_is_no_marker_is_not_run(marker):
    with pytest.raises((ValueError, KeyError)):
        lock.fits(marker, HERE)


def test_sizes():
    """All systems are told how large it is, before anything is fetched; with CUDA it is several times as much."""
    for system, machine in lock.SYSTEMS:
        cpu = lock.size("cpu", system, machine)
        assert 200e6 < cpu.download < cpu.disk < 3e9
        if system != "darwin":
            cuda = lock.size("cu130", system, machine)
            assert 4 * cpu.download < cuda.download < cuda.disk < 12e9
    assert lock.size("cu130", "darwin", "arm64") is None
    assert lock.size("cpu", "linux", "riscv64") is None
    assert str(lock.Size(450_000_000, 1_500_000_000)) == "0.5 GB to fetch, 1.5 GB on disk"


def test_wheels_of_a_folder(tmp_path):
    for name in (
        "torch-2.13.0%2Bcpu-cp313-cp313-manylinux_2_28_x86_64.whl",
        "scikit_image-0.26.0-cp313-cp313-win_amd64.whl",
        "PyYAML-6.0.4-py3-none-any.whl",
        "numpy-2.4.5-py3-none-any.whl",
    ):
        (tmp_path / name).touch()
    names = (("torch", "2.13.0+cpu"), ("scikit-image", "0.26.0"), ("pyyaml", "6.0.4"), ("numpy", "2.4.6"))
    packages = [lock.Locked(*name, "", ()) for name in names]
    assert lock.missing_wheels(tmp_path, packages) == ["numpy 2.4.6"]
