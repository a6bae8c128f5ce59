"""A full disk refuses or delays, and once there is space again everything goes on by itself."""

import time

import pytest

from drills.harness import ENGINES, say
from watchpost.load_send import Signal

FULL_SECONDS = 12
ENGINE_MIB = 2048  # of an engine's volume: twice what the guard wants free, before it starts an engine again
FAST = 500  # MiB a second: as fast as a good disk is filled
AT_ONCE = 20_000  # MiB a second: all between two looks of the guard
GUARD = "disk_guard"
#: Seconds from an item's acknowledgement until the disk is full: what is on its way through the Collector and in
#: Tempo's memory then. What comes in the second after that, in which the guard stops the engine, counts as well.
GUARD_WINDOW = 1.7


def test_full_disk_of_the_queue_loses_nothing(drill):
    with drill.appliance.small_volume("otel_collector", 64) as volume:
        with drill.appliance.stopped("loki"), drill.appliance.load(seconds=90) as running:
            drill.pause(3, 5)
            volume.fill(FAST)
            say(f"the queue's volume is full: {volume.free_kib()} KiB are left")
            before = running.acknowledged()
            time.sleep(FULL_SECONDS)
            say(f"{running.acknowledged() - before} items acknowledged while it was full")
            volume.free()
            drill.pause(3, 5)
        drill.assert_nothing_lost(running, 120)


def fill_the_disk_under_load(drill, engine, rate=FAST, kill=False):
    """Fill an engine's disk, leave it full for a while, make room; read back what was acknowledged."""
    with drill.appliance.small_volume(engine, ENGINE_MIB) as volume:
        with drill.appliance.load(seconds=120) as running:
            drill.pause(3, 5)
            volume.fill(rate)
            running.breaks.append(time.time())
            say(f"the volume of {engine} is full: {volume.free_kib()} KiB are left")
            time.sleep(FULL_SECONDS)
            if kill:
                drill.appliance.kill_and_leave(engine)
                drill.pause(2, 4)
            volume.free()
            drill.outcome.ready.append(drill.appliance.wait_until_ready(engine))
            drill.pause(3, 5)
        drill.settle(running, 120)
    return running


@pytest.mark.parametrize("engine", ENGINES)
def test_full_disk_of_an_engine_loses_nothing(drill, engine):
    fill_the_disk_under_load(drill, engine)
    assert drill.outcome.acknowledged and not drill.outcome.lost, drill.outcome.remarks
    drill.assert_ready_in_time()


@pytest.mark.parametrize("engine", ENGINES)
def test_disk_of_an_engine_filled_at_once_loses_what_came_before_the_guard_looked_at_most(drill, engine):
    running = fill_the_disk_under_load(drill, engine, AT_ONCE)
    assert all(running.window(signal) <= GUARD_WINDOW for signal in Signal), drill.outcome.remarks
    drill.assert_ready_in_time()


# --- that these can fail ---


@pytest.mark.parametrize("engine", ENGINES)
def test_without_the_guard_a_full_disk_loses(drill, engine):
    """Loki goes on from memory, and loses when it is killed then; the others lose without that."""
    with drill.appliance.stopped(GUARD):
        running = fill_the_disk_under_load(drill, engine, kill=engine == "loki")
        assert running.lost[ENGINES[engine]]
    drill.assert_ready_in_time()


@pytest.mark.parametrize("engine", ENGINES)
def test_engine_killed_while_its_disk_is_full_comes_back_by_itself(drill, engine):
    """Even without the guard, which would have stopped it before."""
    with drill.appliance.stopped(GUARD):
        fill_the_disk_under_load(drill, engine, kill=True)
    drill.assert_ready_in_time()
