"""The stages of a delivery: their order, what is kept of each, what the report says, and the build servers' files."""

import html
import json
import re
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import httpx
import pytest
import yaml
from command_lines import TARGETS, command_of
from jenkins import environment, evaluate, shell_commands, steps
from typer.testing import CliRunner

from watchpost.cli import command_line, commands_of
from watchpost.delivery import pipeline
from watchpost.delivery.pipeline import STAGES, Stage, last_words, outcomes
from watchpost.delivery.report import Findings, Story, look, render
from watchpost.ledger import Run, Sent
from watchpost.project import PROJECT
from watchpost.verify_grafana import Grafana

sys.path.insert(0, str(PROJECT / "molecule"))
from receivers import explored

FORGET = "rm -rf .watchpost/run"  # how a build begins where the last one's files are still there


def python(code):
    return [sys.executable, "-c", code]


@pytest.fixture
def stages(monkeypatch):
    """Put these commands in the stages' places; what each stage may say of itself stays as it is."""

    def replace(**commands):
        found = [
            Stage(each.name, lambda _, __, command=commands[each.name]: command, each.cause)
            for each in STAGES
            if each.name in commands
        ]
        monkeypatch.setattr(pipeline, "STAGES", found)

    return replace


def run_pipeline(run, *words):
    return CliRunner().invoke(command_line("pipeline"), ["pipeline", "--run", str(run), *words])


def test_stages_run_in_order_and_each_ones_words_are_kept(tmp_path, stages):
    stages(provision=python("print('/an/inventory')"), deploy=python("print('deployed')"), gate=python("print('good')"))
    answer = run_pipeline(tmp_path)
    assert answer.exit_code == 0, answer.output
    assert [(each.stage, each.passed) for each in outcomes(tmp_path)] == [
        ("provision", True),
        ("deploy", True),
        ("gate", True),
    ]
    assert (tmp_path / "deploy.log").read_text() == "deployed\n"
    assert (tmp_path / "inventory").read_text() == "/an/inventory\n"


def test_first_failing_stage_ends_the_run_and_is_reported_with_its_last_words(tmp_path, stages):
    broken = "import sys; print('one'); print('the disk is full'); sys.exit(3)"
    stages(provision=python("print('/an/inventory')"), deploy=python(broken), gate=python("print('good')"))
    answer = run_pipeline(tmp_path)
    assert answer.exit_code == 1
    assert "Not delivered: deploy failed." in answer.output and "the disk is full" in answer.output
    assert [each.stage for each in outcomes(tmp_path)] == ["provision", "deploy"]
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "Not delivered: deploy failed" in text and "the disk is full" in text, name


def test_missing_telemetry_is_reported_with_what_the_doctor_finds(tmp_path, stages, monkeypatch):
    link = {"link": "traces", "state": "missing", "evidence": "no trace", "hint": "a journal"}
    report = json.dumps({"ok": False, "missing": ["traces"], "traces": 0, "links": [link]})
    verdict = f"open({str(tmp_path / 'verify.json')!r}, 'w').write({report!r}); raise SystemExit(1)"
    stages(provision=python("print('/an/inventory')"), verify=python(verdict))
    found = [{"check": "services", "problem": "the Collector is inactive", "remedy": "start it"}]
    found += [{"check": "signals", "problem": "traces is missing once more", "remedy": ""}]
    own = pipeline._own
    doctor = python(
        "import sys; print("
        + repr(json.dumps({"findings": found, "unseen": {"two": "cannot be reached"}}))
        + "); sys.exit(sys.argv[1:] != ['/an/inventory'])"
    )
    monkeypatch.setattr(pipeline, "_own", lambda *words: [*doctor, words[-1]] if words[0] == "doctor" else own(*words))
    answer = run_pipeline(tmp_path)
    assert answer.exit_code == 1
    assert outcomes(tmp_path)[-1].cause.splitlines() == [
        "two: cannot be reached",
        "services: the Collector is inactive. Do: start it",
        "traces is missing: no trace. Look at: a journal",
    ]
    assert "the Collector is inactive" in (tmp_path / "report.md").read_text()


def test_command_that_does_not_exist_is_a_failed_stage(tmp_path, stages):
    stages(provision=["/no/such/program"])
    answer = run_pipeline(tmp_path)
    assert answer.exit_code == 1 and "/no/such/program" in answer.output


def test_new_run_forgets_what_the_old_one_wrote_and_nothing_else(tmp_path, stages):
    for name in ("gate.json", "verify.xml", "deploy.log", "notes.txt", "syslog.log", "report.pdf"):
        (tmp_path / name).write_text("old")
    (tmp_path / "inventory").mkdir()  # somebody's own
    stages(provision=python("import sys; sys.exit(1)"))
    assert run_pipeline(tmp_path).exit_code == 1
    assert all((tmp_path / name).exists() for name in ("notes.txt", "syslog.log", "report.pdf", "inventory"))
    assert not any((tmp_path / name).exists() for name in ("gate.json", "verify.xml", "deploy.log"))


def test_stage_that_is_killed_is_reported_as_one_that_did_not_end(tmp_path, stages):
    """What stands there while it runs is what stays when a build server kills it."""
    stages(provision=python("print('/an/inventory')"), deploy=["cat", str(tmp_path / "stages.json")])
    run_pipeline(tmp_path)
    meanwhile = json.loads((tmp_path / "deploy.log").read_text())
    assert [(each["stage"], each["passed"]) for each in meanwhile] == [("provision", True), ("deploy", False)]
    assert meanwhile[-1]["cause"] == "it has not come to its end"
    assert [each.passed for each in outcomes(tmp_path)] == [True, True]


def test_stage_that_is_tried_again_does_not_tell_its_old_verdict(tmp_path, stages):
    for name in ("verify", "gate"):
        old = {"ok": False, "missing": ["logs"], "links": [], "failures": ["P95 is too much"]}
        (tmp_path / f"{name}.json").write_text(json.dumps(old))
        fails = python("import sys; print('no such file: good.json'); sys.exit(2)")
        stages(provision=python("pass"), **{name: fails})  # the first stage forgets everything, and is not run
        answer = run_pipeline(tmp_path, name, "--inventory", "/an/inventory")
        assert answer.exit_code == 1
        assert outcomes(tmp_path)[-1].cause == "no such file: good.json"


def test_stages_called_one_by_one_share_the_inventory(tmp_path, stages):
    stages(provision=python("print('/an/inventory')"), deploy=python("print('deployed')"))
    assert run_pipeline(tmp_path, "deploy").exit_code == 2, "nothing is provisioned yet"
    assert run_pipeline(tmp_path, "provision").exit_code == 0
    assert run_pipeline(tmp_path, "deploy").exit_code == 0
    assert len(outcomes(tmp_path)) == 2


def test_unknown_stage_is_refused_with_those_that_there_are(tmp_path):
    answer = run_pipeline(tmp_path, "launch")
    assert answer.exit_code == 2 and "provision, deploy, traffic, verify, gate" in answer.output


def test_cause_of_a_failed_play_is_its_last_failure(tmp_path):
    (tmp_path / "deploy.log").write_text(
        "TASK [one]\nfatal: [vm]: UNREACHABLE! => first\n\nTASK [two]\n"
        "fatal: [vm]: FAILED! =>\n    changed: false\n    msg: loki was put back\n\nPLAY RECAP ***\nvm : failed=1\n"
    )
    words = last_words(tmp_path, "deploy")
    assert "loki was put back" in words and "first" not in words and "RECAP" not in words


# --- the report ---


def sent(**changes):
    base = {"method": "GET", "path": "/api/tasks", "expected": 200, "status": 200, "trace_id": "a" * 32}
    base |= {"span_id": "b" * 16, "reads_database": True, "operation": "list", "started": 1000.0, "seconds": 0.25}
    return Sent(**base | changes)


def story(**changes):
    found = {"run": "r", "ok": True, "missing": [], "traces": 1, "links": []}
    good = {"run": "r", "ok": True, "failures": [], "checks": []}
    base = {"outcomes": [], "run": Run("r", "https://vm", 1000.0, "taskboard 1"), "sent": [sent()]}
    return Story(**base | {"verified": found, "judged": good, "findings": Findings()} | changes)


def test_report_links_the_slowest_requests_to_their_traces():
    requests = [sent(trace_id=f"{number:032x}", seconds=number / 100) for number in range(30)]
    page = render(story(sent=requests), "report.html.j2")
    links = [html.unescape(link) for link in re.findall(r'href="(https://vm/grafana/explore\?[^"]+)"', page)]
    assert len(links) == 10
    datasource, query, span = explored(links[0])
    assert (datasource, query["query"]) == ("tempo", f"{29:032x}")
    assert int(span["from"]) < 1000 * 1000 < int(span["to"]), "milliseconds"


def test_report_is_one_file_that_asks_for_nothing_else():
    page = render(story(findings=Findings(budgets={"availability": [(1.0, 0.5), (2.0, 0.4)]})), "report.html.j2")
    assert not re.search(r"<(script|link|img|iframe)|@import|url\((?!#)", page)
    assert page.count("<svg") == 3


def test_report_does_not_take_a_program_s_words_for_markup():
    outcome = pipeline.Outcome("deploy", False, 1.0, "<script>alert(1)</script>")
    page = render(story(outcomes=[outcome]), "report.html.j2")
    assert "<script>" not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize("stage", ["verify", "gate"])
def test_run_of_which_a_verdict_is_missing_or_another_run_s_is_not_delivered(stage):
    verdict = {"verify": "verified", "gate": "judged"}[stage]
    assert story().failure is None
    others = getattr(story(), verdict) | {"run": "of yesterday"}
    for instead in (None, others):
        text = render(story(**{verdict: instead}), "report.md.j2")
        assert f"Not delivered: {stage} failed" in text and "it has not been asked of this run" in text


def test_delivery_that_never_began_is_not_said_to_have_failed_at_the_gate():
    nothing = story(run=None, sent=[], verified=None, judged=None)
    assert nothing.failure == ("provision", "it has not begun: what failed came before it")


def test_report_of_an_empty_directory_says_what_is_lacking(tmp_path):
    answer = CliRunner().invoke(command_line("report"), ["report", "--run", str(tmp_path), "--inventory", "/none"])
    assert answer.exit_code == 0
    text = (tmp_path / "report.md").read_text()
    assert "Not delivered" in text and "ledger.jsonl" in text and "/none" in text


def test_log_volume_is_counted_by_loki_however_large_it_is():
    counts = {"error": 7804, "info": 23389, "": 2}

    def answer(request):
        [query] = json.loads(request.content)["queries"] if request.url.path.endswith("/ds/query") else [{}]
        if query.get("datasource", {}).get("uid") != "loki":
            return httpx.Response(404, json={"message": "nothing"})
        if query["queryType"] != "instant":  # lines end at a limit
            fields = [{"name": name} for name in ("labels", "Time", "Line")]
            lines = [[{"detected_level": "info"}] * 5000, [0] * 5000, [""] * 5000]
            frames = [{"schema": {"fields": fields}, "data": {"values": lines}}]
            return httpx.Response(200, json={"results": {"A": {"frames": frames}}})
        frames = [
            {
                "schema": {"fields": [{"name": "Time"}, {"name": "Value", "labels": {"detected_level": level}}]},
                "data": {"values": [[0], [count]]},
            }
            for level, count in counts.items()
        ]
        return httpx.Response(200, json={"results": {"A": {"frames": frames}}})

    with httpx.Client(base_url="https://vm", transport=httpx.MockTransport(answer)) as client:
        found = look(Grafana(client), Run("r", "https://vm", 1000.0), [sent()], Path())
    assert found.levels == {"error": 7804, "info": 23389, "unknown": 2}
    assert "7804 error, 23389 info, 2 unknown" in render(story(findings=found), "report.md.j2")


# --- flags, environment, file ---


def watchpost(tmp_path, *words, file="", **environment):
    (tmp_path / "watchpost.toml").write_text(file)
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(PROJECT)} | environment
    command = [sys.executable, "-m", "watchpost", *words]
    return subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False)


def write_run(tmp_path, seconds):
    lines = [asdict(Run("r", "https://x", 0.0)), *(asdict(sent(seconds=seconds)) for _ in range(200))]
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_flag_beats_environment_beats_file_beats_default(tmp_path):
    write_run(tmp_path, 0.3)
    file = 'run = "."\n[gate]\np95 = 200\n'
    assert watchpost(tmp_path, "gate", "--run", ".").returncode == 0, "the default is 500 ms"
    assert watchpost(tmp_path, "gate", file=file).returncode == 1
    assert watchpost(tmp_path, "gate", file=file, WATCHPOST_GATE_P95="400").returncode == 0
    assert watchpost(tmp_path, "gate", "--p95", "100", file=file, WATCHPOST_GATE_P95="400").returncode == 1


@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        ("[gait]\n", "[gait] is no sub-command"),
        ("[gate]\np59 = 1\n", "p59 is no option of it; it has availability, baseline"),
        ("p95 = 1\n", "p95 is not shared by all"),
        ("p95 = \n", "watchpost.toml"),
    ],
)
def test_configuration_file_that_cannot_be_meant_is_refused(tmp_path, file, complaint):
    answer = watchpost(tmp_path, "gate", file=file)
    assert answer.returncode == 2 and complaint in answer.stderr


# --- what build servers run ---


@pytest.fixture(scope="session")
def jenkinsfile():
    """What Groovy finds in the Jenkinsfile: a list of {path, word, arguments}."""
    return evaluate()


def workflow():
    return yaml.safe_load((PROJECT / ".github/workflows/delivery.yml").read_text())


def test_jenkinsfile_has_the_stages_in_order(jenkinsfile):
    stages = [each["arguments"][0] for each in jenkinsfile if each["word"] == "stage"]
    assert stages == ["lint", "unit", *(stage.name for stage in STAGES)]


def test_jenkinsfile_s_parameters_reach_its_commands(jenkinsfile):
    assert environment(jenkinsfile)["WATCHPOST_INVENTORY"] == ""
    given = evaluate(INVENTORY="/an/inventory", P95="300")
    assert environment(given).items() >= {"WATCHPOST_INVENTORY": "/an/inventory", "WATCHPOST_GATE_P95": "300"}.items()
    assert steps(given)[1] == ("lint", "make lint")
    assert [place for place, _ in steps(given)][-3:] == ["gate", "always", "cleanup"]


def test_jenkinsfile_reports_and_cleans_up_in_any_case(jenkinsfile):
    assert ["post", "always"] in [each["path"] for each in jenkinsfile if "report" in str(each["arguments"])]
    words = {each["word"] for each in jenkinsfile}
    assert {"junit", "archiveArtifacts", "timeout", "credentials"} <= words
    assert ["post", "cleanup"] in [each["path"] for each in jenkinsfile if "down" in str(each["arguments"])]


@pytest.mark.parametrize("damage", [("steps {", "steps "), ("stages {", "stagse {"), ("junit", "jnuit")])
def test_jenkinsfile_that_is_damaged_is_refused(tmp_path, damage):
    file = tmp_path / "Jenkinsfile"
    file.write_text((PROJECT / "Jenkinsfile").read_text().replace(*damage))
    with pytest.raises(AssertionError):
        evaluate(file)


def test_both_build_servers_run_the_same_commands(jenkinsfile):
    steps = [step.get("run", "") for step in workflow()["jobs"]["deliver"]["steps"]]
    commands = [line.strip() for step in steps for line in step.replace("&&", "\n").splitlines() if line.strip()]
    shared = [command for command in commands if command.startswith(("make", "python"))]
    assert shared == [command for command in shell_commands(jenkinsfile) if command != FORGET]


def test_workflow_of_github_lets_git_work_in_a_directory_that_is_another_user_s():
    """The job is root's, in a container; what it checks out is not, and git then refuses (actions/checkout#2031)."""
    tools = workflow()["jobs"]["deliver"]["steps"][0]["run"]
    assert 'git config --system --add safe.directory "$GITHUB_WORKSPACE"' in tools


def test_every_command_of_the_build_servers_exists(jenkinsfile):
    assert steps(jenkinsfile)[0] == ("lint", FORGET), "a workspace is kept: a build that ends early has nothing to tell"
    for command in shell_commands(jenkinsfile)[1:]:
        program, *words = command.split()
        if program == "make":
            assert set(words) <= TARGETS, command
            continue
        assert (program, words[:2]) == ("python", ["-m", "watchpost"]), command
        found = command_of(shlex.join(words[2:]))
        assert not commands_of(found), f"{command}: a group, which does nothing by itself"
        if found.name == "pipeline":
            assert words[-1] in {stage.name for stage in STAGES}, command
