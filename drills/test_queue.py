"""A damaged queue must not keep the Collector from starting; what was in it is lost, and nothing else."""

import pytest

from drills.harness import say, unit_name
from watchpost.load_send import Signal

QUEUE = "/var/lib/watchpost/otel_collector/queue/exporter_otlp_http_loki_logs"
#: How the file is damaged: a shell command, `$file` being its name.
DAMAGE = {
    "garbage at its head": "head -c 8192 /dev/urandom | dd of=$file conv=notrunc bs=8192",
    "garbage behind its head": "head -c 65536 /dev/urandom | dd of=$file conv=notrunc bs=8192 seek=1",
    "garbage all over": "head -c $(stat -c %s $file) /dev/urandom | dd of=$file conv=notrunc bs=1M",
    "truncated to a half": "truncate -s $(($(stat -c %s $file) / 2)) $file",
    "emptied": "truncate -s 0 $file",
}


def damage_it(appliance, damage):
    """Stop the Collector and damage the queue that must be there."""
    appliance.shell(
        f"set -e; systemctl stop {unit_name('otel_collector')}; file={QUEUE}; test -s $file; {DAMAGE[damage]}"
    )


def test_without_its_check_a_damaged_queue_keeps_the_collector_from_starting(drill):
    appliance, unit = drill.appliance, unit_name("otel_collector")
    storage = {"file_storage/queue": {"recreate": False}}
    with appliance.collector_with(extensions=storage), appliance.unchecked("otel_collector"):
        with appliance.stopped("loki"), appliance.load(signals=(Signal.LOGS,)):
            drill.pause(2, 3)
        damage_it(appliance, "garbage all over")
        try:
            with pytest.raises(AssertionError, match="not ready within 20 s"):
                appliance.breaking(f"systemctl start {unit}", "otel_collector", deadline=20)
        finally:
            appliance.shell(f"systemctl stop {unit}; rm -f {QUEUE}")


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_queue_does_not_keep_the_collector_from_starting(drill, damage):
    appliance, unit = drill.appliance, unit_name("otel_collector")
    with appliance.stopped("loki"):
        with appliance.load(signals=(Signal.LOGS, Signal.TRACES), rate=500) as before:
            drill.pause(4, 5)
        damage_it(appliance, damage)
        _, ready = appliance.breaking(f"systemctl start {unit}", "otel_collector")
        drill.outcome.ready.extend(ready.values())
    with appliance.load() as after:
        drill.pause(2, 3)
    appliance.read_back(before, timeout=15)
    say(
        f"{len(before.lost[Signal.LOGS])} of {before.counts[Signal.LOGS].acknowledged} lines that waited there are lost"
    )
    assert before.lost[Signal.LOGS], "no line waited there, or nothing was damaged"
    assert not before.lost[Signal.TRACES], "the queue of another signal was touched"
    drill.assert_nothing_lost(after)
