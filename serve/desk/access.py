"""Who may use the endpoint."""

import hashlib
import hmac
import os
from collections.abc import Mapping

from gwp.errors import GwpError


class Access:
    """The accepted API keys, kept only as hashes. The `Dispatcher` holds it, every door asks it.

    api_keys_env: name of the variable that holds the keys, separated by commas; None: everyone is
        let in
    """

    def __init__(self, api_keys_env: str | None) -> None:
        self._hashes: tuple[bytes, ...] | None = None
        if api_keys_env is not None:
            parts = os.environ.get(api_keys_env, "").split(",")
            keys = [part.strip() for part in parts if part.strip()]
            if not keys:
                raise GwpError(
                    f"api_keys_env: {api_keys_env} is empty or not set where the gateway runs; "
                    "set it on every node"
                )
            self._hashes = tuple(_hash(key) for key in keys)

    def name_of(self, headers: Mapping[str, str]) -> str | None:
        """A name for the key in `Authorization: Api-Key <key>` or `Bearer <key>`, which tells
        nothing of it; "" where no keys are asked for, None where the key is not accepted.
        """
        if self._hashes is None:
            return ""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _hash(key.strip())
        # All keys are compared, in constant time each: the answer's delay tells nothing.
        known = [hmac.compare_digest(given, own) for own in self._hashes]
        if scheme.lower() in ("api-key", "bearer") and any(known):
            return given.hex()[:16]
        return None


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
