"""Triton's cache in another place than it was filled in: a cache made of files, without Triton."""

import json
import shutil

import pytest

from triton_dirac.runtime import compiled_cache
from triton_dirac.runtime.compiled_cache import MARK, mark, relocate, relocate_if_moved


@pytest.fixture
def cache(tmp_path):
    """Two kernels, as Triton leaves them, and a launcher, which has no group."""
    cache = tmp_path / "filled"
    for key in ("KEY1", "KEY2"):
        (cache / key).mkdir(parents=True)
        names = [f"gemm.{kind}" for kind in ("ttir", "cubin", "json")]
        for name in names:
            (cache / key / name).write_text("")
        paths = {name: str(cache / key / name) for name in names}
        (cache / key / "__grp__gemm.json").write_text(json.dumps({"child_paths": paths}))
    (cache / "KEY3").mkdir()
    (cache / "KEY3" / "__triton_launcher.so").write_text("")
    mark(cache)
    return cache


def paths(cache):
    found = [json.loads(group.read_text())["child_paths"] for group in sorted(cache.glob("*/__grp__*"))]
    return [path for group in found for path in group.values()]


def test_a_copied_cache_is_put_right_once(cache, tmp_path):
    copy = tmp_path / "copied" / "here"
    shutil.copytree(cache, copy)
    shutil.rmtree(cache)
    assert relocate_if_moved(copy) == 2
    assert len(paths(copy)) == 6
    assert all(path.startswith(f"{copy}/KEY") for path in paths(copy))
    assert relocate_if_moved(copy) == 0
    again = tmp_path / "moved again"
    copy.rename(again)
    assert relocate_if_moved(again) == 2


def test_a_cache_that_did_not_move_is_not_even_listed(cache, monkeypatch):
    monkeypatch.setattr(compiled_cache, "relocate", lambda cache: pytest.fail("listed"))
    assert relocate_if_moved(cache) == 0
    assert relocate_if_moved(cache.parent / "none") == 0
    (cache / MARK).unlink()  # somebody else's, of whatever size
    assert relocate_if_moved(cache) == 0


def test_incomplete_and_broken_groups_are_left_for_triton_to_compile_again(cache, tmp_path):
    (cache / "KEY1" / "gemm.cubin").unlink()
    (cache / "KEY2" / "__grp__gemm.json").write_text('{"child_pa')
    copy = tmp_path / "copy"
    shutil.copytree(cache, copy)
    before = (copy / "KEY1" / "__grp__gemm.json").read_text()
    assert relocate(copy) == 0
    assert (copy / "KEY1" / "__grp__gemm.json").read_text() == before


def test_a_broken_mark_is_no_mark(cache):
    for text in ("", "[]", '{"path": ', "[" * 100_000):
        (cache / MARK).write_text(text)
        assert relocate_if_moved(cache) == 0


def test_a_cache_that_cannot_be_written_is_warned_of(cache, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(cache, copy)

    def full(path, text):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(compiled_cache.files, "replace", full)
    with pytest.warns(UserWarning, match="are not used: .*Read-only"):
        assert relocate_if_moved(copy) == 0


def test_no_cache_is_nothing_to_put_right(tmp_path):
    assert relocate(tmp_path / "none") == 0
    assert not (tmp_path / "none").exists()
