"""Who may use the endpoint."""

import hashlib
import hmac
import os
from collections.abc import Mapping

from gwp.errors import GwpError


class Access:
    """The accepted API keys, kept only as hashes; no environment variable named: everyone is
    let in.
    """

    def __init__(self, api_keys_env: str | None) -> None:
        self._hashes: tuple[bytes, ...] | None = None
        if api_keys_env is not None:
            keys = [
                key.strip() for key in os.environ.get(api_keys_env, "").split(",") if key.strip()
            ]
            if not keys:
                raise GwpError(
                    f"api_keys_env: {api_keys_env} is empty or not set where the gateway runs; "
                    "set it on every node"
                )
            self._hashes = tuple(_hash(key) for key in keys)

    def allows(self, headers: Mapping[str, str]) -> bool:
        """True for `Authorization: Api-Key <key>` or `Bearer <key>` with an accepted key."""
        if self._hashes is None:
            return True
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _hash(key.strip())
        # All keys are compared, in constant time each: the answer's delay tells nothing.
        known = [hmac.compare_digest(given, own) for own in self._hashes]
        return scheme.lower() in ("api-key", "bearer") and any(known)


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
