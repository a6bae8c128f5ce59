"""What the keeper of the disk decides, from what lies there."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parent.parent / "roles/retention/files/retention.py"
DAY = 86400
NOW = 1_800_000_000.0


@pytest.fixture(scope="module")
def retention():
    spec = importlib.util.spec_from_file_location("retention", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def days(retention):
    """Decide on one item of 10 bytes for each of the last ten days."""

    def days(room):
        items = [(NOW - day * DAY, 10) for day in range(10)]
        return retention.fitting(items, room, least=3600, most=30 * DAY, now=NOW) / DAY

    return days


def test_what_fits_is_kept_for_as_long_as_the_user_wants(days):
    assert days(room=100) == 30


@pytest.mark.parametrize(("room", "kept"), [(99, 9), (50, 5), (10, 1)])
def test_what_does_not_fit_is_kept_up_to_the_age_of_the_first_that_is_too_much(days, room, kept):
    assert days(room) == kept


@pytest.mark.parametrize("room", [9, -50])
def test_the_newest_is_kept_even_when_it_does_not_fit(days, room):
    assert days(room) == 1 / 24


def test_more_than_the_user_wants_is_never_kept(retention):
    assert retention.fitting([(NOW - 40 * DAY, 10)], 5, least=3600, most=30 * DAY, now=NOW) == 30 * DAY


@pytest.fixture
def stores(tmp_path):
    """Four days of blocks and of chunks, 100 kB a day; settings with a budget for all of it."""
    for day in range(4):
        block = tmp_path / f"tempo/blocks/single-tenant/{day}"
        block.mkdir(parents=True)
        (block / "data.parquet").write_bytes(b"x" * 100_000)
        (block / "meta.json").write_text(json.dumps({"endTime": f"2026-01-0{day + 1}T00:00:00.123456789Z"}))
        chunk = tmp_path / f"loki/chunks/fake/{day}"
        chunk.parent.mkdir(parents=True, exist_ok=True)
        chunk.write_bytes(b"x" * 100_000)
        written = 1_767_225_600 + day * DAY
        os.utime(chunk, (written, written))
    user = {"bytes": 1_000_000, "seconds": 365000 * DAY, "user": "root", "limits": ""}
    stores = {name: {"state": str(tmp_path / name)} | user for name in ("tempo", "loki")}
    return {"metrics": str(tmp_path / "retention.prom"), "least": 3600, "queues": {}, "stores": stores}


@pytest.fixture
def kept(retention, stores, monkeypatch):
    """Let the program look once, on the fifth day; return the retention that each engine is told, in its own words."""
    monkeypatch.setattr(retention.time, "time", lambda: 1_767_225_600.0 + 4 * DAY)
    monkeypatch.setattr(retention.os, "fchown", lambda *_: None)  # only root may

    def kept():
        retention.main(stores)
        texts = [(Path(store["state"]) / "overrides.yml").read_text() for store in stores["stores"].values()]
        tempo, loki = (json.loads(text)["overrides"] if text else None for text in texts)
        return (
            tempo and tempo["single-tenant"]["compaction"]["block_retention"],
            loki and loki["fake"]["retention_period"],
        )

    return kept


def test_while_all_fits_nothing_is_overridden(kept):
    assert kept() == (None, None)


def test_overrides_that_inherit_nothing_carry_the_other_limits_too(kept, stores, tmp_path):
    (tmp_path / "limits.json").write_text('{"global": {"max_bytes_per_trace": 7}, "compaction": {"mine": 1}}')
    stores["stores"]["tempo"] |= {"bytes": 400_000, "limits": str(tmp_path / "limits.json")}
    kept()
    said = json.loads((tmp_path / "tempo/overrides.yml").read_text())["overrides"]["single-tenant"]
    assert said["global"] == {"max_bytes_per_trace": 7}
    assert set(said["compaction"]) == {"mine", "block_retention"}


def test_over_the_budget_the_oldest_day_goes(kept, stores):
    for store in stores["stores"].values():
        store["bytes"] = 400_000  # of which 90 % may be filled: three days
    assert kept() == (f"{4 * DAY - 1}s", f"{4 * DAY}s")


def test_blocks_that_tempo_is_about_to_delete_make_no_others_go(kept, stores):
    """They stay on the disk for a quarter of an hour; the next look must not give up as much again."""
    stores["stores"]["tempo"]["bytes"] = 300_000  # of which 90 % may be filled: two days
    assert kept()[0] == f"{3 * DAY - 1}s"
    for day in (0, 1):
        block = Path(stores["stores"]["tempo"]["state"], f"blocks/single-tenant/{day}")
        (block / "meta.json").rename(block / "meta.compacted.json")
    assert kept()[0] is None, "the other two fit"


def test_what_was_found_is_told_to_prometheus(kept, stores):
    kept()
    said = Path(stores["metrics"]).read_text()
    assert f'watchpost_retention_seconds{{store="tempo"}} {365000 * DAY}\n' in said
    assert 'watchpost_retention_budget_bytes{store="loki"} 1000000\n' in said
    assert "# TYPE watchpost_retention_used_bytes gauge\n" in said


def test_damaged_queues_that_were_put_aside_are_told_to_prometheus(kept, stores, tmp_path):
    queue = tmp_path / "queue"
    stores["queues"] = {"otel_collector": str(queue)}
    kept()
    assert 'watchpost_queue_put_aside_bytes{component="otel_collector"} 0\n' in Path(stores["metrics"]).read_text()
    queue.mkdir()
    name = "exporter_otlp_http_loki_logs"
    for suffix, size in {
        "": 10000,
        ".2026-11-26T10:00:00.damaged": 200,
        ".2026-11-26T10:00:00.000Z.backup": 30,
    }.items():
        (queue / f"{name}{suffix}").write_bytes(b"x" * size)
    kept()
    assert 'watchpost_queue_put_aside_bytes{component="otel_collector"} 230\n' in Path(stores["metrics"]).read_text()


def test_engine_that_has_never_run_is_left_alone(retention, stores, tmp_path):
    for store in stores["stores"].values():
        store["state"] = str(tmp_path / "nowhere")
    retention.main(stores)
    assert not (tmp_path / "nowhere").exists()
