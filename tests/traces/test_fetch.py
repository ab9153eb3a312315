"""Downloads against a server on this machine: ranges, breaks, wrong bytes, refusals."""

from __future__ import annotations

import hashlib
import http.server
import re
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from traces.errors import DataError, UsageError
from traces.fetch import download, fetch
from traces.publishers import PUBLICATIONS, Publication, RemoteFile

CONTENT = bytes(range(256)) * 4_000  # about 1 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Script:
    """What the server does: ``breaks`` holds byte counts after which it hangs up, one per call."""

    content: bytes = CONTENT
    etag: str = '"v1"'
    ranges: bool = True
    status: int = 200
    breaks: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    length: bool = True


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Script

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        del format, args

    def do_GET(self) -> None:
        script = self.script
        script.asked.append({k.lower(): v for k, v in self.headers.items()})
        status = script.statuses.pop(0) if script.statuses else script.status
        if status != 200:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = self._start()
        if start is None:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(script.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = script.content[start:]
        self.send_response(206 if start else 200)
        if start:
            whole = len(script.content)
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        if script.etag:
            self.send_header("ETag", script.etag)
        if script.length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.close_connection = True
        self.end_headers()
        if script.breaks:
            self.wfile.write(body[: script.breaks.pop(0)])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.wfile.write(body)

    def _start(self) -> int | None:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if match is None or not self.script.ranges:
            return 0
        if self.headers.get("If-Range", self.script.etag) != self.script.etag:
            return 0
        start = int(match[1])
        return start if start < len(self.script.content) else None


@dataclass
class Server:
    url: str
    script: Script

    def file(self, **changes: object) -> RemoteFile:
        values: dict[str, object] = {
            "url": f"{self.url}/trace.bin",
            "name": "trace.bin",
            "size": len(CONTENT),
            "sha256": SHA256,
            "sha256_by": "publisher",
            **changes,
        }
        return RemoteFile(**values)  # type: ignore[arg-type]


class QuietServer(http.server.ThreadingHTTPServer):
    """Clients here hang up on purpose; that is no news for the test's output."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    script = Script()
    handler = type("Scripted", (Handler,), {"script": script})
    httpd = QuietServer(("127.0.0.1", 0), handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Server(f"http://127.0.0.1:{httpd.server_port}", script)
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def no_pause(seconds: float) -> None:
    assert seconds > 0


def leftovers(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def test_a_whole_download(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    got = download(server.file(), tmp_path / "new", progress=lambda *told: seen.append(told))
    assert got.path.read_bytes() == CONTENT
    assert (got.size, got.sha256, got.resumed_from) == (len(CONTENT), SHA256, 0)
    assert got.verdict == "checksum is the publisher's"
    assert seen[-1] == ("trace.bin", len(CONTENT), len(CONTENT))
    assert leftovers(tmp_path / "new") == ["trace.bin"]


def test_an_interrupted_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.script.breaks = [300_000, 200_000]
    got = download(server.file(), tmp_path, pause=no_pause)
    assert got.path.read_bytes() == CONTENT
    ranges = [asked.get("range") for asked in server.script.asked]
    assert ranges == [None, "bytes=300000-", "bytes=500000-"]
    assert server.script.asked[1]["if-range"] == '"v1"'


def test_the_next_command_resumes(server: Server, tmp_path: Path) -> None:
    server.script.breaks = [300_000]
    file = server.file(size=None, sha256="", sha256_by="")
    with pytest.raises(DataError, match="stopped after 300000 bytes, 1 attempts"):
        download(file, tmp_path, attempts=1)
    assert leftovers(tmp_path) == ["trace.bin.part", "trace.bin.part.json"]
    got = download(file, tmp_path)
    assert got.resumed_from == 300_000
    assert got.path.read_bytes() == CONTENT
    assert got.verdict == "no published checksum"
    assert leftovers(tmp_path) == ["trace.bin"]


def test_a_file_changed_in_between_starts_anew(server: Server, tmp_path: Path) -> None:
    server.script.breaks = [300_000]
    file = server.file(size=None, sha256="", sha256_by="")
    with pytest.raises(DataError):
        download(file, tmp_path, attempts=1)
    server.script.content, server.script.etag = CONTENT[::-1], '"v2"'
    got = download(file, tmp_path)
    assert got.path.read_bytes() == CONTENT[::-1]
    assert got.resumed_from == 0


@pytest.mark.parametrize("etag", ['"v1"', ""])
def test_a_server_without_ranges_sends_it_all_again(
    server: Server, tmp_path: Path, etag: str
) -> None:
    server.script.ranges, server.script.etag = False, etag
    server.script.breaks = [300_000]
    assert download(server.file(), tmp_path, pause=no_pause).path.read_bytes() == CONTENT


def test_without_a_validator_only_a_checksum_allows_to_resume(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "trace.bin.part").write_bytes(b"something else")
    file = server.file(size=None, sha256="", sha256_by="")
    assert download(file, tmp_path).path.read_bytes() == CONTENT
    assert "range" not in server.script.asked[0]


def test_a_part_that_is_whole_already_is_put_in_place(server: Server, tmp_path: Path) -> None:
    (tmp_path / "trace.bin.part").write_bytes(CONTENT)
    assert download(server.file(), tmp_path).resumed_from == len(CONTENT)
    assert server.script.asked[0]["range"] == f"bytes={len(CONTENT)}-"


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "trace.bin.part").write_bytes(CONTENT + b"more")
    got = download(server.file(), tmp_path, pause=no_pause)
    assert got.path.read_bytes() == CONTENT


def test_a_damaged_part_is_caught_by_the_checksum(server: Server, tmp_path: Path) -> None:
    (tmp_path / "trace.bin.part").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="checksum is not the publisher's"):
        download(server.file(), tmp_path)
    assert leftovers(tmp_path) == []
    assert download(server.file(), tmp_path).path.read_bytes() == CONTENT


def test_a_wrong_checksum_deletes_nothing_good(server: Server, tmp_path: Path) -> None:
    good = tmp_path / "trace.bin"
    good.write_bytes(b"what was here before")
    server.script.content = b"?" * len(CONTENT)
    with pytest.raises(DataError, match="checksum is not the publisher's"):
        download(server.file(), tmp_path, force=True)
    assert good.read_bytes() == b"what was here before"
    assert leftovers(tmp_path) == ["trace.bin"]


def test_a_file_that_is_there_is_left_alone(server: Server, tmp_path: Path) -> None:
    (tmp_path / "trace.bin").write_bytes(CONTENT)
    got = download(server.file(), tmp_path)
    assert got.was_there
    assert server.script.asked == []


def test_another_file_of_that_name_is_refused_unless_forced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "trace.bin").write_bytes(b"mine")
    with pytest.raises(DataError, match="not the publisher's file"):
        download(server.file(), tmp_path)
    assert (tmp_path / "trace.bin").read_bytes() == b"mine"
    assert download(server.file(), tmp_path, force=True).path.read_bytes() == CONTENT


def test_a_wrong_size_is_said_before_downloading(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="offers 1024000 bytes; expected 5 bytes"):
        download(server.file(size=5), tmp_path)
    assert leftovers(tmp_path) == []


def test_a_copy_that_differs_from_ours_is_kept_and_said(server: Server, tmp_path: Path) -> None:
    got = download(server.file(sha256="0" * 64, sha256_by="our copy"), tmp_path)
    assert "differs from our tested copy" in got.verdict
    same = download(server.file(sha256_by="our copy"), tmp_path, force=True)
    assert same.verdict == "checksum is our tested copy's"


def test_a_git_lfs_pointer_is_not_a_trace(server: Server, tmp_path: Path) -> None:
    server.script.content = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    with pytest.raises(DataError, match="Git LFS pointer"):
        download(server.file(size=None), tmp_path)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "message"),
    [(403, "Git LFS quota"), (404, "may have moved it"), (401, "a login"), (418, "418")],
)
def test_refusals_say_what_to_think(
    server: Server, tmp_path: Path, status: int, message: str
) -> None:
    server.script.status = status
    with pytest.raises(DataError, match=message):
        download(server.file(), tmp_path)
    assert leftovers(tmp_path) == []
    assert len(server.script.asked) == 1


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.script.statuses = [503, 429]
    pauses: list[float] = []
    download(server.file(), tmp_path, pause=pauses.append)
    assert pauses == [1.0, 2.0]
    server.script.statuses = [500] * 9
    with pytest.raises(DataError, match="3 attempts: the server answers 500"):
        download(server.file(), tmp_path, force=True, attempts=3, pause=no_pause)
    assert (tmp_path / "trace.bin").read_bytes() == CONTENT


def test_a_length_the_server_does_not_tell(server: Server, tmp_path: Path) -> None:
    server.script.length = False
    assert download(server.file(), tmp_path).path.read_bytes() == CONTENT


def test_a_silent_server_times_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        file = RemoteFile(url=f"http://127.0.0.1:{port}/x", name="x")
        with pytest.raises(DataError, match=r"1 attempts: .*timed out"):
            download(file, tmp_path, timeout_s=0.1, attempts=1)


def test_no_server_at_all(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    file = RemoteFile(url=f"http://127.0.0.1:{port}/x", name="x")
    with pytest.raises(DataError, match="no connection"):
        download(file, tmp_path, attempts=2, pause=no_pause)


def test_only_http_addresses(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected http"):
        download(RemoteFile(url=(tmp_path / "x").as_uri(), name="x"), tmp_path)


def test_fetch_takes_every_file_of_a_publication(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = (server.file(), server.file(name="second.bin"))
    here = Publication(title="a test", licence="none", files=files)
    monkeypatch.setitem(PUBLICATIONS, "here", here)
    got = fetch("here", tmp_path)
    assert [g.path.name for g in got] == ["trace.bin", "second.bin"]
    with pytest.raises(UsageError, match="did you mean 'philly'"):
        fetch("philli", tmp_path)


def test_publications_are_well_formed() -> None:
    for name, publication in PUBLICATIONS.items():
        names = [f.name for f in publication.files]
        assert len(names) == len(set(names)) > 0, name
        for file in publication.files:
            assert file.url.startswith("https://")
            assert re.fullmatch(r"[\w.-]+", file.name)
            assert bool(file.sha256) == bool(file.sha256_by)
            assert not file.sha256 or re.fullmatch(r"[0-9a-f]{64}", file.sha256)


def test_the_page_lists_every_publication(repo: Path) -> None:
    page = (repo / "docs" / "traces" / "fetch.md").read_text(encoding="utf-8")
    for name, publication in PUBLICATIONS.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        whose = {f.sha256_by for f in publication.files}
        assert ("the publisher's" in row) == ("publisher" in whose), name
        assert ("our copy's" in row) == ("our copy" in whose), name


def test_checksums_of_our_copies(shared_data: Path) -> None:
    import gzip

    copies = {
        "philly.csv": "philly/jobs.csv.gz",
        "openb_pod_list_default.csv": "openb/pods.csv.gz",
        "openb_pod_list_gpuspec33.csv": "openb/pods_gpuspec33.csv.gz",
        "openb_node_list_gpu_node.csv": "openb/nodes.csv",
        "disaggregated_DLRM_trace.csv": "dlrm-serving/instances.csv.gz",
        "node_info_df.csv": "spot-gpu/nodes.csv.gz",
        "artifact_evaluation.trace": "gavel/artifact_evaluation.trace",
        "medium_test.trace": "gavel/medium_test.trace",
        "small_test.trace": "gavel/small_test.trace",
        "60_job.csv": "tiresias/60_job.csv",
        "easyscale_workload.csv": "easyscale/workload.csv",
    }
    ours = {
        f.name: f.sha256
        for p in PUBLICATIONS.values()
        for f in p.files
        if f.sha256_by == "our copy"
    }
    assert ours.keys() == copies.keys()
    for name, place in copies.items():
        data = (shared_data / place).read_bytes()
        data = gzip.decompress(data) if place.endswith(".gz") else data
        assert hashlib.sha256(data).hexdigest() == ours[name], name


def test_the_bar_is_for_terminals_alone(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from traces.download_bar import download_bar

    with download_bar() as progress:
        assert progress is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with download_bar() as progress:
        download(server.file(), tmp_path, progress=progress)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "trace.bin" in captured.err
