"""`lfm serve` as it is run: real processes, connections, signals (over 300 lines: one file, for its servers)."""

import base64
import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from lfm.serving.admission import BUSY
from lfm.serving.predictor import Predictor
from tests.conftest import REPOSITORY, Fashion
from tests.serving import LFM_COMMAND, Server, png, serving, write_conv4, write_vit

pytestmark = pytest.mark.slow
CLOSE = 1e-3


@pytest.fixture(scope="module")
def folder(fashion: Fashion, text_CD: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conv4(tmp_path_factory.mktemp("conv4") / "model", fashion, text_CD)


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor(folder, precision="fp32")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, "--workers", "2", "--threads", "1") as server:
        yield server


def same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    """Labels, groups and marks are equal, probabilities but for rounding."""
    flat = [[{k: v for k, v in one.items() if k != "probability"} for one in row["top"]] for row in found]
    if flat != [[{k: v for k, v in one.items() if k != "probability"} for one in row["top"]] for row in expected]:
        return False
    pairs = zip(found, expected, strict=True)
    return all(
        abs(a["probability"] - b["probability"]) < CLOSE
        for x, y in pairs
        for a, b in zip(x["top"], y["top"], strict=True)
    )


def rows(predictor: Predictor, images: Any, top: int = 5, new: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    unit_ND = predictor.features(np.stack([predictor.fit(image) for image in images]))
    return predictor.rows(predictor.answers(unit_ND, top, new))


def test_every_way_of_sending_gets_the_predictors_own_answer(
    server: Server, predictor: Predictor, fashion: Fashion
) -> None:
    images = fashion.test_images[:5]
    files = [png(image) for image in images]
    expected = rows(predictor, images, 3, ("umbrella",))
    params = {"top": 3, "new_classes": ["umbrella"]}
    for given in ([base64.b64encode(file).decode() for file in files], images.tolist()):
        status, answer = server.invoke({"inputs": given, "params": params})
        assert status == 200 and same(answer["predictions"], expected)
    boundary, parts = "xyz", b""
    for file in files:
        parts += part('image"; filename="a.png', file)
    kind = f"multipart/form-data; boundary={boundary}"
    status, answer, _ = server.ask("/predict?top=3&new_class=umbrella", parts + b"--xyz--\r\n", kind)
    assert status == 200 and same(answer["predictions"], expected)
    for kind in ("image/png", "application/octet-stream"):
        status, answer, _ = server.ask("/predict?top=3&new_class=umbrella", files[0], kind)
        assert status == 200 and same(answer["predictions"], expected[:1])


def part(name: str, content: bytes) -> bytes:
    """A field of a form with the boundary xyz."""
    return b'--xyz\r\nContent-Disposition: form-data; name="' + name.encode() + b'"\r\n\r\n' + content + b"\r\n"


@pytest.mark.parametrize(
    ("path", "body", "kind", "status", "message"),
    [
        ("/invocations", b"{", "application/json", 400, "the body is no JSON"),
        ("/invocations", b"[" * 100_000, "application/json", 400, "nested too deeply"),
        ("/invocations", b"\xff\xfe", "application/json", 400, "the body is no JSON"),
        ("/invocations", b'{"inputs": [' + b"9" * 5000 + b"]}", "application/json", 400, "the body is no JSON"),
        ("/invocations", b"a,b\n1,2", "text/csv", 415, "send application/json"),
        ("/invocations", b'{"inputs": ["http://localhost/a.png"]}', "application/json", 422, "none is fetched"),
        ("/invocations", b'{"inputs": [[[1]]]}', "application/json", 422, "image 0 is 1 x 1; this model takes 28 x 28"),
        ("/predict", b"", "image/png", 415, "is no image"),
        ("/predict", b"x" * 200, "image/jpeg", 415, "is no image"),
        ("/predict", b"x", "text/plain", 415, "send image/"),
        ("/predict", b"x", "multipart/form-data", 400, "boundary"),
        ("/predict", b"--a--", "multipart/form-data; boundary=a", 400, "there is no image"),
        ("/predict?top=0", b"x", "image/png", 422, "top: "),
        ("/predict?top=many", b"x", "image/png", 422, "top: "),
        ("/predict?tpo=3", b"x", "image/png", 422, "unknown query field 'tpo'; there are top, new_class and prior"),
        ("/predict?prior=none&prior=uniform", b"x", "image/png", 422, "the query has prior more than once"),
        ("/predict?top=3&new_classes=owl", b"x", "image/png", 422, "unknown query field 'new_classes'; there are"),
        (
            "/invocations?top=3",
            b"{}",
            "application/json",
            422,
            "unknown query field 'top'; top, new_classes and prior go into",
        ),
        (
            "/predict",
            part("top", b"3") + b"--xyz--",
            "multipart/form-data; boundary=xyz",
            422,
            "unknown form field 'top'; files go into the field image, top, new_class and prior into the query",
        ),
        (
            "/predict",
            part('file"; filename="a.png', b"x") + b"--xyz--",
            "multipart/form-data; boundary=xyz",
            422,
            "unknown form field 'file'; files go",
        ),
        (
            "/predict",
            part("image", b"x") + b"--xyz--",
            "multipart/form-data; boundary=xyz",
            422,
            "the form field image is text; send a file in it",
        ),
        ("/predict?new_class=Bag", b"x", "image/png", 422, "'Bag' is named twice, or a class of the model"),
        ("/predict?new_class=" + "x" * 101, b"x", "image/png", 422, "1 to 100 printable characters"),
        ("/nowhere", b"x", "image/png", 404, "Not Found"),
        ("/ping", b"x", "image/png", 405, "Method Not Allowed"),
    ],
)
def test_bad_input_is_one_clear_line(
    server: Server, path: str, body: bytes, kind: str, status: int, message: str
) -> None:
    found, answer, _ = server.ask(path, body, kind)
    assert (found, list(answer)) == (status, ["error"]), answer
    assert message in answer["error"] and "\n" not in answer["error"] and len(answer["error"]) < 400


def test_too_many_images_are_refused(server: Server, fashion: Fashion) -> None:
    status, answer = server.invoke({"inputs": fashion.test_images[:65].tolist()})
    assert status == 413 and "65 images came; send at most 64" in answer["error"]


def test_it_says_what_it_is_and_counts(server: Server, folder: Path, fashion: Fashion) -> None:
    assert server.ask("/ping")[:2] == (200, {"alive": True}) and server.ask("/ready")[0] == 200
    version = server.ask("/version")[1]
    assert version["model"] == str(folder) and version["classes"] == 10
    assert version["calibrated"] and version["new_classes"] and len(version["content"]) == 32

    def counted() -> dict[str, float]:
        page = server.ask("/metrics")[1]
        return {name: float(value) for name, value in re.findall(r"^(lfm_\S+) (\S+)$", page, re.MULTILINE)}

    before = counted()
    for _ in range(6):  # of both workers
        assert server.invoke({"inputs": fashion.test_images[:3].tolist()})[0] == 200
    server.invoke({})
    after, ok, bad = counted(), *(f'lfm_requests_total{{path="/invocations",status="{s}"}}' for s in (200, 400))
    assert after[ok] - before.get(ok, 0) == 6 and after[bad] - before.get(bad, 0) == 1
    assert after["lfm_images_total"] - before["lfm_images_total"] == 18
    assert after["lfm_batch_images_sum"] - before["lfm_batch_images_sum"] == 18
    assert after["lfm_requests_in_flight"] == 0
    assert after['lfm_request_seconds_count{path="/invocations"}'] >= 7


def test_its_openapi_is_kept_whatever_is_sent(server: Server, tmp_path: Path) -> None:
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    done = subprocess.run(
        [Path(sys.executable).with_name("schemathesis"), "run", f"http://127.0.0.1:{server.port}/openapi.json",
         "--checks", checks, "--phases", "examples,coverage,fuzzing", "--max-examples", "8", "--seed", "1",
         "--no-color"],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]


class Clients:
    """Several that ask for their own images over and over, and compare what they are told.

    Args:
        server: asked.
        images: four of each client.
        expected: what the predictor itself says to them.
    """

    def __init__(self, server: Server, images: Any, expected: list[dict[str, Any]]) -> None:
        self.server, self.images, self.expected = server, images, expected
        self.answered, self.failed, self.wrong, self.surprises = 0, 0, list[Any](), list[str]()
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._work, args=(k,)) for k in range(len(images) // 4)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _work(self, k: int) -> None:
        mine = slice(4 * k, 4 * k + 4)
        while not self._stop.is_set():
            try:
                status, answer = self.server.invoke({"inputs": self.images[mine].tolist()})
            except (OSError, http.client.HTTPException):
                with self._lock:
                    self.failed += 1
                time.sleep(0.02)
            else:
                with self._lock:
                    self._note(status, answer, self.expected[mine])

    def _note(self, status: int, answer: Any, expected: list[dict[str, Any]]) -> None:
        if status == 200:
            self.answered += 1
            if not same(answer["predictions"], expected):
                self.wrong.append(answer)
        elif status != 503:
            self.surprises.append(f"{status} {answer}")


def wait_for(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_killed_workers_under_load_give_no_wrong_answer_and_are_replaced(
    server: Server, predictor: Predictor, fashion: Fashion
) -> None:
    images = fashion.test_images[:24]
    expected = rows(predictor, images)
    killed: set[int] = set()
    replaced: list[float] = []
    with Clients(server, images, expected) as clients:
        for _ in range(3):
            enough = clients.answered + 50
            wait_for(lambda: clients.answered >= enough)  # noqa: B023
            victim = server.workers[0]
            os.kill(victim, signal.SIGKILL)
            began = time.monotonic()
            killed.add(victim)
            wait_for(lambda: len(server.workers) == 2 and not killed & set(server.workers))
            replaced.append(time.monotonic() - began)
        enough = clients.answered + 50
        wait_for(lambda: clients.answered >= enough)
    assert not clients.wrong and not clients.surprises and len(killed) == 3
    assert clients.failed < clients.answered
    assert sorted(replaced)[1] < 5, replaced
    server.wait_ready()
    for _ in range(4):
        status, answer = server.invoke({"inputs": images[:4].tolist()})
        assert status == 200 and same(answer["predictions"], expected[:4])
    assert "lfm_requests_in_flight 0.0" in server.ask("/metrics")[1], "those of the dead count no more"


def test_the_only_worker_is_back_within_seconds_and_the_log_says_so(folder: Path, fashion: Fashion) -> None:
    """While clients ask: a worker that dies while it is asked whether it lives gives no answer to that."""
    with serving(folder, "--threads", "1") as server:
        took = []
        for _ in range(3):
            stop = threading.Event()

            def keep_asking(stop: threading.Event = stop) -> None:
                while not stop.is_set():
                    with suppress(OSError, http.client.HTTPException):
                        server.invoke({"inputs": fashion.test_images[:8].tolist()})

            asking = threading.Thread(target=keep_asking)
            asking.start()
            (victim,) = server.workers
            os.kill(victim, signal.SIGKILL)
            began = time.monotonic()
            wait_for(lambda victim=victim: server.workers and server.workers != [victim])  # type: ignore[arg-type, misc]
            server.wait_ready()
            took.append(time.monotonic() - began)
            stop.set()
            asking.join(60)
            assert server.process.stdout
            line = server.process.stdout.readline()
            (other,) = server.workers
            assert f"worker {victim} was ended by SIGKILL; worker {other} takes its place" in line
        assert sorted(took)[1] < 5, took


def test_a_worker_that_hangs_is_replaced(folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "serve.py"
    program.write_text("""
import sys
from lfm.serving import supervisor
supervisor.HUNG_SECONDS = 3
if __name__ == "__main__":
    from lfm.cli.main import main
    main()
""")
    with serving(folder, "--threads", "1", program=(sys.executable, str(program))) as server:
        (victim,) = server.workers
        os.kill(victim, signal.SIGSTOP)
        wait_for(lambda: server.workers and server.workers != [victim])  # type: ignore[arg-type, return-value]
        server.wait_ready()
        assert server.process.stdout
        assert f"worker {victim} has not answered for 3 s; worker" in server.process.stdout.readline()


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("vit")
    return write_vit(work / "model", work)[0]


@pytest.fixture(scope="module")
def slow_body() -> bytes:
    """Images that take a second to decode."""
    file = base64.b64encode(png(np.kron(np.arange(96, dtype=np.uint8).reshape(8, 12), np.ones((140, 140), np.uint8))))
    return b'{"inputs": [' + b", ".join([b'"' + file + b'"'] * 64) + b'], "params": {"top": 1}}'


def ask_aside(server: Server, body: bytes) -> tuple[threading.Thread, list[Any]]:
    """A request in flight."""
    answer: list[Any] = []
    thread = threading.Thread(target=lambda: answer.append(server.ask("/invocations", body, "application/json")))
    thread.start()
    deadline = time.monotonic() + 20
    while "lfm_requests_in_flight 1.0" not in server.ask("/metrics")[1]:
        assert time.monotonic() < deadline and thread.is_alive(), answer
        time.sleep(0.01)
    return thread, answer


def test_a_full_server_says_come_again_and_sigterm_lets_it_finish(vit: Path, slow_body: bytes) -> None:
    with serving(vit, "--requests", "1", "--threads", "1", "--body-mb", "1.5") as server:
        assert len(slow_body) < 1.5e6
        thread, answer = ask_aside(server, slow_body)
        status, refused, headers = server.ask("/invocations", b"{}", "application/json")
        assert (status, refused, headers["Retry-After"]) == (503, {"error": BUSY}, "1")
        assert server.ask("/ping")[0] == 200, "it is alive all the same"
        thread.join(60)
        assert answer[0][0] == 200 and len(answer[0][1]["predictions"]) == 64

        big = b'{"inputs": ["' + b"A" * 2_000_000 + b'"]}'
        status, refused, _ = server.ask("/invocations", big, "application/json")
        assert status == 413 and refused == {"error": "the request is larger than 1.5 MB; send fewer images at a time"}
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        chunks = (big[k : k + 100_000] for k in range(0, len(big), 100_000))  # its length is not told before
        connection.request("POST", "/invocations", chunks, {"Content-Type": "application/json"}, encode_chunked=True)
        assert connection.getresponse().status == 413

        before = answer[0][1]
        thread, answer = ask_aside(server, slow_body)
        server.process.send_signal(signal.SIGTERM)
        thread.join(60)
        assert answer[0][0] == 200 and answer[0][1] == before, "what was begun is finished"
        assert server.process.wait(30) == 0
        with pytest.raises(OSError):
            server.ask("/ping")


def test_it_runs_on_the_packages_of_its_image_alone(vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = {line.partition("==")[0] for line in (REPOSITORY / "requirements/serve.txt").read_text().splitlines()}
    absent = [name for name in ("accelerate", "boto3", "botocore", "kfp", "kubernetes", "pytest") if name not in locked]
    assert {"accelerate", "boto3", "kfp"} <= set(absent)
    (tmp_path / "sitecustomize.py").write_text(f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
""")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{REPOSITORY}")
    with serving(vit, program=(sys.executable, "-m", "lfm.cli")) as server:
        status, answer = server.invoke({"inputs": [[[0, 255]]], "params": {"new_classes": ["owl"], "top": 4}})
        assert status == 200 and [one["zero_shot"] for one in answer["predictions"][0]["top"]].count(True) == 1
    done = subprocess.run([sys.executable, "-m", "lfm.cli", "serve", "--model", str(tmp_path / "none")],
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 2 and re.fullmatch(r"error: --model \S+ holds no model; give .*\n", done.stderr)


def test_workers_end_with_a_supervisor_that_was_killed(vit: Path) -> None:
    with serving(vit, "--workers", "2") as server:
        workers = server.workers
        assert len(workers) == 2
        server.process.kill()
        server.process.wait(10)
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 30)


def test_what_cannot_be_served_is_said_in_one_line(vit: Path, server: Server) -> None:
    for options, message in (
        (("--port", str(server.port)), f"port {server.port} of 127.0.0.1 cannot be had"),
        (("--device", "tpu"), "is no device"),
        (("--precision", "fp8"), "not one of auto, fp32, bf16"),
    ):
        done = subprocess.run(
            [LFM_COMMAND, "serve", "--model", vit, *options], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2 and re.search(rf"^error: .*{message}.*\n\Z", done.stderr, re.MULTILINE), done.stderr
