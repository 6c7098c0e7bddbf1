"""`trimtab eval` and `trimtab compare` against a real HTTP server, and the orderly end after a signal."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from trimtab.cli import main

SUITE = """
name: tiny
tasks:
- {id: a, family: calc, ask: what is 2 + 3, today: 2026-05-12, tools: [calculate], expect: {answer: ["5"]}}
- {id: b, family: calc, ask: what is 4 + 4, today: 2026-05-12, tools: [calculate], expect: {answer: ["8"]}}
- {id: c, family: calc, ask: what is 5 + 6, today: 2026-05-12, tools: [calculate], expect: {answer: ["11"]}}
"""


class _Model(BaseHTTPRequestHandler):
    """An OpenAI-compatible server. `clever` uses the tool, `dull` never does, `silent` does not count tokens."""

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._say({"object": "list", "data": [{"id": "clever"}, {"id": "dull"}, {"id": "silent"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message: dict[str, Any] = {"role": "assistant", "content": "No idea."}
        last = body["messages"][-1]
        if body["model"] == "clever" and last["role"] == "tool":
            message["content"] = f"It is {json.loads(last['content'])['result']}."
        elif body["model"] == "clever":
            arguments = json.dumps({"expression": last["content"].removeprefix("what is ")})
            call = {"id": "1", "type": "function", "function": {"name": "calculate", "arguments": arguments}}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        if body["model"] == "silent":
            self._say({"id": "x", "object": "chat.completion", "model": "silent", "choices": [{"message": message}]})
            return
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._say({"id": "x", "object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage})

    def _say(self, data: Any) -> None:
        raw = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path / "home"))
    path = tmp_path / "tiny.yaml"
    path.write_text(SUITE)
    return str(path)


def prices(folder: Path, *names: str) -> str:
    path = folder / "prices.json"
    path.write_text(json.dumps({n: {"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-5} for n in names}))
    return str(path)


def test_eval_prints_one_document(url: str, suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["eval", suite, "--model", f"{url}#clever", "--json", "--prices", prices(tmp_path, "clever")])
    data = json.loads(capsys.readouterr().out)
    assert (code, data["scored"], data["successes"]) == (0, 3, 3)
    # Two calls of 100 + 10 tokens a task.
    assert float(data["spending"]["dollars_per_success"]) == pytest.approx(2 * (100e-6 + 100e-6))
    assert data["spending"]["tokens_per_task"] == 220
    assert [t["answer"] for t in data["tasks"]] == ["It is 5.", "It is 8.", "It is 11."]
    assert Path(data["records"]).is_file()


def test_eval_continues_a_record_file(url: str, suite: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["eval", suite, "--model", f"{url}#clever", "--json"])
    first = json.loads(capsys.readouterr().out)
    file = Path(first["records"])
    file.write_text("".join(line + "\n" for line in file.read_text().split("\n")[:2]))
    main(["eval", suite, "--model", f"{url}#clever", "--json", "--resume", str(file)])
    assert json.loads(capsys.readouterr().out)["successes"] == 3
    assert main(["eval", suite, "--model", f"{url}#dull", "--json", "--resume", str(file)]) == 2


def test_eval_for_people(url: str, suite: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", suite, "--model", f"{url}#dull"]) == 0
    out = capsys.readouterr().out
    for part in ("dull", "0 %", "0 of 3", "no_call 3", "unknown"):
        assert part in out


def test_compare_writes_its_report(url: str, suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "report"
    code = main(
        [
            *("compare", suite, "--small-model", f"{url}#dull", "--small", "none", "--large", f"{url}#clever"),
            *("--json", "--report", str(folder), "--limit", "2"),
        ]
    )
    data = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (data["small"]["successes"], data["large"]["successes"]) == (0, 2)
    assert (data["paired"]["only_large"], data["paired"]["n"]) == (2, 2)
    assert data["small"]["spending"]["dollars_per_task"] is None
    assert data["large"]["stand_in"] is False
    assert sorted(p.name for p in folder.iterdir()) == ["comparison.json", "comparison.md", "comparison.png"]


def test_results_are_shown_and_recorded_though_the_report_fails(
    url: str, suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trimtab.evals.report.write_atomic", full)
    both = ["--small-model", f"{url}#dull", "--small", "none", "--large", f"{url}#clever"]
    assert main(["compare", suite, *both, "--json", "--report", str(tmp_path / "report")]) == 1
    caught = capsys.readouterr()
    data = json.loads(caught.out)
    assert data["large"]["successes"] == 3
    assert data["large"]["dtype"] is None
    assert "No space left" in caught.err
    for file, right in zip(data["records"], (0, 3), strict=True):
        rows = [json.loads(line)["record"] for line in Path(file).read_text().splitlines()[1:]]
        assert sum(row["success"] for row in rows) == right


@pytest.mark.parametrize(
    "entry", [{}, {"source": "x"}, {"input_cost_per_token": 1}, {"output_cost_per_token": 1, "cost_per_second": 1}]
)
def test_an_entry_that_no_price_follows_from_is_refused_before_anything_runs(
    url: str, suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], entry: dict[str, Any]
) -> None:
    (tmp_path / "half.json").write_text(json.dumps({"clever": entry}))
    asked = ["--prices", str(tmp_path / "half.json")]
    both = ["--small-model", f"{url}#clever", "--small", "none", "--large", f"{url}#clever"]
    for command in (["eval", suite, "--model", f"{url}#clever"], ["compare", suite, *both]):
        assert main([*command, *asked]) == 5
        caught = capsys.readouterr()
        assert "no price follows" in caught.err
        assert "done" not in caught.err


def test_what_was_measured_is_shown_though_it_cannot_be_priced(
    url: str, suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--json", "--prices", prices(tmp_path, "silent", "clever")]
    assert main(["eval", suite, "--model", f"{url}#silent", *asked]) == 5
    caught = capsys.readouterr()
    data = json.loads(caught.out)
    assert (data["scored"], data["spending"]["dollars"], data["spending"]["unpriced"]) == (3, None, ["silent"])
    assert data["error"]["what"] in caught.err
    assert "the price is not known for: silent" in caught.err
    both = ["--small-model", f"{url}#silent", "--small", "none", "--large", f"{url}#clever"]
    assert main(["compare", suite, *both, "--report", str(tmp_path / "report"), *asked]) == 5
    caught = capsys.readouterr()
    assert json.loads(caught.out)["large"]["successes"] == 3
    assert "the price is not known for: silent" in caught.err
    assert len(list((tmp_path / "report").iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["eval", "no-such-suite"], 2, "no-such-suite"),
        (["eval", "SUITE", "--model", "no-such-model"], 2, "no-such-model"),
        (["eval", "SUITE", "--model", "URL#no-such-model"], 2, "no-such-model"),
        (["eval", "SUITE", "--model", "URL#clever", "--profile", "calc"], 2, "calc"),
        (["eval", "SUITE", "--model", "URL#clever", "--prices", "PRICES"], 5, "no price"),
        (["eval", "SUITE", "--model", "URL#clever", "--prices", "missing.json"], 2, "missing.json"),
        (["eval", "SUITE", "--model", "http://127.0.0.1:9#m"], 3, "127.0.0.1:9"),
        (["eval", "SUITE", "--engine", "steam"], 2, "steam"),
        (["compare", "SUITE", "--margin", "5"], 2, "--margin"),
        (["compare", "SUITE", "--small", "calc", "--escalate"], 2, "--escalate"),
        (["compare", "SUITE", "--margin", "nan"], 2, "--margin"),
        (["compare", "SUITE", "--report", "FILE"], 2, "--report"),
        (["compare", "SUITE", "--report", "FILE/x"], 2, "--report"),
        (["compare", "SUITE", "--large", ""], 2, "model"),
        (["compare", "SUITE", "--small", "no-such-profile"], 2, "no-such-profile"),
        (["eval", "SUITE", "--profile", ""], 2, "profile"),
        (["eval", "SUITE", "--profile", "no-such-profile"], 2, "no-such-profile"),
        (["eval", "SUITE", "--resume", "."], 2, "--resume"),
        (["eval", "SUITE", "--trials", "999999"], 2, "--trials"),
        (["eval", "SUITE", "--trials", "0"], 2, "--trials"),
        (["eval", "SUITE", "--trials", "99999999999999999999"], 2, "--trials"),
        (["eval", "SUITE", "--limit", "1e999"], 2, "--limit"),
        (["eval", "SUITE", "--engine", "http://[::1"], 2, "--engine"),
        (["eval", "SUITE", "--model", "http://x:999999#m"], 2, "--model"),
        (["eval", "families", "--split", "test", "--plot", "x.jpg"], 2, "--plot"),
        (["eval", "families", "--split", "test", "--plot", "FILE/x.png"], 2, "--plot"),
        (["verify", "--tolerance", "nan"], 2, "--tolerance"),
        (["verify", "--tolerance", "0"], 2, "--tolerance"),
        (["verify", "--every", "1e999"], 2, "--every"),
        (["verify", "--tokens", "999999"], 2, "--tokens"),
        (["verify", "--url", ""], 2, "--url"),
        (["verify", "--plot", "FILE/x.png"], 2, "--plot"),
        (["bench", "steering", "--requests", "-1"], 2, "--requests"),
        (["bench", "steering", "--threads", "9999999"], 2, "--threads"),
        (["bench", "steering", "--in-flight", "99999999999999999999"], 2, "--in-flight"),
    ],
)
def test_bad_input_is_one_clear_error_before_an_engine_starts(
    url: str,
    suite: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr("trimtab.models.engines.vllm.VllmEngine.open", None)
    words = {"SUITE": suite, "PRICES": prices(tmp_path, "other")}
    (tmp_path / "file").touch()
    line = [words.get(a, a.replace("URL", url).replace("FILE", str(tmp_path / "file"))) for a in arguments]
    with pytest.raises(SystemExit) as refused:
        raise SystemExit(main(line))  # argparse exits by itself
    assert refused.value.code == code
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


WAITS = """
import asyncio, sys
from trimtab.evals.signals import run_orderly

async def work():
    try:
        print("up", flush=True)
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0.3)
        print("stopped", flush=True)
    return 0

sys.exit(run_orderly(work()))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_let_the_work_clean_up(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        child.send_signal(number)
        child.send_signal(number)  # an impatient second one must not cut the clean-up short
        assert child.stdout.readline() == b"stopped\n"
        assert child.wait(10) == 128 + number
