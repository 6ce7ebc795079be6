"""`--push-to-hub`: uploads to a stand-in of the hub on this machine."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub
import pytest

from heterolora.common.errors import UserError
from model.hub import check_publishing, publish
from tests.mistakes import refusal
from tests.test_peft_in import trained_by_peft
from tests.world import World
from tools import export


class Hub(ThreadingHTTPServer):
    """Keeps the files that are committed: model -> path -> content. Knows one token, `good`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.models: dict[str, dict[str, bytes]] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def send(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path != "/api/whoami-v2":
            return self.send(404, {"error": "Repository not found"})
        return self.send(200, {"name": "someone", "type": "user", "orgs": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers["Authorization"] != "Bearer good":
            return self.send(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            name = f"{json.loads(body).get('organization') or 'someone'}/{json.loads(body)['name']}"
            self.server.models.setdefault(name, {})
            return self.send(200, {"url": f"{self.server.address}/{name}", "name": name})
        if "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for file in json.loads(body)["files"]]  # fmt: skip
            return self.send(200, {"files": files})
        if "/commit/" in self.path:
            name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.models[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"{self.server.address}/{name}/commit/1"
            return self.send(200, {"commitUrl": address, "commitOid": "1", "hookOutput": "", "success": True})
        return self.send(200, {"errors": [], "warnings": []})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "good")
    yield server
    server.shutdown()
    server.server_close()


def test_a_merged_model(hub: Hub, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained_by_peft(world.opt, tmp_path / "adapter")
    output = tmp_path / "merged"
    arguments = [str(tmp_path / "adapter"), "--format", "merged", "--dataset", "sst2", "--output", str(output)]
    export.main([*arguments, "--push-to-hub", "someone/mine"])
    assert f"published as {hub.address}/someone/mine" in capsys.readouterr().out
    assert hub.models["someone/mine"].keys() - {".gitattributes"} == {file.name for file in output.iterdir()}
    assert hub.models["someone/mine"]["model.safetensors"] == (output / "model.safetensors").read_bytes()


def test_an_adapter_of_a_folder_is_refused(hub: Hub, world: World, tmp_path: Path) -> None:
    """Other people do not have its base."""
    trained_by_peft(world.opt, tmp_path / "adapter", "CAUSAL_LM")
    arguments = [str(tmp_path / "adapter"), "--format", "vllm", "--dataset", "wikitext2", "--push-to-hub", "mine"]
    with pytest.raises(UserError, match="which other people do not have; give its hub name as --backbone-model"):
        export.main([*arguments, "--output", str(tmp_path / "served")])
    assert not (tmp_path / "served").exists()
    assert not hub.models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text("a card\n")
    return tmp_path


def test_a_name_without_owner(hub: Hub, folder: Path) -> None:
    assert publish(folder, "mine") == f"{hub.address}/someone/mine"
    assert hub.models["someone/mine"]["README.md"] == b"a card\n"


def test_the_hub_refuses(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "bad")
    with pytest.raises(UserError, match=r"does not let this token write to mine \(HTTP 401\); use a token with write"):
        publish(folder, "mine")


def test_the_hub_is_not_there(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=rf"mine was not uploaded to http://127.0.0.1:9: .*hf upload mine {folder}"):
        publish(folder, "mine")


def test_mistakes_are_found_before_anything_loads(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str) -> str:
        arguments = ["nowhere", "--format", "peft", "--output", str(tmp_path / "new"), "--push-to-hub", name]
        return refusal(export.main, arguments)

    check_publishing("someone/mine")
    assert "'some one' is no name of a model on the hub" in refused("some one")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN")
    assert "needs an access token of the hub; run hf auth login" in refused("mine")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused("mine")
