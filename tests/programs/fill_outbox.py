"""Writes a hundred records into an outbox and waits to be killed: OUTBOX RECEIVER."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfm.tracking.outbox import Outbox, Record, RefusedError, Send


def to_file(header: Mapping[str, Any], folder: Path) -> Send:
    """Appends to the file that the header names; its folder being away is a server that is down."""

    def send(record: Record) -> None:
        if record["do"] == "bad":
            raise RefusedError("never")
        with Path(header["to"]).open("a") as file:
            extra = (folder / record["path"]).read_text() if "path" in record else ""
            file.write(f"{record['do']}{record.get('n', '')}{extra}\n")

    return send


if __name__ == "__main__":
    box = Outbox(Path(sys.argv[1]), {"to": sys.argv[2]}, to_file)
    for n in range(100):
        box.put({"do": "metrics", "n": n})
    print("written", flush=True)
    time.sleep(60)
