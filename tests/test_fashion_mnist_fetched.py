"""Where Fashion-MNIST's files come from: mirrors, packages, and what a bad one says."""

import functools
import gzip
import http.server
import multiprocessing
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import FashionMNIST

from lfm.data.sources.fashion_mnist import SHA256, read_idx
from lfm.errors import InputError
from tests.conftest import Fashion
from tests.idx_files import DAMAGE, LABELS, flipped, load, pixels

# --- where the files come from ---


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Tell torchvision another address."""
    return lambda url: monkeypatch.setattr(FashionMNIST, "mirrors", [url])


@pytest.fixture
def nothing_answers(mirror: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    mirror(f"http://127.0.0.1:{closed_port()}/")
    monkeypatch.setenv("PATH", "")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and keeps quiet."""

    def log_message(self, *args: Any) -> None:
        pass

    def send_head(self) -> Any:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        return super().send_head()


@pytest.fixture
def serve() -> Iterator[Callable[[Path], http.server.ThreadingHTTPServer]]:
    """A real web server on loopback."""
    servers = []

    def start(folder: Path) -> http.server.ThreadingHTTPServer:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        server.asked = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def same_as_published(folder: Path) -> bool:
    return all(read_idx(folder / f"{name}.gz", SHA256[name]).size for name in SHA256)


@pytest.mark.usefixtures("nothing_answers")
def test_what_was_fetched_before_is_used_without_asking_anyone(
    home: Path, fashion_folder: Path, fashion: Fashion, capsys: pytest.CaptureFixture[str]
) -> None:
    place = home / "downloads" / "fashion-mnist"
    place.mkdir(parents=True)
    for name in SHA256:
        (place / f"{name}.gz").symlink_to(fashion_folder / f"{name}.gz")
    found = load("")
    assert np.array_equal(pixels(found), fashion.train_images)
    assert f"from the local folder {place}" in capsys.readouterr().out


@pytest.mark.slow
def test_the_mirror_is_asked_first_and_its_files_are_kept(
    home: Path,
    fashion_folder: Path,
    fashion: Fashion,
    serve: Callable[[Path], http.server.ThreadingHTTPServer],
    mirror: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = serve(fashion_folder)
    mirror(f"http://127.0.0.1:{server.server_port}/")
    found = load("")
    place = home / "downloads" / "fashion-mnist"
    assert sorted(server.asked) == sorted(f"/{name}.gz" for name in SHA256)  # type: ignore[attr-defined]
    assert {path.name for path in place.iterdir()} == {f"{name}.gz" for name in SHA256}
    for name in SHA256:
        assert (place / f"{name}.gz").read_bytes() == (fashion_folder / f"{name}.gz").read_bytes()
    assert found.checksum == load(fashion_folder).checksum
    told = capsys.readouterr().out
    assert f"from torchvision's mirror, checksums verified, kept in {place}" in told and "Debian" not in told


@pytest.mark.slow
def test_a_folder_that_lacks_a_file_is_filled(
    home: Path,
    fashion_folder: Path,
    serve: Callable[[Path], http.server.ThreadingHTTPServer],
    mirror: Callable[[str], None],
) -> None:
    place = home / "downloads" / "fashion-mnist"
    place.mkdir(parents=True)
    shutil.copyfile(fashion_folder / f"{LABELS}.gz", place / f"{LABELS}.gz")
    mirror(f"http://127.0.0.1:{serve(fashion_folder).server_port}/")
    load("")
    assert same_as_published(place)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get")
def test_when_the_mirror_refuses_debians_package_is_fetched_and_named(
    home: Path, mirror: Callable[[str], None], fashion: Fashion, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror(f"http://127.0.0.1:{closed_port()}/")
    found = load("")
    told = capsys.readouterr().out
    assert "torchvision's mirror did not answer" in told
    assert "from Debian's package dataset-fashion-mnist, checksums verified" in told
    assert np.array_equal(pixels(found), fashion.train_images)
    assert same_as_published(home / "downloads" / "fashion-mnist")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get")
def test_a_mirror_with_an_altered_file_is_passed_over(
    home: Path,
    fashion_folder: Path,
    tmp_path: Path,
    serve: Callable[[Path], http.server.ThreadingHTTPServer],
    mirror: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    altered = tmp_path / "altered"
    altered.mkdir()
    for name in SHA256:
        (altered / f"{name}.gz").symlink_to(fashion_folder / f"{name}.gz")
    path = altered / f"{LABELS}.gz"
    raw = flipped(gzip.decompress(path.read_bytes()), 5000)
    path.unlink()
    path.write_bytes(gzip.compress(raw))
    server = serve(altered)
    mirror(f"http://127.0.0.1:{server.server_port}/")
    load("")
    assert f"/{LABELS}.gz" in server.asked  # type: ignore[attr-defined]
    told = capsys.readouterr().out
    assert "from Debian's package" in told and "from torchvision's mirror" not in told
    assert same_as_published(home / "downloads" / "fashion-mnist")


@pytest.mark.usefixtures("nothing_answers")
def test_when_nobody_answers_the_error_says_who_was_asked_and_what_to_do(home: Path) -> None:
    with pytest.raises(InputError) as refusal:
        load("")
    message = str(refusal.value)
    place = home / "downloads" / "fashion-mnist"
    for part in (str(place), "torchvision's mirror", "refused", "Debian's package", "no apt-get", "set data.source"):
        assert part in message
    assert not place.exists() or not list(place.iterdir())


def answering(payload: bytes) -> tuple[str, socket.socket]:
    """The address of a server that says `payload` to whatever it is asked."""
    listener = socket.create_server(("127.0.0.1", 0))

    def loop() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(4096)
                connection.sendall(payload)

    threading.Thread(target=loop, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/", listener


ANSWERS = {
    "nothing": b"",
    "not found": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    "a login page": b"HTTP/1.1 200 OK\r\n\r\n<html>please log in</html>",
    "less than promised": b"HTTP/1.1 200 OK\r\nContent-Length: 26421880\r\n\r\n\x1f\x8b",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a length that is no number": b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n\x1f\x8b",
    "a chunk cut off": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nab",
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.usefixtures("home")
def test_whatever_a_bad_mirror_says_the_next_source_is_tried(
    answer: str, mirror: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, listener = answering(ANSWERS[answer])
    mirror(url)
    monkeypatch.setenv("PATH", "")
    with listener, pytest.raises(InputError, match=r"torchvision's mirror: .*Debian's package .*set data.source"):
        load("")


@pytest.mark.parametrize("damage", ["gzip truncated", "one label changed", "a flipped byte in the compressed data"])
def test_files_are_kept_all_or_none(
    damage: str,
    home: Path,
    fashion_folder: Path,
    tmp_path: Path,
    serve: Callable[[Path], http.server.ThreadingHTTPServer],
    mirror: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last of the four is bad: the three before it must not stay as if the data set were there."""
    altered = tmp_path / "altered"
    altered.mkdir()
    for name in SHA256:
        (altered / f"{name}.gz").symlink_to(fashion_folder / f"{name}.gz")
    path = altered / f"{LABELS}.gz"
    damaged = DAMAGE[damage][0](path.read_bytes())
    path.unlink()
    path.write_bytes(damaged)
    mirror(f"http://127.0.0.1:{serve(altered).server_port}/")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="cannot be fetched"):
        load("")
    place = home / "downloads" / "fashion-mnist"
    assert not place.exists() or not list(place.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_answers")
def test_processes_that_fetch_at_once_all_get_the_files(
    home: Path,
    fashion_folder: Path,
    serve: Callable[[Path], http.server.ThreadingHTTPServer],
    mirror: Callable[[str], None],
) -> None:
    """First runs side by side, say of several seeds, share the download folder."""
    mirror(f"http://127.0.0.1:{serve(fashion_folder).server_port}/")
    fork = multiprocessing.get_context("fork")  # what is imported and set here holds there
    together = fork.Barrier(4)

    def fetch() -> None:
        together.wait(30)
        assert len(load("").label_N) == 70_000

    processes = [fork.Process(target=fetch) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    place = home / "downloads" / "fashion-mnist"
    assert same_as_published(place) and len(list(place.glob("*.gz"))) == 4
