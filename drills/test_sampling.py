"""Tail sampling holds spans that are acknowledged and not yet on disk: what that costs, and what it must not cost."""

import pytest

from drills.harness import say
from drills.test_disk import GUARD, fill_the_disk_under_load
from watchpost.load_send import Signal

WAIT = 5  # seconds until a trace is decided, the role's default
#: Seconds from a span's acknowledgement until its trace is in the queue on disk: the wait, up to a second until the
#: sampler looks again, and half a second for a machine that does other things too.
UNDECIDED = WAIT + 1.5
QUEUE_MIB = 1
#: Everything passes the sampler, and is kept: what is missing was lost, not dropped on purpose.
KEEP_ALL = {"otel_collector_sampling_services": {"named, so that sampling is on": 100}}


@pytest.fixture(scope="module")
def sampler(appliance):
    """A Collector that samples, with a small queue behind the sampler."""
    appliance.site(
        "--tags=otel_collector",
        otel_collector_sampling_wait_seconds=WAIT,
        otel_collector_queue_mib=QUEUE_MIB,
        **KEEP_ALL,
    )
    yield
    appliance.site("--tags=otel_collector")


def test_killed_sampler_loses_the_undecided_spans_and_nothing_else(drill, sampler):
    with drill.appliance.load() as running:
        for _ in range(3):
            drill.pause(WAIT + 5, WAIT + 10)
            drill.kill(running, "otel_collector")
        drill.pause(2, 3)
    drill.settle(running)
    assert running.lost[Signal.TRACES], "nothing was undecided, so nothing is measured"
    assert not running.lost[Signal.LOGS] | running.lost[Signal.METRICS]
    assert running.window(Signal.TRACES) <= UNDECIDED
    drill.assert_ready_in_time()


def test_orderly_restart_of_the_sampler_loses_nothing(drill, sampler):
    with drill.appliance.load() as running:
        for _ in range(2):
            drill.pause(WAIT, WAIT + 5)
            drill.outcome.ready.append(drill.appliance.restart("otel_collector"))
        drill.pause(2, 3)
    drill.assert_nothing_lost(running)


def fill_the_queue_behind_the_sampler(drill, timeout=120):
    """Stop Tempo until far more has come than its queue holds."""
    with drill.appliance.load(seconds=120, rate=1000, signals=(Signal.TRACES,)) as running:
        with drill.appliance.stopped("tempo"):
            drill.pause(25, 30)
            say(f"{running.acknowledged()} spans acknowledged while Tempo was down")
        drill.pause(10, 15)
    drill.settle(running, timeout)


def test_full_queue_behind_the_sampler_loses_nothing(drill, sampler):
    fill_the_queue_behind_the_sampler(drill)
    assert drill.outcome.acknowledged and not drill.outcome.lost, drill.outcome.remarks


def test_without_waiting_a_full_queue_behind_the_sampler_loses(drill, sampler):
    queue = {"sending_queue": {"block_on_overflow": False}}
    with drill.appliance.collector_with(exporters={"otlp_http/tempo": queue}):
        fill_the_queue_behind_the_sampler(drill, timeout=30)
    assert drill.outcome.lost


def test_full_disk_behind_the_sampler_loses_nothing(drill, sampler):
    fill_the_disk_under_load(drill, "otel_collector", away=["tempo"])
    assert drill.outcome.acknowledged and not drill.outcome.lost, drill.outcome.remarks
    drill.assert_ready_in_time()


def test_without_the_guard_a_full_disk_behind_the_sampler_loses(drill, sampler):
    with drill.appliance.stopped(GUARD):
        running = fill_the_disk_under_load(drill, "otel_collector", away=["tempo"], timeout=30)
    assert running.lost[Signal.TRACES]
