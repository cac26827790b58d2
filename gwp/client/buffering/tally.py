"""What a buffer reports of itself with its next request."""

from gwp.protocol.report import Report


class Tally:
    """Counts until an endpoint has heard of it: what a failed request told goes with the next one."""

    def __init__(self) -> None:
        self._fresh = self._told = Report()

    def add(self, more: Report) -> None:
        """This has happened since the last call."""
        self._fresh += more

    def report(self) -> Report:
        """All that no answered request has told."""
        self._told += self._fresh
        self._fresh = Report()
        return self._told

    def answered(self) -> None:
        """The newest report has arrived."""
        self._told = Report()
