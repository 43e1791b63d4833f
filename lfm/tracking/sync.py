"""Records that wait on disk, or at LFM_STORE, for a server that was down."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.utils.time import get_current_time_millis

from lfm.storage import s3
from lfm.storage.store import shared
from lfm.tracking import outbox
from lfm.tracking.client import connect
from lfm.tracking.membership import Membership
from lfm.tracking.record_sender import RecordSender
from lfm.tracking.step_logger import outboxes
from lfm.tracking.uri import server_address


def sync() -> outbox.Drained:
    """Send what waits on disk for a server that was down: of this machine, and of pods that are gone (LFM_STORE).

    What waits for another server than this, `elsewhere`, stays: here its runs would not be found.

    Returns:
        How many records were sent, and how many the server refused; those are kept in the outbox's refused.jsonl.

    Raises:
        InputError: the server does not answer; what waits stays.
    """
    connect()
    found = [outbox.drain(outboxes(), RecordSender, _end_of_killed, _is_for_here)]
    remote = shared("outbox")
    items = s3.listing(remote) if remote else []
    for header in [item.uri for item in items if item.uri.endswith("/header.json")]:
        prefix = header.removesuffix("/header.json")
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / prefix.rpartition("/")[2]
            for item in s3.listing(prefix):
                s3.download(item.uri, folder / item.uri.removeprefix(f"{prefix}/"))
            kept_here = outboxes() / outbox.REFUSED
            found.append(outbox.drain(Path(place), RecordSender, _end_of_killed, _is_for_here, kept_here))
            kept = outbox.waiting(Path(place))
        if not kept:
            s3.delete(prefix)
    return outbox.Drained(sum(each.sent for each in found), sum(each.refused for each in found))


def elsewhere() -> dict[str, int]:
    """Addresses of other servers -> how many records wait on this machine for each."""
    found: dict[str, int] = {}
    for header, count in outbox.left(outboxes()):
        if count and not _is_for_here(header):
            found[header["to"]] = found.get(header["to"], 0) + count
    return found


def _is_for_here(header: Mapping[str, Any]) -> bool:
    """Whether a step's records are for this server: by its address, or since its run is here, as after a move."""
    if header.get("to", server_address()) == server_address():
        return True
    return Membership(header["key"], header["mlflow_run"]).parent(connect()) is not None


def _end_of_killed(delivery: outbox.Send, ended: bool) -> None:
    """A step that was killed said nothing of its end."""
    assert isinstance(delivery, RecordSender)
    if not ended and delivery.header["step"]:
        delivery({"do": "end", "on": ["child"], "status": "KILLED", "at": get_current_time_millis()})
