"""A full disk refuses or delays, and once there is space again everything goes on by itself."""

import contextlib
import time

import pytest

from drills.harness import ENGINES, say
from watchpost.load_send import Signal

FULL_SECONDS = 12
VOLUME_MIB = 2048  # of a component's volume: twice what the guard wants free, before it starts a store again
FAST = 500  # MiB a second: as fast as a good disk is filled
AT_ONCE = 20_000  # MiB a second: all between two looks of the guard
GUARD = "disk_guard"
#: Seconds from an item's acknowledgement until the disk is full: what is on its way through the Collector and in
#: Tempo's memory then. What comes in the second after that, in which the guard stops the engine, counts as well.
GUARD_WINDOW = 1.7


def fill_the_disk_under_load(drill, *components, rate=FAST, kill=False, away=(), timeout=120):
    """Fill the disk of components, leave it full for a while, make room; read back what was acknowledged.

    Meanwhile engines can be `away`: then the queue must grow to take anything in.
    """
    with drill.appliance.small_volume(*components, mib=VOLUME_MIB) as volume:
        with drill.appliance.load(seconds=120) as running, contextlib.ExitStack() as stack:
            drill.pause(3, 5)
            for engine in away:
                stack.enter_context(drill.appliance.stopped(engine))
            volume.fill(rate)
            running.breaks.append(time.time())
            before = running.acknowledged()
            time.sleep(FULL_SECONDS)
            say(f"{volume.free_kib()} KiB were left, {running.acknowledged() - before} items acknowledged meanwhile")
            if kill:
                drill.appliance.kill_and_leave(*components)
                drill.pause(2, 4)
            volume.free()
            drill.outcome.ready.append(drill.appliance.wait_until_ready(*components))
            drill.pause(3, 5)
        drill.settle(running, timeout)
    return running


@pytest.mark.parametrize("component", ["otel_collector", *ENGINES])
def test_full_disk_loses_nothing(drill, component):
    fill_the_disk_under_load(drill, component)
    assert drill.outcome.acknowledged and not drill.outcome.lost, drill.outcome.remarks
    drill.assert_ready_in_time()


def test_full_disk_that_all_share_loses_nothing(drill):
    fill_the_disk_under_load(drill, "otel_collector", *ENGINES)
    assert drill.outcome.acknowledged and not drill.outcome.lost, drill.outcome.remarks
    drill.assert_ready_in_time()


@pytest.mark.parametrize("engine", ENGINES)
def test_disk_of_an_engine_filled_at_once_loses_what_came_before_the_guard_looked_at_most(drill, engine):
    running = fill_the_disk_under_load(drill, engine, rate=AT_ONCE)
    assert all(running.window(signal) <= GUARD_WINDOW for signal in Signal), drill.outcome.remarks
    drill.assert_ready_in_time()


# --- that these can fail ---


@pytest.mark.parametrize("engine", ENGINES)
def test_without_the_guard_a_full_disk_loses(drill, engine):
    """Loki goes on from memory, and loses when it is killed then; the others lose without that."""
    with drill.appliance.stopped(GUARD):
        running = fill_the_disk_under_load(drill, engine, kill=engine == "loki", timeout=30)
        assert running.lost[ENGINES[engine]]
    drill.assert_ready_in_time()


@pytest.mark.parametrize("engine", ENGINES)
def test_engine_killed_while_its_disk_is_full_comes_back_by_itself(drill, engine):
    """Even without the guard, which would have stopped it before."""
    with drill.appliance.stopped(GUARD):
        fill_the_disk_under_load(drill, engine, kill=True, timeout=30)
    drill.assert_ready_in_time()
