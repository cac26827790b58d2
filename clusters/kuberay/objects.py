"""What all manifests have in common: names, labels, quantities, and how they are written."""

from dataclasses import dataclass
from typing import Any

import yaml

from clusters.document.cluster import Cluster

RAY_VERSION = "2.60.0"
"""Of the image; KubeRay must be told."""
OF = "gwp/cluster"
"""Label of everything that belongs to a cluster document."""
_MI = 1024


@dataclass(frozen=True)
class Manifest:
    """One Kubernetes object, and what a person should know or decide before it is applied."""

    body: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`kind-name`, as its file is called."""
        return f"{self.body['kind']}-{self.body['metadata']['name']}".lower()

    def text(self) -> str:
        """As YAML, notes first."""
        head = "".join(f"# {_on_a_line(note)}\n" for note in self.notes)
        body = yaml.dump(self.body, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
        return head + body


def _on_a_line(note: str) -> str:
    """Names of runs may hold what YAML takes for the end of a line, and so of a comment."""
    return "".join(c if c.isprintable() else "?" for c in note)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, and no references between parts that are alike."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def metadata(cluster: Cluster, name: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    """`metadata` of an object of the cluster."""
    return {
        "name": name,
        "namespace": cluster.kubernetes.namespace,
        "labels": {"app.kubernetes.io/part-of": "gwp", OF: cluster.name, **(labels or {})},
    }


def gibibytes(amount: float) -> str:
    """As Kubernetes writes it; parts of a GiB are rounded down to MiB."""
    if amount == int(amount):
        return f"{int(amount)}Gi"
    return f"{int(amount * _MI)}Mi"
