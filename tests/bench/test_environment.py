"""What results say about the machine; nvidia-smi and git are scripted."""

import json

from bench.environment import clocks, code, environment, output_of


def script(**answers):
    """A runner that answers by the first answer whose key is part of the command."""

    def run(command):
        text = " ".join(command)
        return next((answer for key, answer in answers.items() if key in text), None)

    return run


def test_clocks_are_numbers_and_what_a_gpu_does_not_tell_is_none():
    assert clocks(script(clocks="1980, 2619, 41, [N/A]")) == {
        "sm_mhz": 1980.0,
        "memory_mhz": 2619.0,
        "temperature_c": 41.0,
        "power_w": None,
    }


def test_without_nvidia_smi_there_are_no_clocks():
    assert clocks(script()) is None
    assert output_of(["a-program-that-is-not-there"]) is None
    assert output_of(["false"]) is None


def test_environment_says_what_a_reader_needs():
    run = script(status=" M bench/lab.py", parse="0123abc", driver="570.1")
    found = environment("pytest --benchmark-only", {"sm_mhz": 1.0}, {"sm_mhz": 2.0}, 0.25, run)
    assert (found["commit"], found["dirty"]) == ("0123abc", True)
    assert found["command"] == "pytest --benchmark-only"
    assert (found["clocks_before"], found["clocks_after"]) == ({"sm_mhz": 1.0}, {"sm_mhz": 2.0})
    assert found["load_before"] == 0.25
    for name in ("torch", "triton", "cpu", "cores", "threads", "python", "platform", "date"):
        assert found[name], name
    assert {"gpu", "driver", "cuda"} <= found.keys()
    json.dumps(found)


def test_a_copy_without_git_has_the_commit_that_it_is_told(monkeypatch, tmp_path):
    """Not the commit of another project that it lies in."""
    monkeypatch.setattr("bench.environment.ROOT", tmp_path)
    monkeypatch.setenv("TRITON_DIRAC_COMMIT", "4567def")
    run = script(status=" M theirs.py", parse="0123abc")
    assert (environment("x", run=run)["commit"], environment("x", run=run)["dirty"]) == ("4567def", None)
    monkeypatch.delenv("TRITON_DIRAC_COMMIT")
    assert environment("x", run=run)["commit"] is None


def test_a_copy_s_commit_is_the_one_that_it_is_told_though_it_has_a_repository(monkeypatch):
    monkeypatch.setenv("TRITON_DIRAC_COMMIT", "4567def")
    found = environment("x", run=script(status=" M bench/lab.py", parse="0123abc"))
    assert (found["commit"], found["dirty"]) == ("4567def", None)


def test_code_is_told_from_other_code(monkeypatch, tmp_path):
    monkeypatch.setattr("bench.environment.ROOT", tmp_path)
    seen = [code()]
    (tmp_path / "bench").mkdir()
    for name, text in (("a.py", "1"), ("a.py", "2"), ("b.py", "2")):
        (tmp_path / "bench" / name).write_text(text)
        seen.append(code())
    (tmp_path / "bench" / "notes.txt").write_text("no code")
    assert len(set(seen)) == 4
    assert code() == seen[-1]


def test_dirty_is_no_when_nothing_changed_and_unknown_outside_git():
    assert environment("x", run=script(status="", parse="0123abc"))["dirty"] is False
    outside = environment("x", run=script())
    assert (outside["commit"], outside["dirty"]) == (None, None)
