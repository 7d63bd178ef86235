"""Downloads: atomic, with retries, from a mirror first, and checked against the record from then on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from harness.errors import DataError, DataMissing, HarnessError, ModelError
from harness.models.checkpoint_files import hub_file
from harness.util import downloads
from harness.util.downloads import BadFile, Remote, from_hugging_face, mirrored
from harness.util.lockfile import differs

CONTENT = b"weights" * 5000
OTHER = b"weihgts" * 5000
WEB_PAGE = b"<!DOCTYPE html><html>quota exceeded</html>"


class Server(ThreadingHTTPServer):
    """Serves the ``answers`` of a path one after the other, and the last one from then on.

    An answer is the content, a status as an int, or a pair of the content and the number of bytes that are sent of it.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[bytes | int | tuple[bytes, int]]] = {}
        self.requested: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requested.append(self.path)
        answers = self.server.answers.get(self.path, [404])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, int):
            self.send_error(answer)
            return
        content, sent = answer if isinstance(answer, tuple) else (answer, len(answer))
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:sent])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A local server, an empty working directory, and no waiting."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(downloads.MIRROR, raising=False)
    monkeypatch.setattr(downloads, "FIRST_WAIT_S", 0.0)
    server = Server()
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def not_a_web_page(path: Path) -> None:
    if path.read_bytes().startswith(b"<"):
        raise BadFile("is a web page")


def remote(server: Server, **fields: Any) -> Remote:
    url = f"{server.address}/zoo/a.pt"
    return Remote(Path("models/a.pt").absolute(), url, **({"check": not_a_web_page} | fields))


def files_in(directory: str = "models") -> list[str]:
    return sorted(file.name for file in Path(directory).iterdir())


def test_a_file_is_fetched_once_and_recorded(server: Server) -> None:
    server.answers["/zoo/a.pt"] = [CONTENT]
    file = remote(server)
    file.ensure(offline=False)
    file.ensure(offline=False)
    file.ensure(offline=True)
    assert file.path.read_bytes() == CONTENT
    assert server.requested == ["/zoo/a.pt"]
    assert files_in() == ["a.pt"]
    expected = {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    assert json.loads(Path("models.lock").read_text()) == {file.url: expected}
    assert files_in(".") == ["models", "models.lock"]


def test_a_temporary_fault_is_retried(server: Server) -> None:
    server.answers["/zoo/a.pt"] = [503, (CONTENT, 1000), 429, CONTENT]
    remote(server).ensure(offline=False)
    assert Path("models/a.pt").read_bytes() == CONTENT
    assert len(server.requested) == 4 == downloads.ATTEMPTS


def test_each_wait_is_twice_as_long(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(downloads, "FIRST_WAIT_S", 1.0)
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    server.answers["/zoo/a.pt"] = [503]
    with pytest.raises(ModelError):
        remote(server).ensure(offline=False)
    assert waits == [1, 2, 4]


BY_HAND = r".*; to put it there by hand, open http://127\S+/zoo/a\.pt .*save .* as \S+/models/a\.pt$"


@pytest.mark.parametrize(
    ("answer", "requests", "message"),
    [
        ((CONTENT, 1000), 4, r"the download failed .*1,000 of 35,000 bytes"),
        (500, 4, r"the download failed .*500: Internal Server Error"),
        (404, 1, r"the download failed .*404: Not Found"),
        (WEB_PAGE, 1, r"what came from http\S+/zoo/a\.pt is a web page"),
    ],
    ids=["cut", "broken", "gone", "page"],
)
@pytest.mark.parametrize("error", [ModelError, DataError])
def test_a_bad_download_is_named_with_the_way_by_hand_and_leaves_nothing(
    server: Server, answer: Any, requests: int, message: str, error: type[HarnessError]
) -> None:
    server.answers["/zoo/a.pt"] = [answer]
    with pytest.raises(error, match=message + BY_HAND) as caught:
        remote(server, error=error).ensure(offline=False)
    assert str(caught.value).startswith(f"{Path('models/a.pt').absolute()}: ")
    assert len(server.requested) == requests
    assert files_in() == []
    assert not Path("models.lock").exists()


def test_offline_nothing_is_requested(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(downloads.MIRROR, server.address)
    with pytest.raises(DataMissing, match="no such file.*offline" + BY_HAND):
        remote(server, missing=DataMissing).ensure(offline=True)
    assert server.requested == []
    assert files_in(".") == []


# --- mirrors ---


@pytest.mark.parametrize(
    ("mirror", "url", "expected"),
    [
        ("https://m.org/x/", "https://a.org/b/c.pt", "https://m.org/x/a.org/b/c.pt"),
        ("file:///pool", "https://a.org/b/c.pt?raw=1", "file:///pool/a.org/b/c.pt"),
        ("file:///pool", "https://drive.google.com/uc?id=1-Zg", "file:///pool/drive.google.com/1-Zg"),
        ("", "https://a.org/b/c.pt", None),
    ],
)
def test_the_address_on_a_mirror_holds_host_and_path(
    mirror: str, url: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(downloads.MIRROR, mirror)
    assert mirrored(url) == expected


@pytest.mark.parametrize("scheme", ["file", "http"])
def test_the_mirror_is_tried_first(server: Server, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    mirrored_file = Path("pool/127.0.0.1/zoo/a.pt")
    mirrored_file.parent.mkdir(parents=True)
    mirrored_file.write_bytes(CONTENT)
    server.answers["/pool/127.0.0.1/zoo/a.pt"] = [CONTENT]
    address = Path("pool").absolute().as_uri() if scheme == "file" else f"{server.address}/pool"
    monkeypatch.setenv(downloads.MIRROR, address)
    file = remote(server)
    file.ensure(offline=False)
    assert file.path.read_bytes() == CONTENT
    assert server.requested == ([] if scheme == "file" else ["/pool/127.0.0.1/zoo/a.pt"])
    assert list(json.loads(Path("models.lock").read_text())) == [file.url]


def test_a_file_that_the_mirror_lacks_comes_from_its_own_address(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    monkeypatch.setenv(downloads.MIRROR, Path("empty").absolute().as_uri())
    with pytest.raises(ModelError, match=r"failed \(the mirror's file:\S+: URLError.*; HTTPError: .*404"):
        remote(server).ensure(offline=False)
    server.answers["/zoo/a.pt"] = [CONTENT]
    remote(server).ensure(offline=False)
    assert Path("models/a.pt").read_bytes() == CONTENT
    assert waits == []


def test_a_mirror_that_sends_a_web_page_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(downloads.MIRROR, f"{server.address}/m")
    server.answers |= {"/m/127.0.0.1/zoo/a.pt": [WEB_PAGE], "/zoo/a.pt": [CONTENT]}
    with pytest.raises(
        ModelError, match=r"what came from http\S+/m/127\.0\.0\.1/zoo/a\.pt is a web page; to put it there"
    ):
        remote(server).ensure(offline=False)
    assert files_in() == []


# --- models.lock ---

DIFFERS = (
    r" is not what \S+/models\.lock recorded for http\S+/zoo/a\.pt: expected .*[0-9a-f]{16}…, 35,000 bytes, "
    r"found .*[0-9a-f]{16}…, 35,000 bytes; "
)
ON_PURPOSE = r".* delete the entry in models\.lock$"


def test_a_file_put_there_by_hand_is_recorded_and_refused_when_it_changes(server: Server) -> None:
    file = remote(server)
    file.path.parent.mkdir()
    file.path.write_bytes(CONTENT)
    file.ensure(offline=True)
    file.path.write_bytes(OTHER)
    with pytest.raises(ModelError, match=rf"a\.pt{DIFFERS}delete it to fetch it again{ON_PURPOSE}"):
        file.ensure(offline=True)
    assert file.path.read_bytes() == OTHER
    Path("models.lock").write_text("{}")
    file.ensure(offline=True)
    assert server.requested == []


def test_another_file_from_the_same_address_is_refused(server: Server) -> None:
    server.answers["/zoo/a.pt"] = [CONTENT, OTHER]
    file = remote(server)
    file.ensure(offline=False)
    file.path.unlink()
    with pytest.raises(ModelError, match=rf"what came from http\S+/zoo/a\.pt{DIFFERS}run again{ON_PURPOSE}"):
        file.ensure(offline=False)
    assert files_in() == []


def test_entries_are_sorted_and_kept(server: Server) -> None:
    Path("a").write_bytes(b"a")
    for url in ("https://z.org", "https://a.org", "https://m.org"):
        assert differs(url, Path("a")) is None
    assert list(json.loads(Path("models.lock").read_text())) == ["https://a.org", "https://m.org", "https://z.org"]


@pytest.mark.parametrize("text", ["<<<<<<< HEAD", "[]", '{"https://a.org": 3}', '{"https://a.org": {"size": 1}}'])
def test_a_lock_that_cannot_be_parsed_is_not_overwritten(server: Server, text: str) -> None:
    Path("models.lock").write_text(text)
    Path("a").write_bytes(b"a")
    with pytest.raises(HarnessError, match=r"models\.lock: not a models\.lock .*; fix it, or delete it"):
        differs("https://a.org", Path("a"))
    assert Path("models.lock").read_text() == text


def test_a_lock_that_cannot_be_written_is_still_checked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a").write_bytes(CONTENT)
    Path("b").write_bytes(OTHER)
    differs("https://a.org", Path("a"))

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(fcntl, "flock", denied)  # root may write anywhere
    assert "is not what" in str(differs("https://a.org", Path("b")))
    with pytest.warns(UserWarning, match=r"models\.lock cannot be written .*; https://b\.org is not recorded"):
        assert differs("https://b.org", Path("b")) is None


def test_processes_that_record_at_once_lose_no_entry(server: Server) -> None:
    Path("a").write_bytes(b"a")
    code = (
        "import sys; from pathlib import Path; from harness.util.downloads import differs\n"
        "for i in range(40): assert differs(f'https://{sys.argv[1]}.org/{i}', Path('a')) is None"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, name]) for name in ("one", "two", "three")]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert len(json.loads(Path("models.lock").read_text())) == 120
    assert files_in(".") == ["a", "models.lock"]


def test_a_process_that_waited_for_a_replaced_lock_waits_for_the_new_one(server: Server) -> None:
    """Otherwise two processes would write at once, each holding the lock of another file."""
    Path("a").write_bytes(b"a")
    Path("models.lock").write_text("{}")
    Path("new").write_text("{}")
    waiting = Thread(target=differs, args=("https://a.org", Path("a")), daemon=True)
    with Path("new").open("a") as new:
        fcntl.flock(new, fcntl.LOCK_EX)
        with Path("models.lock").open("a") as old:
            fcntl.flock(old, fcntl.LOCK_EX)
            waiting.start()
            time.sleep(0.1)
            Path("new").replace("models.lock")
        waiting.join(0.2)
        assert waiting.is_alive()
        assert Path("models.lock").read_text() == "{}"
    waiting.join(10)
    assert list(json.loads(Path("models.lock").read_text())) == ["https://a.org"]


def test_processes_that_download_at_once_each_find_a_complete_file(server: Server) -> None:
    server.answers["/a.pt"] = [CONTENT]
    code = (
        "import sys; from pathlib import Path; from harness.util.downloads import Remote\n"
        "Remote(Path('models/a.pt').absolute(), sys.argv[1] + '/a.pt', lambda path: None).ensure(False)\n"
        "print(len(Path('models/a.pt').read_bytes()))"
    )
    command = [sys.executable, "-c", code, server.address]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=60)[0].strip() for process in running] == [str(len(CONTENT))] * 3
    assert files_in() == ["a.pt"]


# --- caches of other libraries ---


def test_a_hub_file_must_have_the_hash_of_its_name(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(Path.cwd()))
    torch.save({"a": torch.ones(1)}, "whole.pt")
    content = Path("whole.pt").read_bytes()
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    server.answers |= {f"/{name}": [content], "/net-00000000.pth": [content]}
    hub_file(f"{server.address}/{name}").ensure(offline=False)
    assert Path("hub/checkpoints", name).read_bytes() == content
    with pytest.raises(ModelError, match=r"is not the file of that name: .*SHA-256.*[0-9a-f]{8}; to put it there"):
        hub_file(f"{server.address}/net-00000000.pth").ensure(offline=False)
    assert files_in("hub/checkpoints") == [name]


def write_hub_cache(cache: Path, repo: str, **files: bytes) -> Path:
    """Write a repository into a cache of the Hugging Face hub, and return the directory of its files."""
    directory = cache / f"models--{repo.replace('/', '--')}"
    snapshot = directory / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (directory / "refs").mkdir()
    (directory / "refs" / "main").write_text("0" * 40)
    for name, content in files.items():
        (snapshot / name.replace("__", ".")).write_bytes(content)
    return snapshot


def test_a_file_in_the_cache_of_hugging_face_is_recorded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path("hf").absolute()))
    snapshot = write_hub_cache(Path("hf"), "user/net", pytorch_model__bin=CONTENT)

    def fetch() -> Path:
        return from_hugging_face("user/net", ["model.safetensors", "pytorch_model.bin"], None, True, "do it by hand")

    assert fetch() == (snapshot / "pytorch_model.bin").absolute()
    [url] = json.loads(Path("models.lock").read_text())
    assert url == "https://huggingface.co/user/net/resolve/main/pytorch_model.bin"
    (snapshot / "pytorch_model.bin").write_bytes(OTHER)
    with pytest.raises(ModelError, match=rf"is not what .*{url}.*; name the revision .*repo@revision"):
        fetch()
    os.remove(snapshot / "pytorch_model.bin")
    message = rf"^\S+model\.safetensors or {url}: not in the cache .*offline.*; do it by hand$"
    with pytest.raises(ModelError, match=message):
        fetch()
