"""`trimtab run` and `trimtab runs` as a user types them, against an OpenAI-compatible server with given answers."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from trimtab.agent.testing import call
from trimtab.cli import main
from trimtab.models.chat import Message
from trimtab.tools.builtin import FAMILIES


class Server(ThreadingHTTPServer):
    """Answers chat completions from a list; `asked` are the requests it got."""

    def __init__(self) -> None:
        self.answers: list[Message] = []
        self.asked: list[dict[str, Any]] = []
        self.fault = "no more answers"
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._send(*((200, {"data": [{"id": "stub"}]}) if self.path == "/v1/models" else (404, {})))

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if not self.server.answers:
            self._send(400, {"error": {"message": self.server.fault}})
            return
        choice = {"index": 0, "message": self.server.answers.pop(0).to_openai(), "finish_reason": "stop"}
        self._send(200, {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 5}})

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_run_prints_each_step_and_the_tools_act(
    stub: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stub.answers = [call("add_todo", item="milk"), Message("assistant", "Added milk.")]
    assert main(["run", "add milk to my list", "--engine", stub.url]) == 0
    out = capsys.readouterr().out
    for part in (
        "base on stub",
        "add_todo",
        '{"added": "milk"}',
        "Added milk.",
        "10 + 5 tokens",
        " ms",
        "no receipt",
        "cost",
    ):
        assert part in out
    assert (tmp_path / "workspace" / "office.db").exists()
    offered = [spec["function"]["name"] for spec in stub.asked[0]["tools"]]
    assert sorted(offered) == sorted({name for names in FAMILIES.values() for name in names})


def test_json_is_the_only_thing_on_stdout(stub: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    stub.answers = [call("calculate", expression="6 * 7"), Message("assistant", "42")]
    prices = tmp_path / "prices.json"
    prices.write_text('{"stub": {"input_cost_per_token": 0.001, "output_cost_per_token": 0.01}}')
    arguments = ["run", "what is 6 times 7", "--engine", stub.url, "--json", "--prices", str(prices)]
    assert main([*arguments, "--home", str(tmp_path / "desk"), "--tools", "calculate,weekday"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["answer"] == "42"
    assert [step["kind"] for step in document["steps"]] == ["model", "tool", "model"]
    assert document["steps"][1]["result"] == '{"result": 42}'
    assert document["usage"] == {"prompt_tokens": 20, "completion_tokens": 10, "cached_tokens": None}
    assert document["cost"] == {"amount": "0.120", "currency": "USD"}
    assert document["receipts"] == []
    assert [spec["function"]["name"] for spec in stub.asked[0]["tools"]] == ["calculate", "weekday"]

    assert main(["runs", "show", document["run_id"], "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["steps"] == document["steps"]
    assert main(["runs", "list", "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)
    assert (line["run_id"], line["status"], line["steps"]) == (document["run_id"], "done", 3)
    assert main(["runs", "list"]) == 0
    assert main(["runs", "show"]) == 0
    assert "what is 6 times 7" in capsys.readouterr().out


def test_a_limit_is_an_error_and_resume_goes_on_with_everything_as_it_was(
    stub: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stub.answers = [call("calculate", expression="6 * 7"), Message("assistant", "42")]
    arguments = ["run", "six by seven", "--engine", stub.url, "--tools", "calculate", "--home", str(tmp_path / "desk")]
    assert main([*arguments, "--max-steps", "2", "--json"]) == 4
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["stopped"]["kind"] == "steps"
    assert len(document["steps"]) == 2
    assert f"--resume {document['run_id']}" in captured.err
    assert main(["run", "--resume", document["run_id"], "--json"]) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert resumed["answer"] == "42"
    assert resumed["steps"][:2] == document["steps"]
    assert len(stub.asked[1]["tools"]) == 1
    assert main(["run", "--resume", document["run_id"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == resumed
    assert len(stub.asked) == 2


def test_a_run_that_stopped_says_what_would_help(stub: Server, capsys: pytest.CaptureFixture[str]) -> None:
    def asked(*arguments: str) -> str:
        assert main(["run", "count", "--engine", stub.url, "--tools", "calculate", *arguments]) != 0
        return capsys.readouterr().err

    stub.answers = [call("calculate", expression=f"{n} + 1") for n in range(9)]
    said = asked("--max-tool-calls", "2")
    assert "the limit of 2 tool calls is reached" in said
    resume = said.split("`trimtab ")[1].split("`")[0].split()
    assert resume[-2:] == ["--max-tool-calls", "4"]
    assert main(resume) == 4
    assert "--max-tool-calls 8` goes on" in capsys.readouterr().err

    stub.answers = [call("calculate", expression="1 + 1")] * 9
    said = asked()
    assert "--large ENGINE` lets a larger model try" in said
    run_id = said.split("--resume ")[1].split()[0]
    stub.answers = [Message("assistant", "2")]
    assert main(["run", "--resume", run_id, "--large", stub.url]) == 0
    stub.answers = [Message("assistant", "")] * 2
    assert "Say the task in other words" in asked("--large", stub.url)


def test_nothing_that_a_server_writes_steers_the_terminal(stub: Server, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"
    stub.answers = [call(f"calculate{evil}", expression=evil), call(f"add{evil}"), Message("assistant", evil)]
    assert main(["run", f"x {evil}", "--engine", stub.url]) == 3  # the second broken call ends it
    assert main(["run", f"x {evil}", "--engine", stub.url]) == 0
    assert main(["runs", "show"]) == 0
    assert main(["runs", "list"]) == 0
    stub.fault = evil
    assert main(["run", "x", "--engine", stub.url]) == 3
    told = capsys.readouterr()
    for mark in ("\x1b", "\x07", "\x9b", "\u202e"):
        assert mark not in told.out + told.err
    assert "owned" in told.out
    assert "owned" in told.err


def test_an_engine_that_gives_up_leaves_a_run_to_resume(stub: Server, capsys: pytest.CaptureFixture[str]) -> None:
    stub.answers = [call("calculate", expression="1 + 1")]
    assert main(["run", "one and one", "--engine", stub.url]) == 3
    err = capsys.readouterr().err
    assert "no more answers" in err
    run_id = err.split("--resume ")[1].split("`")[0]
    stub.answers = [Message("assistant", "2")]
    assert main(["run", "--resume", run_id]) == 0


def test_a_list_of_runs_is_whole_in_a_pipe_and_on_any_screen(
    stub: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.answers = [Message("assistant", "forty-two " * 20)]
    assert main(["run", "how\nmuch " * 20, "--engine", stub.url, "--json"]) == 0
    run_id = json.loads(capsys.readouterr().out)["run_id"]
    monkeypatch.setenv("COLUMNS", "40")
    for screen in (False, True):
        monkeypatch.setattr("rich.console.Console.is_terminal", screen)
        assert main(["runs", "list", "--limit", "9" * 20]) == 0
        _, line = capsys.readouterr().out.splitlines()
        assert line.split()[0] == run_id
        assert " done " in line
    for limit in ("0", "-1"):
        with pytest.raises(SystemExit):
            main(["runs", "list", "--limit", limit])
        assert "not 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["run"], 2, "there is no task"),
        (["run", "x", "--engine", "abacus"], 2, "unknown engine 'abacus'"),
        (["run", "x", "--tools", "calculate,teleport"], 2, "no tool named 'teleport'"),
        (["run", "--resume", "nothing"], 2, "no run 'nothing'"),
        (["run", "x", "--prices", "/no/such/file"], 2, "price file"),
        (["run", "x", "--max-steps", "-1"], 2, "limits: steps"),
        (["run", "x", "--home", "~nosuch/x"], 2, "below no user's folder"),
        (["runs", "show", "nothing"], 2, "no run 'nothing'"),
        (["runs", "show"], 2, "no runs yet"),
    ],
)
def test_bad_input(
    arguments: list[str], code: int, says: str, stub: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    assert says in capsys.readouterr().err
    main(["runs", "list", "--json"])
    assert json.loads(capsys.readouterr().out) == []
