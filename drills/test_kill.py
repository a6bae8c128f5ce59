"""Whatever is killed under load, at whatever moment, is ready again by itself, and nothing acknowledged is lost."""

import pytest

from drills.harness import ENGINES, IN_MEMORY, NO_RETRY, exporters
from watchpost.load_send import Signal

KILLS = 3
#: Seconds from a span's acknowledgement until it is in Tempo's write-ahead log: a moment in the Collector's queue, then
#: Tempo's trace_idle_period and flush_check_period, and half a second for a machine that does other things too.
TEMPO_WINDOW = 1.7
#: Seconds after a kill in which what waited has arrived: the first pause between two tries of the Collector is 5 s.
CAUGHT_UP = 15


def kill_under_load(drill, *components, kills=KILLS, apart=3):
    with drill.appliance.load() as running:
        drill.pause(3, 6)
        for _ in range(kills):
            drill.kill(running, *components)
            drill.pause(apart, apart + 5)
    return running


@pytest.mark.parametrize("component", ["otel_collector", "loki", "prometheus"])
def test_killed_component_loses_nothing(drill, component):
    drill.assert_nothing_lost(kill_under_load(drill, component))


def test_killed_tempo_loses_its_stated_window_at_most(drill):
    running = kill_under_load(drill, "tempo", apart=CAUGHT_UP)
    drill.settle(running)
    assert not running.lost[Signal.LOGS] | running.lost[Signal.METRICS]
    assert running.window(Signal.TRACES) <= TEMPO_WINDOW
    drill.assert_ready_in_time()


def test_everything_killed_at_once_loses_the_window_of_tempo_at_most(drill):
    running = kill_under_load(drill, "otel_collector", *ENGINES, apart=CAUGHT_UP)
    drill.settle(running)
    assert not running.lost[Signal.LOGS] | running.lost[Signal.METRICS]
    assert running.window(Signal.TRACES) <= TEMPO_WINDOW
    drill.assert_ready_in_time()


def kill_loki_with_a_busy_stream(drill):
    with drill.appliance.load(rate=2000, signals=(Signal.LOGS,)) as running:
        for _ in range(4):
            drill.pause(1, 3)
            drill.kill(running, "loki")
    drill.settle(running, timeout=30)


def test_busy_stream_outlasts_kills_of_loki(drill):
    kill_loki_with_a_busy_stream(drill)
    assert not drill.outcome.lost, drill.outcome.remarks
    drill.assert_ready_in_time()


# --- that these can fail ---


def test_with_requests_to_loki_at_once_a_busy_stream_loses_lines(drill):
    """By chance: Loki must log the lines of two requests in another order than it numbers them, and then be killed."""
    with drill.appliance.collector_with(exporters={"otlp_http/loki": {"sending_queue": {"num_consumers": 10}}}):
        for _ in range(5):
            if not drill.outcome.lost:
                kill_loki_with_a_busy_stream(drill)
    assert drill.outcome.lost


def test_without_a_queue_on_disk_a_killed_collector_loses(drill):
    with drill.appliance.collector_with(**exporters(drill.appliance, IN_MEMORY)), drill.appliance.load() as running:
        drill.pause(3, 6)
        with drill.appliance.stopped("loki"):  # so that something waits at that moment
            drill.pause(1, 2)
            drill.kill(running, "otel_collector")
    drill.settle(running, timeout=20)
    assert drill.outcome.lost


@pytest.mark.parametrize("component", ENGINES)
def test_without_retries_a_killed_engine_loses(drill, component):
    with drill.appliance.collector_with(**exporters(drill.appliance, NO_RETRY)):
        running = kill_under_load(drill, component, kills=1)
        drill.settle(running, timeout=20)
    assert running.lost[ENGINES[component]]
