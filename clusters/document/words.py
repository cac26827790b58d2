"""Texts that go into manifests and scripts as they are: what Kubernetes, Slurm or a shell would misread
is refused.
"""

import re
from typing import Annotated

from pydantic import AfterValidator

_SEGMENT = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DOMAIN = rf"{_SEGMENT}(\.{_SEGMENT})*"
_VALUE = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"


def _matching(pattern: str, longest: int, rule: str) -> AfterValidator:
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if not compiled.fullmatch(text) or len(text) > longest:
            raise ValueError(f"{text[:80]!r} should be {rule}, at most {longest} characters")
        return text

    return AfterValidator(check)


ObjectName = Annotated[
    str, _matching(_DOMAIN, 253, "a name of Kubernetes: lower-case letters, digits, - and .")
]
LabelValue = Annotated[str, _matching(_VALUE, 63, "letters, digits, -, _ and .")]
LabelKey = Annotated[
    str, _matching(rf"({_DOMAIN}/)?{_VALUE}", 317, "a key of Kubernetes, such as example.com/gpu")
]
NodeLabels = dict[
    LabelKey, Annotated[str, _matching(f"({_VALUE})?", 63, "letters, digits, -, _ and ., or empty")]
]
SlurmWord = Annotated[
    str, _matching(r"[A-Za-z0-9_][-A-Za-z0-9_.,@+]*", 200, "a name of Slurm, without spaces")
]
HostPort = Annotated[str, _matching(r"[A-Za-z0-9][-A-Za-z0-9.]*:[0-9]{1,5}", 260, "HOST:PORT")]
SecretEntry = Annotated[
    str, _matching(r"[-._a-zA-Z0-9]+", 253, "a key of a Secret: letters, digits, -, _ and .")
]
LinePath = Annotated[
    str,
    _matching(
        r"([^\x00-\x1f\x7f]*[^\x00-\x20\x7f])?",
        4096,
        "a path on one line, without a space at its end",
    ),
]
Title = Annotated[
    str, _matching(r"[^\x00-\x1f\x7f]+", 100, "a name on one line, without control characters")
]
Image = Annotated[
    str,
    _matching(
        r"([A-Za-z0-9][-A-Za-z0-9.]*(:[0-9]+)?/)?[a-z0-9][a-z0-9._/-]*(:[A-Za-z0-9_][-A-Za-z0-9_.]*)?"
        r"(@sha256:[0-9a-f]{64})?",
        500,
        "an image: REGISTRY/NAME:TAG, lower-case letters in its name",
    ),
]
