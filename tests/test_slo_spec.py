"""Objectives that cannot be meant are refused, each wrong field by name; those of OpenSLO are taken over as a whole."""

import os
import subprocess
import sys
from pathlib import Path

import promtool
import pytest
import yaml

from watchpost.slo import openslo, rules, spec

PROJECT = Path(__file__).resolve().parent.parent
DEFAULTS = yaml.safe_load((PROJECT / "group_vars/all/slo.yml").read_text())
SOUND = {"name": "sound", "service": "shop", "objective": 0.99, "availability": {}}
FAST = {"name": "fast", "service": "shop", "objective": 0.99, "latency": {"threshold": "500ms"}}
RATIO = {"name": "ratio", "service": "shop", "objective": 0.99}


def problems(*slos, time_scale=1):
    with pytest.raises(spec.SpecError) as refusal:
        spec.read(list(slos), time_scale)
    return refusal.value.problems


def without(slo, field):
    return {name: value for name, value in slo.items() if name != field}


@pytest.mark.parametrize(
    "wrong, says",
    [
        (SOUND | {"objective": 1.2}, "objective: 1.2 is not below 1"),
        (SOUND | {"objective": 1}, "objective: 1 is not below 1"),
        (SOUND | {"objective": 0}, "objective: 0 is not above 0"),
        (SOUND | {"objective": "many"}, "objective: 'many' is not a number"),
        (SOUND | {"name": "Not Good"}, "name: Not Good is not a name of small letters, digits and dashes"),
        (SOUND | {"service": ""}, "service: '' is not a name"),
        (SOUND | {"window": "3d"}, "window: 3d is not between 7d and 366d"),
        (SOUND | {"window": "36h"}, "window: 36h is not a number of whole days or weeks"),
        (SOUND | {"window": "a month"}, "window: a month is no length of time, such as 500ms, 2.5s or 30d"),
        (SOUND | {"min_bad_events": 0}, "min_bad_events: 0 is below 1"),
        (SOUND | {"objectve": 0.9}, "objectve: is not a field here; did you mean objective?"),
        (without(SOUND, "objective"), "objective: is missing"),
        (without(SOUND, "availability"), "has no indicator; it must have exactly one of availability, latency, ratio"),
        (SOUND | {"latency": FAST["latency"]}, "has availability and latency; it must have exactly one"),
        (SOUND | {"availability": {"of": "clicks"}}, "availability.of: clicks is not 'requests' or 'spans'"),
        (SOUND | {"availability": {"were": ""}}, "availability.were: is not a field here; did you mean where?"),
        (SOUND | {"availability": {"where": "route=/"}}, "availability.where: route=/ is not a list of matchers"),
        (SOUND | {"availability": {"bad": 'a="1"} or b{c="2"'}}, "is not a list of matchers of labels"),
        (FAST | {"latency": {"threshold": "600ms"}}, "600ms is not the upper bound of a bucket; nearest are 500ms"),
        (FAST | {"latency": {"threshold": "1m"}}, "60s is not the upper bound of a bucket; nearest is 10s"),
        (FAST | {"latency": {"threshold": 500}}, "latency.threshold: 500 is no length of time"),
        (FAST | {"latency": {}}, "latency.threshold: is missing"),
        (RATIO | {"ratio": {"total": "sum(rate(x[$window]))"}}, "ratio: has either good or bad, beside total"),
        (RATIO | {"ratio": {"good": "x", "total": "y"}}, "ratio.good: x has no [$window]"),
        (RATIO | {"ratio": {"bad": "rate(x[$window]) + rate(y[5m])", "total": "rate(x[$window])"}}, "the range [5m]"),
        (RATIO | {"ratio": {"bad": "increase(x[$window])", "total": "rate(x[$window])"}}, "uses increase(), where"),
        (RATIO | {"ratio": {"bad": "irate(x[$window])", "total": "rate(x[$window])"}}, "uses irate(), where"),
        (RATIO | {"ratio": {"bad": 'rate(x{a="[$window]"}[5m])', "total": "rate(x[$window])"}}, "has no [$window]"),
        ("sound", "'sound' is not a mapping of fields"),
    ],
)  # fmt: skip
def test_wrong_field_is_named(wrong, says):
    found = problems(SOUND | {"name": "other"}, wrong)
    assert any(problem.startswith("watchpost_slos[1]") and says in problem for problem in found), found


def test_what_stands_in_quotes_is_neither_a_range_nor_a_function():
    quoted = """sum(rate(x{code=~"[45]..", a='[5m]', b=`irate(`, c="\\"[6h]"}[$window]))"""
    assert spec.read([RATIO | {"ratio": {"bad": quoted, "total": quoted}}]).slos[0].ratio.bad == quoted


def test_all_that_is_wrong_is_named_at_once():
    found = problems(SOUND | {"objective": 2}, FAST | {"window": "1d"})
    assert [problem.split(":")[0] for problem in found] == ["watchpost_slos[0].objective", "watchpost_slos[1].window"]


def test_two_objectives_may_not_have_one_name():
    assert problems(SOUND, FAST, SOUND) == ["watchpost_slos[2].name: sound is the name of watchpost_slos[0] too"]


@pytest.mark.parametrize(
    "scale, says", [(0.5, "0.5 is below 1"), (100, "100 is above 60"), ("x", "'x' is not a number")]
)
def test_clock_of_drills_has_bounds(scale, says):
    assert problems(SOUND, time_scale=scale) == [f"watchpost_slo_time_scale: {says}"]


def test_objective_that_outlives_the_metrics_is_refused():
    objectives = spec.read([SOUND, SOUND | {"name": "long", "window": "90d", "objective": 0.999}])
    [problem] = rules.problems(objectives, 35)
    assert problem.startswith("prometheus_retention_days is 35, but watchpost_slos[1] (long) counts over 90 days")
    assert rules.problems(objectives, 90) == []


def test_objective_that_no_outage_would_page_for_is_refused():
    [problem] = rules.problems(spec.read([SOUND | {"objective": 0.8}]), 35)
    assert "spares so many bad events that not even a whole outage would page; it must be above 0.8333" in problem
    assert rules.problems(spec.read([SOUND | {"objective": 0.84}]), 35) == []


def test_pair_that_could_never_fire_is_left_out():
    [group] = rules.rule_groups(spec.read([SOUND | {"objective": 0.9}]))
    [page] = [rule["expr"] for rule in group["rules"] if rule.get("alert") == "SloBurnFast"]
    assert "ratio6h" in page and "ratio1h" not in page, "a burn rate of 14.4 is 144 % of the events"


@pytest.mark.parametrize(
    "window, rates", [("30d", [14.4, 6, 3, 1]), ("4w", [13.44, 5.6, 2.8, 1]), ("7d", [3.36, 1.4, 1, 1])]
)
def test_burn_rates_follow_from_the_window(window, rates):
    slo = spec.read([SOUND | {"window": window}]).slos[0]
    assert [pair.rate(slo.window) for pairs in rules.burns(slo).values() for pair in pairs] == rates


def test_drills_clock_shortens_every_window_and_delay():
    [group] = rules.rule_groups(spec.read([FAST], 20))
    [alert] = [rule for rule in group["rules"] if rule.get("alert") == "SloLatencyHigh"]
    by_name = {rule["record"]: rule["expr"] for rule in group["rules"] if "record" in rule}
    assert group["interval"] == "1s" and alert["for"] == "15s"
    assert by_name["slo:sli_total:rate1h"].count("[3m]") == 1
    assert "[36h]" in by_name["slo:sli_total:rate30d"]


def test_rules_of_every_kind_are_sound_for_prometheus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("rules")
    slos = [
        *DEFAULTS["watchpost_slos"],
        SOUND | {"service": 'quoted "name" \\ ü'},
        FAST | {"latency": {"of": "spans", "threshold": "1s", "where": 'span_kind="SPAN_KIND_SERVER"'}, "window": "7d"},
        RATIO | {"ratio": {"bad": "rate(failed_total[$window])", "total": "rate(all_total[$window])"}},
        RATIO | {"name": "other", "ratio": {"good": "rate(a[$window])", "total": "rate(b[$window])"}},
    ]
    for scale in (1, 7):
        (directory / "rules.yml").write_text(yaml.safe_dump({"groups": rules.rule_groups(spec.read(slos, scale))}))
        said = promtool.run(promtool.program(directory), "check", "rules", "--lint-fatal", directory / "rules.yml")
        assert "SUCCESS" in said and "FAILED" not in said, said


# --- OpenSLO

INDICATOR = {
    "ratioMetric": {
        "counter": True,
        "good": {"metricSource": {"type": "Prometheus", "spec": {"query": 'sum(done_total{code!="500"})'}}},
        "total": {"metricSource": {"type": "Prometheus", "spec": {"query": "done_total"}}},
    }
}
THEIRS = {
    "apiVersion": "openslo/v1",
    "kind": "SLO",
    "metadata": {"name": "jobs-done", "displayName": "Jobs", "labels": {"team": "a"}},
    "spec": {
        "service": "jobs",
        "description": "Jobs are not done.",
        "indicator": {"metadata": {"name": "done"}, "spec": INDICATOR},
        "timeWindow": [{"duration": "4w", "isRolling": True}],
        "budgetingMethod": "Occurrences",
        "objectives": [{"displayName": "Good", "target": 0.995}],
    },
}
OURS = {
    "name": "jobs-done",
    "service": "jobs",
    "objective": 0.995,
    "window": "4w",
    "impact": "Jobs are not done.",
    "ratio": {"good": 'sum(rate(done_total{code!="500"}[$window]))', "total": "sum(rate(done_total[$window]))"},
}


def theirs(**changed):
    return THEIRS | {"spec": THEIRS["spec"] | changed}


def with_ratio(ratio):
    return theirs(indicator={"spec": {"ratioMetric": ratio}})


def with_source(source, counter=True):
    metric = {"metricSource": source}
    return with_ratio({"counter": counter, "good": metric, "total": metric})


def with_query(query, counter=True):
    return with_source({"type": "Prometheus", "spec": {"query": query}}, counter)


def test_objective_of_openslo_is_taken_over():
    assert openslo.convert(yaml.safe_dump(THEIRS)) == [OURS]
    spec.read([OURS])


def test_indicator_by_name_and_objects_that_only_describe_are_understood():
    sli = {"apiVersion": "openslo/v1", "kind": "SLI", "metadata": {"name": "done"}, "spec": INDICATOR}
    service = {"apiVersion": "openslo/v1", "kind": "Service", "metadata": {"name": "jobs"}, "spec": {}}
    slo = theirs(indicatorRef="done", objectives=[{"targetPercent": 99.5}])
    del slo["spec"]["indicator"]
    assert openslo.convert(yaml.safe_dump_all([service, sli, slo])) == [OURS]


@pytest.mark.parametrize(
    "query, counter, ours",
    [
        ("sum(rate(done_total[5m]))", True, "sum(rate(done_total[$window]))"),
        ("sum(rate(done_total[{{.window}}]))", False, "sum(rate(done_total[$window]))"),
        ('sum(increase(done_total{a="[1h]"}[1h]))', False, 'sum(rate(done_total{a="[1h]"}[$window]))'),
        ('sum(rate(done_total{code=~"[45].."}[5m]))', True, 'sum(rate(done_total{code=~"[45].."}[$window]))'),
        ('rate(x{a="increase("}[1h])', False, 'rate(x{a="increase("}[$window])'),
        ('sum(rate(x{a="[5m]"}))', False, None),
        ("sum(increase(done_total[1h]))", False, "sum(rate(done_total[$window]))"),
        ("done_total", False, None),
        ("sum(done_total) - sum(failed_total)", True, None),
        ("max_over_time(rate(x[5m])[1h:1m])", True, None),
    ],
)
def test_query_is_one_over_the_window_or_refused(query, counter, ours):
    text = yaml.safe_dump(with_query(query, counter))
    if ours:
        assert openslo.convert(text)[0]["ratio"]["total"] == ours
    else:
        with pytest.raises(spec.SpecError, match=r"ratioMetric.total.metricSource.spec.query: .* is neither"):
            openslo.convert(text)


@pytest.mark.parametrize(
    "slo, says",
    [
        (theirs(budgetingMethod="Timeslices"), "spec.budgetingMethod: Timeslices is not taken over, only Occurrences"),
        (theirs(alertPolicies=["page"]), "spec.alertPolicies: cannot be taken over"),
        (theirs(composite={"a": 1}), "spec.composite: cannot be taken over"),
        (theirs(timeWindow=[{"duration": "1w", "isRolling": False}]), "spec.timeWindow: only one window with"),
        (theirs(timeWindow=[{"duration": "1M", "isRolling": True}]), "timeWindow[0].duration: 1M is not in"),
        (theirs(objectives=[{"target": 0.9}, {"target": 0.99}]), "spec.objectives: 2 of them; exactly one"),
        (theirs(objectives=[{"target": 0.9, "op": "lte", "value": 5}]), "spec.objectives[0].op: cannot be taken over"),
        (theirs(indicator={"spec": {"thresholdMetric": {}}}), "indicator.spec.thresholdMetric: cannot be taken"),
        (theirs(indicatorRef="gone"), "spec.indicatorRef: the file holds no SLI gone"),
        (THEIRS | {"apiVersion": "openslo/v1alpha"}, "is not of openslo/v1"),
        (THEIRS | {"kind": "AlertPolicy"}, "AlertPolicy jobs-done: is not taken over"),
        ({"apiVersion": "openslo/v1", "kind": "Service", "metadata": {"name": "x"}}, "the file holds no SLO"),
    ],
)  # fmt: skip
def test_what_would_be_lost_is_refused_by_name(slo, says):
    with pytest.raises(spec.SpecError) as refusal:
        openslo.convert(yaml.safe_dump(slo))
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    "wrong, says",
    [
        (with_ratio({"good": {}, "total": {}}), "ratioMetric.good.metricSource: is missing"),
        (with_ratio({"good": [], "total": {}}), "ratioMetric.good: [] is not a mapping of fields"),
        (with_ratio({"good": None}), "indicator.spec.ratioMetric: must have total, and either good or bad"),
        (with_ratio(None), "indicator.spec.ratioMetric: None is not a mapping of fields"),
        (theirs(indicator={"spec": {}}), "indicator.spec.ratioMetric: is missing"),
        (theirs(indicator=None), "SLO jobs-done.spec.indicator: is missing"),
        (theirs(indicator={}), "SLO jobs-done.spec.indicator.spec: is missing"),
        (with_source({"type": "Prometheus"}), "ratioMetric.total.metricSource.spec: is missing"),
        (with_source({"spec": {}}), "ratioMetric.total.metricSource.spec.query: is missing"),
        (with_source({"spec": "up"}), "ratioMetric.total.metricSource.spec: 'up' is not a mapping of fields"),
        (with_source({"type": 5, "spec": {"query": "x"}}), "ratioMetric.total.metricSource.type: 5 is not Prometheus"),
        (with_source({"spec": {"query": ["x"]}}), "ratioMetric.total.metricSource.spec.query: ['x'] is not text"),
        (with_source({"spec": {"query": "x"}}, "often"), "ratioMetric.counter: 'often' is not true or false"),
        (theirs(timeWindow={"duration": "4w", "isRolling": True}), "spec.timeWindow: is not a list"),
        (theirs(timeWindow=["4w"]), "spec.timeWindow[0]: '4w' is not a mapping of fields"),
        (theirs(timeWindow=[{"duration": "4w", "begins": 1}]), "spec.timeWindow[0].begins: cannot be taken over"),
        (theirs(objectives={"target": 0.9}), "spec.objectives: is not a list"),
        (theirs(objectives=[0.9]), "spec.objectives[0]: 0.9 is not a mapping of fields"),
        (theirs(objectives=[{"target": "most"}]), "spec.objectives[0].target: 'most' is not a number"),
        (theirs(indicatorRef=["done"]), "spec.indicatorRef: ['done'] is not text"),
        (THEIRS | {"metadata": {"labels": {}}}, "SLO without a name.metadata.name: is missing"),
        (THEIRS | {"metadata": ["jobs-done"]}, "SLO without a name.metadata: ['jobs-done'] is not a mapping of fields"),
        (without(THEIRS, "metadata"), "SLO without a name.metadata: is missing"),
        (THEIRS | {"metadata": {"name": "x", "owner": "y"}}, "SLO x.metadata.owner: cannot be taken over"),
        (THEIRS | {"kind": ["SLO"]}, "is not taken over"),
        (THEIRS | {"spec": None}, "SLO jobs-done.spec: None is not a mapping of fields"),
        (THEIRS | {"kind": "SLI", "spec": INDICATOR, "metadata": {}}, "SLI without a name.metadata.name: is missing"),
    ],
)  # fmt: skip
def test_malformed_field_is_named(wrong, says):
    with pytest.raises(spec.SpecError) as refusal:
        openslo.convert(yaml.safe_dump(wrong))
    assert says in str(refusal.value)


# --- the command line


def watchpost(*arguments, **environment):
    command = [sys.executable, "-m", "watchpost", "slo", *map(str, arguments)]
    environment = os.environ | environment
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)


def test_what_is_imported_can_be_checked(tmp_path):
    (tmp_path / "theirs.yml").write_text(yaml.safe_dump(THEIRS))
    (tmp_path / "ours.yml").write_text(watchpost("import", tmp_path / "theirs.yml").stdout)
    done = watchpost("check", tmp_path / "ours.yml")
    assert done.returncode == 0 and "page    when over 6.72% are bad for 1h and 5m (13.44 times)" in done.stdout, done


def test_check_names_what_is_wrong_and_fails(tmp_path):
    (tmp_path / "slo.yml").write_text(yaml.safe_dump({"watchpost_slos": [SOUND | {"objective": 1.2}]}))
    done = watchpost("check", tmp_path / "slo.yml")
    assert done.returncode == 1
    assert done.stderr == "watchpost slo: watchpost_slos[0].objective: 1.2 is not below 1\n"


def inventory(directory, **variables):
    """An inventory of one host with these variables."""
    hosts = {"prometheus": {"hosts": {"vm": {}}}, "watchpost": {"children": {"prometheus": {}}}}
    (directory / "hosts.yml").write_text(yaml.safe_dump(hosts))
    (directory / "group_vars").mkdir()
    (directory / "group_vars/watchpost.yml").write_text(yaml.safe_dump(variables))
    return directory


def test_objectives_and_retention_of_an_inventory_are_checked(tmp_path):
    given = inventory(tmp_path, watchpost_slos=[SOUND | {"objective": "{{ 0.9 }}5"}], prometheus_retention_days=20)
    done = watchpost("check", "--inventory", given)
    assert done.returncode == 1
    assert done.stderr == (
        "watchpost slo: prometheus_retention_days is 20, but watchpost_slos[0] (sound) counts over 30 days; "
        "keep metrics longer, or make its window shorter\n"
    )
    done = watchpost("check", "--inventory", given, "--retention-days", "30")
    assert done.returncode == 0 and "sound: 95.00% of shop's events are good over 30 days" in done.stdout, done
    assert "tasks-available" not in done.stdout, "those of the project are not added"


def test_inventory_of_the_configuration_file_is_that_of_check_too(tmp_path):
    given = inventory(tmp_path, watchpost_slos=[SOUND])
    (tmp_path / "watchpost.toml").write_text(f'inventory = "{given}"\n')
    done = watchpost("check", WATCHPOST_CONFIG=str(tmp_path / "watchpost.toml"))
    assert done.returncode == 0 and f"Of {given}:\nsound: 99.00%" in done.stdout, done
    (tmp_path / "watchpost.toml").write_text("[slo]\nretention-days = 20\n")
    done = watchpost("check", WATCHPOST_CONFIG=str(tmp_path / "watchpost.toml"))
    assert done.returncode == 1 and "prometheus_retention_days is 20" in done.stderr, done


def test_rules_of_an_inventory_lead_to_its_own_address(tmp_path):
    given = inventory(tmp_path, watchpost_slos=[SOUND], watchpost_public_name="watch.example.org")
    done = watchpost("rules", "--inventory", given)
    assert "https://watch.example.org/grafana/d/watchpost-slo?var-slo=sound" in done.stdout, done


def test_inventory_that_is_not_there_is_wrong_usage():
    done = watchpost("check", "--inventory", "/none")
    assert done.returncode == 2 and "--inventory /none" in done.stderr


@pytest.fixture
def python_of_debian_12(tmp_path, monkeypatch):
    """Programs run without the ways of unpacking archives that later versions want a filter for, which it has not."""
    lacks = "import tarfile\ndel tarfile.TarFile.extract, tarfile.TarFile.extractall\n"
    (tmp_path / "sitecustomize.py").write_text(lacks)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_query_that_prometheus_refuses_is_named_by_its_field(tmp_path, python_of_debian_12):
    wrong = [
        SOUND | {"availability": {"where": 'http_route=~"*"'}},
        RATIO | {"ratio": {"bad": "sum(rate(x[$window])", "total": "scalar(rate(y[$window]))"}},
        FAST,
    ]
    (tmp_path / "slo.yml").write_text(yaml.safe_dump({"watchpost_slos": wrong}))
    done = watchpost("check", tmp_path / "slo.yml")
    assert done.returncode == 1, done
    regex, parenthesis, scalar = done.stderr.removeprefix("watchpost slo: ").splitlines()
    assert regex.startswith("watchpost_slos[0].availability.where: Prometheus says: error parsing regexp"), done.stderr
    assert parenthesis.startswith("watchpost_slos[1].ratio.bad: Prometheus says: unclosed left parenthesis")
    assert scalar.startswith("watchpost_slos[1].ratio.total: Prometheus says: expected type instant vector")


def test_without_promtool_it_is_said_that_no_query_was_tried(tmp_path, monkeypatch):
    monkeypatch.setenv("WATCHPOST_CACHE", str(tmp_path))
    done = watchpost("check")
    assert done.returncode == 0
    assert "Not tried by Prometheus's own checker: it is not in the artifact store" in done.stderr


@pytest.mark.parametrize("command", ["check", "rules", "import"])
def test_file_that_is_not_there_is_wrong_usage(tmp_path, command):
    done = watchpost(command, tmp_path / "none.yml")
    assert done.returncode == 2
    assert done.stderr == f"watchpost slo: {tmp_path}/none.yml cannot be read: No such file or directory\n"
