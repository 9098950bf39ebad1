"""Importing on versions that it does not run on: one clear message."""

import subprocess
import sys
import textwrap

import pytest

from triton_dirac.runtime.supported import check_interpreter, check_torch, check_triton, release

pytestmark = pytest.mark.cpu


@pytest.mark.parametrize("version", ["2.11.0+cu130", "2.14.1", "3.0.0a0+git12"])
def test_torch(version):
    check_torch(version)


@pytest.mark.parametrize("version", ["2.10.0", "1.13.1+cpu"])
def test_torch_too_old(version):
    with pytest.raises(ImportError, match=rf"needs torch 2\.11 or newer, found {version}".replace("+", r"\+")):
        check_torch(version)


@pytest.mark.parametrize("version", ["3.6.0", "3.7.1", "3.8.0+git5", "3.9.0"])
def test_triton(version):
    check_triton(version)


@pytest.mark.parametrize("version", ["3.5.1", "3.10.0", "2.3.1", "4.0.0"])
def test_triton_of_another_time(version):
    with pytest.raises(ImportError, match=rf"needs Triton from 3\.6 on and below 3\.10, found {version}"):
        check_triton(version)


@pytest.mark.parametrize("triton, numpy", [("3.6.0", "2.3.5"), ("3.7.1", "2.5.1")])
def test_numpy_for_the_interpreter(triton, numpy):
    check_interpreter(triton, numpy)


@pytest.mark.parametrize("triton, numpy", [("3.6.0", "2.4.0"), ("3.6.2", "2.10.1")])
def test_numpy_too_new_for_the_interpreter(triton, numpy):
    with pytest.raises(ImportError, match=rf"Triton {triton} does not work with numpy {numpy} .* numpy<2\.4"):
        check_interpreter(triton, numpy)


@pytest.mark.parametrize("package, version", [("torch", "2.10.0"), ("triton", "3.5.1")])
def test_import_ends_in_one_line(package, version):
    program = f"""
        import {package}
        {package}.__version__ = {version!r}
        try:
            import triton_dirac
        except ImportError as error:
            print(error)
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert len(ran.stdout.splitlines()) == 1
    assert f"found {version}" in ran.stdout


def test_a_version_without_numbers():
    with pytest.raises(ImportError, match="'unknown'"):
        release("unknown")
