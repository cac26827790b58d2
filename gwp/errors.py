"""Errors that a user can cause: one clear line that says what to do."""


class GwpError(Exception):
    """Something the user can mend. The command line prints it without a traceback and exits
    with 2.
    """


class ObservationError(GwpError):
    """An observation that does not fit the embodiment the policy was trained for."""


class BundleError(GwpError):
    """A policy bundle that is incomplete, altered, or of another shape than it claims."""


class DataError(GwpError):
    """A data set that cannot be read as what it claims to be.

    One line, whatever libraries say of damaged files: their bytes and line breaks are not
    passed on.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join("".join(c if c.isprintable() else " " for c in message).split()))


class MissingError(DataError):
    """A file that is not there."""
