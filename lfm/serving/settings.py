"""Settings of a server, passed to its worker processes through the environment."""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from lfm.serving.request import Limits

VARIABLE = "LFM_SERVER"


class Settings(BaseModel):
    """Of one server; its workers read them from `VARIABLE`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    folder: Path
    """The artifact."""
    model: str
    """URI of the model as it was given; shown at /version."""
    workers: int = Field(1, ge=1, le=256)
    """Processes."""
    threads: int = Field(0, ge=0)
    """Of PyTorch in each worker; 0: the cores shared out."""
    device: str = "auto"
    precision: str = "auto"
    body_mb: float = Field(32.0, gt=0)
    """Most megabytes of a request."""
    images: int = Field(64, ge=1)
    """Most images of a request."""
    megapixels: float = Field(25.0, gt=0)
    """Most millions of pixels of an image."""
    total_megapixels: float = Field(200.0, gt=0)
    """Most millions of pixels of a request."""
    requests: int = Field(32, ge=1)
    """Most requests that a worker works on or keeps waiting; further ones get 503 and Retry-After."""
    read_seconds: float = Field(30.0, gt=0)
    """For a client to send its request."""
    stop_seconds: int = Field(30, ge=1)
    """For requests in flight to end after SIGTERM."""

    prior: str | dict[str, float] = ""
    """In which shares the classes come, where a request does not say so (`lfm.serving.prior`)."""

    supervisor: int = 0
    """Process whose end ends the workers; 0: none."""

    @property
    def limits(self) -> Limits:
        """Of one request."""
        return Limits(self.images, self.megapixels, self.total_megapixels)

    @property
    def threads_each(self) -> int:
        """Threads of PyTorch in each worker."""
        return self.threads or max(1, len(os.sched_getaffinity(0)) // self.workers)


def from_environment() -> Settings:
    """The settings that the supervisor left."""
    return Settings.model_validate_json(os.environ[VARIABLE])
