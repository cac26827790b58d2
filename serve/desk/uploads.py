"""How much all messages together may hold that have not had their turn."""

ARRIVED_S = 10.0
"""Longest time that one message may take to arrive."""


class Uploads:
    """Bytes of messages that are arriving or wait, of one process. Each door adds and takes away.

    most:  bytes that are held at once
    bytes: held now
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.bytes = 0

    @property
    def full(self) -> bool:
        """Whether nobody should send more for now."""
        return self.bytes > self.most
