"""Damaged files into the decoder: python -m tests.programs.fuzz_decoder [--seconds 60] [--first 0] [--most N]

Each seed is a file (`tests.decoder_inputs.mutated`). Whatever it is, it is used or refused by `BadImageError`; no other
exception, no end of the process, no line on stderr, and no more than `SLOWEST` seconds. A child process tries them, so
that a crash is a failure too, which names the seed.
"""

import argparse
import os
import select
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SLOWEST = 20.0
MEGAPIXELS = 1.0


def one(seed: int) -> bool:
    """Try a seed; whether the file was used.

    Raises:
        AssertionError: what was seen whole does not decode to that size.
    """
    from lfm.data.decoding import BadImageError, decode, decode_fast, look
    from tests.decoder_inputs import mutated

    _, data = mutated(seed)
    ranges = {"u16": (0.0, 4095.0), "f32": (0.0, 1.0), "i32": (0.0, 70_000.0)}
    try:
        seen = look(data, MEGAPIXELS)
    except BadImageError:
        seen = None
    try:
        image = decode(data, "x", MEGAPIXELS, ranges=ranges)
    except BadImageError as error:
        assert str(error).startswith("x ")
        image = None
    try:
        with no_stderr():  # torchvision's libjpeg has no switch for its remarks
            assert decode_fast(memoryview(data), "x", MEGAPIXELS, ranges).shape[0] == 3
    except BadImageError:
        pass
    if seen is None or image is None:
        return False
    assert image.mode == "RGB" and {image.width, image.height} == {seen.width, seen.height}
    return True


@contextmanager
def no_stderr() -> Iterator[None]:
    """File descriptor 2 leads nowhere meanwhile."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def try_them(first: int) -> None:
    """Of the child: seeds from `first` on, each told before it is tried, until it is killed."""
    seed = first
    while True:
        os.write(1, f"{seed}\n".encode())
        try:
            used = one(seed)
        except BaseException:
            traceback.print_exc()
            raise SystemExit(1) from None
        os.write(1, f"{'used' if used else 'refused'}\n".encode())
        seed += 1


def fuzz(seconds: float, first: int, most: int | None = None) -> tuple[int, int]:
    """Try for so long, and at most so many; how many files were tried, and how many of them were used.

    Raises:
        SystemExit: a seed failed; it is named.
    """
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.programs.fuzz_decoder", "--child", "--first", str(first)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert child.stdout and child.stderr
    end, seed, tried, used, fault = float("inf"), str(first), 0, 0, ""
    while time.monotonic() < end and tried != most and not fault:
        if tried == 1 and end == float("inf"):
            end = time.monotonic() + seconds  # the imports are done
        wait = SLOWEST if tried else 120.0  # the first one waits for the imports
        readable = select.select([child.stdout, child.stderr], [], [], wait)[0]
        if child.stderr in readable:
            fault = os.read(child.stderr.fileno(), 1 << 16).decode(errors="replace")
            if not fault:
                fault = f"the process ended with {child.wait()}"
        elif not readable:
            fault = f"no answer within {wait:g} seconds"
        elif line := child.stdout.readline().decode().strip():
            tried, used = tried + (line in ("used", "refused")), used + (line == "used")
            seed = line if line.isdigit() else seed
        else:
            fault = f"the process ended with {child.wait()}"
    child.kill()
    _, rest = child.communicate()
    if fault:
        raise SystemExit(f"seed {seed}: {fault}{rest.decode(errors='replace')}")
    return tried, used


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--most", type=int, help="the most files")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        try_them(options.first)
    tried, used = fuzz(options.seconds, options.first, options.most)
    print(
        f"{tried:,} damaged files from seed {options.first}: {used:,} used, {tried - used:,} refused, no other answer"
    )
