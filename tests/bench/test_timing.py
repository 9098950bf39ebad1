"""The samplers, with scripted clocks and a scripted GPU."""

import gc
import itertools
from types import SimpleNamespace

import pytest

from bench.timing import REPLAY, Replay, device_samples, record, rounds_for, turns, wall_samples
from tests.scripted_gpu import Clock, FakeGpu


def test_turns_visit_all_in_every_round_and_start_one_further_each_time():
    assert "".join(turns("abc", 4)) == "abcbcacababc"


@pytest.mark.parametrize("one_round, expected", [(0.1, 10), (0.001, 15), (100.0, 7), (0.0, 15)])
def test_rounds_fit_the_budget_between_their_bounds(one_round, expected):
    assert rounds_for(1.0, one_round, 7, 15) == expected


def test_wall_samples_are_seconds_per_call():
    clock = Clock()
    samples = wall_samples({"slow": clock.work("slow", 0.01), "quick": clock.work("quick", 0.00005)}, clock)
    assert samples["slow"].calls == 1
    assert samples["slow"].seconds == pytest.approx([0.01] * 20)
    assert samples["quick"].calls == 6  # 0.3 ms at least
    assert samples["quick"].seconds == pytest.approx([0.00005] * 20)
    assert samples["quick"].host_us is None


def test_wall_samples_interleave():
    clock = Clock()
    wall_samples({name: clock.work(name, 0.01) for name in "ab"}, clock, least=4, most=4)
    assert "".join(clock.log) == "aabb" + "abbaabba"  # two estimates each, then turns


def test_collection_is_off_while_sampling_and_on_again_after():
    seen = []
    wall_samples({"a": lambda: seen.append(gc.isenabled())}, itertools.count().__next__)
    assert set(seen) == {False}
    assert gc.isenabled()


def test_device_samples_are_device_time_with_a_cold_cache_and_without_the_hosts():
    clock = Clock()
    gpu = FakeGpu(clock)
    calls = {"eager": gpu.kernel(800e-6, 40e-6), "fused": gpu.kernel(20e-6, 30e-6)}
    samples = device_samples(calls, gpu, clock)
    assert samples["eager"].seconds == pytest.approx([45e-6] * len(samples["eager"].seconds))
    assert samples["fused"].seconds == pytest.approx([35e-6] * len(samples["fused"].seconds))
    assert samples["eager"].host_us == pytest.approx(800)
    assert samples["fused"].host_us == pytest.approx(20)
    assert samples["eager"].calls == 1


def test_a_sample_whose_host_fell_behind_is_taken_again_behind_a_longer_queue():
    clock = Clock()
    gpu = FakeGpu(clock)
    host = itertools.chain([10e-6] * 7, [2e-3], itertools.repeat(10e-6))  # one hiccup, in the samples

    def call():
        gpu.kernel(next(host), 40e-6)()

    samples = device_samples({"a": call}, gpu, clock)
    assert samples["a"].seconds == pytest.approx([45e-6] * len(samples["a"].seconds))


def test_a_call_that_waits_for_the_device_has_a_wall_clock_s_time_and_says_so():
    clock = Clock()
    gpu = FakeGpu(clock)

    def waits():
        gpu.synchronize()
        gpu.kernel(10e-6, 40e-6)()

    samples = device_samples({"waits": waits, "plain": gpu.kernel(10e-6, 40e-6)}, gpu, clock)
    assert samples["waits"].clock == "wall clock, cold L2"
    assert samples["waits"].seconds == pytest.approx([55e-6] * len(samples["waits"].seconds))  # 10 of the host's
    assert samples["plain"].clock == "device events, cold L2"
    assert samples["plain"].seconds == pytest.approx([45e-6] * len(samples["plain"].seconds))


def test_all_samples_of_a_call_are_by_one_clock():
    clock = Clock()
    gpu = FakeGpu(clock)
    calls = itertools.count()

    def waits_later():
        if next(calls) > 10:
            gpu.synchronize()
        gpu.kernel(10e-6, 40e-6)()

    samples = device_samples({"a": waits_later}, gpu, clock)["a"]
    assert samples.clock == "wall clock, cold L2"
    assert len(samples.seconds) >= 10
    assert samples.seconds == pytest.approx([55e-6] * len(samples.seconds))


@pytest.mark.parametrize("calls_before", [0, 3, 8])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_one_that_raises_is_left_out_and_the_others_go_on(on_gpu, calls_before):
    clock = Clock()
    gpu = FakeGpu(clock)
    sound = gpu.kernel(10e-6, 40e-6) if on_gpu else clock.work("sound", 0.01)
    count = itertools.count()

    def breaks():
        if next(count) >= calls_before:
            raise ArithmeticError("no more")
        sound()

    calls = {"breaks": breaks, "sound": sound}
    found = device_samples(calls, gpu, clock) if on_gpu else wall_samples(calls, clock)
    assert list(found) == ["sound", "breaks"]
    assert isinstance(found["breaks"], ArithmeticError)
    assert len(found["sound"].seconds) >= 10
    assert next(count) == calls_before + 1


def test_replay_reads_samples_back_as_differences():
    replay = Replay()
    replay.load([0.25, 1e-7])
    assert [replay() for _ in range(4)] == [0.0, 0.25, 0.0, 1e-7]


def test_record_makes_pytest_benchmark_keep_exactly_the_samples():
    class Fixture:
        def pedantic(self, target, rounds):
            self.data = []
            for _ in range(rounds):
                start = REPLAY()
                target()
                self.data.append(REPLAY() - start)

    fixture = Fixture()
    record(fixture, [3e-6, 2e-3])
    assert fixture.data == [3e-6, 2e-3]


def test_record_tells_of_a_fixture_with_a_clock_of_its_own():
    own = SimpleNamespace(pedantic=lambda target, rounds: target())
    with pytest.raises(RuntimeError, match="kept other times than the samples"):
        record(own, [3e-6, 2e-3])


def test_a_call_of_many_launches_fits_into_the_queue():
    """The driver's queue holds about 1,024: a lead of hundreds of flushes left no room for a net's 900 launches."""
    clock = Clock()
    gpu = FakeGpu(clock)
    entries = []

    def queue(seconds, plain=gpu.queue):
        entries.append(seconds)
        plain(seconds)

    gpu.queue = queue

    def call():
        for _ in range(900):
            gpu.kernel(20e-6, 2e-6)()

    samples = device_samples({"net": call}, gpu, clock, least=1, most=1)
    assert len(samples["net"].seconds) == 1
    before = len(entries)
    device_samples({"net": call}, gpu, clock, least=1, most=1)
    calls_made, around = 5 + 1 + 1, 4  # a flush, an idling, two events
    assert len(entries) - before <= calls_made * 900 + (calls_made - 5) * around + 3 * (around + 1)
