"""The doctor on a machine with broken parts, made broken here for real."""

from __future__ import annotations

import importlib
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from trimtab.models import doctor, doctor_compiled
from trimtab.models.registry import RunningServer, process_start, register
from trimtab.models.server import free_port


def test_packages_that_do_not_import_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trimtab_test_good.py").write_text("print('noise')")
    (tmp_path / "trimtab_test_bad.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "trimtab_test_crash.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    names = ["trimtab_test_good", "trimtab_test_bad", "trimtab_test_crash", "json", "trimtab_test_absent"]
    good, bad, crash, after, absent = doctor._import_errors(*names).values()
    assert good is after is None
    assert bad == "RuntimeError: operator torchvision::nms does not exist"
    assert crash is not None
    assert "exit code -6" in crash
    assert absent is not None
    assert "No module named" in absent
    finding = doctor._torchvision("transformers", bad)
    assert finding.status == "broken"
    assert "pip uninstall torchvision" in str(finding.fix)


def test_a_taken_port_and_a_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        finding = doctor._port(taken.getsockname()[1])
    assert finding.status == "warn"
    assert "in use" in finding.detail
    assert "--port" in str(finding.fix)
    assert doctor._port(free_port()).status == "ok"


def test_a_server_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path))
    began = process_start(os.getpid())
    assert began is not None
    register(RunningServer("m", "0" * 64, f"http://127.0.0.1:{free_port()}", os.getpid(), began, (), "/log"))
    (finding,) = doctor._servers()
    assert finding.status == "broken"
    assert str(os.getpid()) in str(finding.fix)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b'{"detail": "Not Found"}'),
        (503, b'{"error": {"message": "busy"}}'),
        (502, b"<html>bad gateway</html>"),
        (200, b"<html>hello</html>"),
        (200, b'{"profiles": [{"id": 1}]}'),
        (200, b"[" * 200_000),
    ],
)
def test_a_server_that_answers_something_else(
    status: int, body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path))
    began = process_start(os.getpid())
    assert began is not None
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        register(RunningServer("m", "0" * 64, url, os.getpid(), began, (), "/log"))
        (finding,) = doctor._servers()
        server.shutdown()
    assert finding.status == "broken"
    assert f"HTTP {status}" in finding.detail


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path / "file" / "home"))
    disk = next(f for f in doctor._room() if f.name == "disk")
    assert disk.status == "broken"
    assert "TRIMTAB_HOME" in str(disk.fix)


def test_which_op_adapters_go_through(monkeypatch: pytest.MonkeyPatch) -> None:
    from trimtab.steering.vllm import lora_native

    (compiled,) = doctor_compiled.adapters()
    assert compiled.status == "ok"
    monkeypatch.setattr(lora_native, "why_not", lambda: "no compiler")
    (in_torch,) = doctor_compiled.adapters()
    assert (in_torch.status, in_torch.fix) == ("warn", "Install g++")
    monkeypatch.setenv("TRIMTAB_STOCK_LORA", "1")
    (stock,) = doctor_compiled.adapters()
    assert stock.status == "warn"
    assert "last adapter" in stock.detail


@pytest.mark.parametrize(
    ("look", "module", "switch"),
    [("decoding", "decode_native", "TRIMTAB_STOCK_ATTENTION"), ("products", "linear_native", "TRIMTAB_STOCK_LINEAR")],
)
def test_what_is_compiled_for_this_machine(
    look: str, module: str, switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = importlib.import_module(f"trimtab.steering.vllm.{module}")
    monkeypatch.setattr(native, "why_not", lambda: None)
    (compiled,) = getattr(doctor_compiled, look)()
    assert compiled.status == "ok"
    assert "vLLM" not in compiled.detail.split(",")[0]
    monkeypatch.setattr(native, "why_not", lambda: "no compiler")
    (without,) = getattr(doctor_compiled, look)()
    assert (without.status, without.fix) == ("warn", "Install g++")
    assert "no compiler" in without.detail
    monkeypatch.setenv(switch, "1")
    (stock,) = getattr(doctor_compiled, look)()
    assert switch in stock.detail


def test_a_processor_without_amx_is_nothing_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    from trimtab.steering.vllm import linear_native

    for reason in (linear_native.NO_AMX, linear_native.NOT_ALLOWED):
        monkeypatch.setattr(linear_native, "why_not", lambda reason=reason: reason)
        (finding,) = doctor_compiled.products()
        assert (finding.status, finding.fix) == ("ok", None)
