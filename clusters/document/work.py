"""What runs on a cluster, as its targets need to know it: stages and an endpoint."""

from dataclasses import dataclass, field
from typing import Any

_LONGEST = 50


@dataclass(frozen=True)
class Stage:
    """A stage of training, checked and resolved."""

    name: str
    """Name of the run."""
    document: str
    """The resolved stage file, YAML."""
    train_nodes: int
    """Nodes of the pool `train` that it needs at least."""
    data_nodes: int
    """Nodes of the pool `data` that it needs at least; 0: it decodes elsewhere."""
    after: str | None = None
    """Run among those that are rendered with it whose weights it begins with."""

    @property
    def file_name(self) -> str:
        """Its name where only plain characters can stand."""
        plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in self.name)
        # Where names are longest, one letter has four bytes.
        return plain[:_LONGEST]


@dataclass(frozen=True)
class Endpoint:
    """An endpoint, checked."""

    name: str
    """Name of the application."""
    port: int
    """Where its gateways listen."""
    drain_s: float
    """How long a process that leaves goes on with what it has, seconds."""
    nodes: int
    """Nodes of the pool `serve` that it needs at least."""
    config: dict[str, Any] = field(hash=False)
    """The configuration of Ray Serve (`serveConfigV2`)."""
