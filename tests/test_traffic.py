"""`watchpost traffic` asks what it means to ask, keeps its ledger, and leaves nothing behind."""

import json
import re
import threading

import httpx
import pytest
from typer.testing import CliRunner

from watchpost import verify_target
from watchpost.cli import command_line
from watchpost.delivery.traffic import MIX, Operation, Scenario, by_operation, read_mix, tidy
from watchpost.ledger import Ledger, LedgerError, Run, percentile, read


class TaskManager:
    """The task manager's answers, behind our own client's edge; `fails` names methods that end in a 500."""

    def __init__(self, fails=()):
        self.fails, self.tasks, self.seen, self.lock = fails, {}, [], threading.Lock()

    def __call__(self, request):
        with self.lock:
            status, body = self.answer(request)
            self.seen.append((request.method, request.url.path, request.headers.get("traceparent"), status))
        return httpx.Response(status, json=body) if body is not None else httpx.Response(status)

    def answer(self, request):
        number = int((re.findall(r"/api/tasks/(\d+)", request.url.path) or [0])[0])
        if request.method in self.fails:
            return 500, {}
        if request.url.path == "/api/tasks" and request.method == "POST":
            body = json.loads(request.content)
            if not body.get("title"):
                return 422, {}
            self.tasks[len(self.seen) + 1] = {"id": len(self.seen) + 1} | body
            return 201, self.tasks[len(self.seen) + 1]
        if request.url.path == "/api/tasks":
            return (422, {}) if request.url.params.get("limit") == "0" else (200, {"items": []})
        if number not in self.tasks:
            return 404, {}
        if request.method == "DELETE":
            del self.tasks[number]
            return 204, None
        if request.method == "PATCH":
            self.tasks[number] |= json.loads(request.content)
        return 200, self.tasks[number]


def play(manager, file=None, **changes):
    scenario = Scenario(**{"creates": 40, "rate": 1000, "people": 4, "seconds": 0, "mix": MIX, "seed": 7} | changes)
    client = httpx.Client(base_url="https://x", transport=httpx.MockTransport(manager))
    ledger = Ledger(client, file=file)
    ledger.begin(Run("abc", "https://x", 1.0))
    return ledger, scenario.play(ledger, "abc")


def test_each_answer_is_known_beforehand():
    manager = TaskManager()
    ledger, people = play(manager, creates=200)
    wrong = [(str(sent), sent.status, sent.expected) for sent in ledger.sent if not sent.as_expected]
    assert not wrong
    made = [sent.operation for sent in ledger.sent]
    assert made.count(Operation.CREATE) >= 200 and set(made) == set(Operation)
    assert tidy(people) == 0 and not manager.tasks


@pytest.mark.parametrize(
    ("method", "answer", "operation"),
    [
        ("GET", {"id": 1, "title": "somebody else's"}, Operation.READ),
        ("PATCH", {}, Operation.EDIT),
        ("POST", {"id": 1, "title": ""}, Operation.CREATE),
        ("GET", None, Operation.READ),
    ],
)
def test_answer_that_holds_something_else_is_not_the_expected_one(method, answer, operation):
    manager = TaskManager()

    def change(request):
        answered = manager(request)
        if request.method == method and answered.is_success and not request.url.path.endswith("/complete"):
            listed = request.url.path == "/api/tasks" and method == "GET"
            other = httpx.Response(answered.status_code, json=answer) if answer is not None else httpx.Response(200)
            return answered if listed else other
        return answered

    ledger, _ = play(change)
    wrong = {sent.operation for sent in ledger.sent if sent.reached and not sent.as_expected}
    assert operation in wrong and all(" not " in sent.error for sent in ledger.sent if sent.operation == operation)


def test_everybody_tidies_at_once_and_tells_how_far_it_is():
    manager = TaskManager()
    _, people = play(manager, creates=40, people=4, mix={Operation.CREATE: 1})
    together, told = threading.Barrier(4, timeout=10), []

    def answer(request):
        together.wait()  # until four ask
        return manager(request)

    people[0].ledger.client = httpx.Client(base_url="https://x", transport=httpx.MockTransport(answer))
    assert tidy(people, told.append) == 0 and not manager.tasks
    assert sorted(told) == list(range(1, 41))


def test_each_request_begins_a_sampled_trace_of_its_own():
    manager = TaskManager()
    ledger, _ = play(manager)
    parents = [parent for *_, parent, _ in manager.seen]
    assert len(set(parents)) == len(parents) == len(ledger.sent)
    assert {f"00-{sent.trace_id}-{sent.span_id}-01" for sent in ledger.sent} == set(parents)


def test_seed_makes_the_same_run_once_more():
    def paths(seed):
        ledger, _ = play(TaskManager(), people=1, seed=seed)
        return [(sent.method, sent.operation) for sent in ledger.sent]

    assert paths(1) == paths(1) != paths(2)


def test_failing_answers_do_not_stop_the_traffic_and_doubtful_tasks_are_tidied():
    manager = TaskManager(fails={"DELETE"})
    ledger, people = play(manager, creates=60)
    failed = [sent for sent in ledger.sent if sent.operation == Operation.DELETE]
    assert failed and not any(sent.available for sent in failed)
    manager.fails = ()
    assert tidy(people) == 0 and not manager.tasks


def test_request_without_an_answer_is_remembered_as_unavailable():
    def nobody(request):
        raise httpx.ConnectError("refused", request=request)

    ledger, _ = play(nobody, creates=4)
    assert {(sent.status, sent.available, sent.reached) for sent in ledger.sent} == {(0, False, False)}
    assert "refused" in ledger.sent[0].error


def test_ledger_on_disk_is_the_ledger_and_a_torn_end_is_left_out(tmp_path):
    file = tmp_path / "ledger.jsonl"
    ledger, _ = play(TaskManager(), file)
    run, sent = read(file)
    assert run.id == "abc"
    assert sorted(sent, key=lambda each: each.trace_id) == sorted(ledger.sent, key=lambda each: each.trace_id)
    file.write_text(file.read_text()[:-20])
    assert len(read(file)[1]) == len(sent) - 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        ('{"id": "a", "url": "b"}\n', "line 1: started"),
        ('{"id": "a", "url": "b", "started": 1}\n{"method": "GET"}\n', "line 2: path"),
        ("no json\n", "line 1"),
    ],
)
def test_ledger_that_cannot_be_read_is_refused_by_its_line(tmp_path, text, complaint):
    file = tmp_path / "ledger.jsonl"
    file.write_text(text)
    with pytest.raises(LedgerError, match=re.escape(complaint)):
        read(file)


def test_missing_ledger_says_who_writes_it(tmp_path):
    with pytest.raises(LedgerError, match="watchpost traffic"):
        read(tmp_path / "ledger.jsonl")


@pytest.mark.parametrize(
    ("mix", "complaint"), [("create", "like create=30"), ("sing=3", "operations are"), ("list=3", "create has one")]
)
def test_mix_that_cannot_be_meant_is_refused(mix, complaint):
    answer = CliRunner().invoke(command_line("traffic"), ["traffic", "--mix", mix, "--url", "https://x"])
    assert answer.exit_code == 2 and complaint in " ".join(answer.output.replace("│", " ").split())


def test_mix_that_is_given_replaces_the_usual_one():
    assert read_mix("create=1,list=3") == {Operation.CREATE: 1, Operation.LIST: 3}


def test_gateway_without_tls_is_refused():
    answer = CliRunner().invoke(command_line("traffic"), ["traffic", "--url", "http://x"])
    assert answer.exit_code == 2 and "https://" in answer.output


def test_appliance_without_the_application_is_refused(monkeypatch):
    found = verify_target.Target("https://x", "", None, components=frozenset({"gateway", "grafana"}))
    monkeypatch.setattr(verify_target, "find", lambda *_: found)
    answer = CliRunner().invoke(command_line("traffic"), ["traffic"])
    assert answer.exit_code == 2 and "no host in the group taskboard" in answer.output


def test_percentile_is_a_value_that_occurred():
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, share) for share in (0, 0.5, 0.95, 0.99, 1)] == [1, 50, 95, 99, 100]
    assert percentile([3.0], 0.95) == 3.0


def test_summary_counts_by_operation_and_all_together():
    ledger, _ = play(TaskManager(fails={"PATCH"}))
    summary = by_operation(ledger.sent)
    assert (
        summary["all"]["requests"]
        == len(ledger.sent)
        == sum(row["requests"] for name, row in summary.items() if name != "all")
    )
    assert summary["edit"]["unavailable"] == summary["edit"]["requests"] > 0
    assert summary["create"]["unexpected"] == 0
