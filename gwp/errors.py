"""Errors that a caller may catch: one clear line each that says what to do.

    GwpError                    whatever the user can mend
    ├── ObservationError        an observation does not fit the policy (`act`, `submit`)
    │   └── GoneError           its policy is not served here
    ├── BundleError             a policy bundle is incomplete, altered, or no bundle (`Policy.load`)
    ├── PolicyError             the policy gave what must not reach a robot (`Policy.act`)
    ├── ExpiredError            the deadline passed before the chunk was ready (`Engine.act`)
    ├── ClosedError             the engine was closed before the chunk was ready (`Engine.act`)
    ├── DataError               a data set cannot be read as what it claims to be
    │   └── MissingError        a file is not there
    ├── ProtocolError           bytes that are no message (`gwp.protocol`)
    ├── ClientError             no answer, or a refusal; has a `code` (`gwp.client`)
    ├── DamagedError            a checkpoint is not whole (`pipelines.training.checkpoint.checkpoints`)
    ├── StoppedError            a run ended for good (`pipelines.training.control.failures`)
    │   └── NoRoomError         memory or a disk is too small for it (`pipelines.training.control.room`)
    ├── UnansweredError         MLflow does not answer (`pipelines.tracking.runs`)
    ├── UnknownJobError         a Ray cluster knows a job no more (`clusters.jobs.jobs`)
    ├── ConfigError             a configuration file has mistakes (`pipelines.config.load`)
    └── RefusedError            why the endpoint gives no chunk; has a `code` (`serve.refusal`)

Anything else that is raised is a fault of this project or of the machine: a bug, a lost device.
"""


class GwpError(Exception):
    """Something the user can mend.

    The command line prints it without a traceback and exits with 2.
    """


class ObservationError(GwpError):
    """An observation that does not fit the embodiment the policy was trained for."""


class BundleError(GwpError):
    """A policy bundle that is incomplete, altered, or of another shape than it claims."""


class GoneError(ObservationError):
    """The policy that an observation insists on does not answer here, or no longer."""


class ProtocolError(GwpError):
    """A message that is not what the protocol promises: broken msgpack, a refused dtype, a shape
    that does not fit, more than a message may hold.
    """


class PolicyError(GwpError):
    """The policy produced something that must not reach a robot."""


class ExpiredError(GwpError):
    """The deadline passed before the chunk was ready."""


class ClosedError(GwpError):
    """The engine was closed before the chunk was ready."""


class DataError(GwpError):
    """A data set that cannot be read as what it claims to be.

    One line, whatever libraries say of damaged files: bytes and line breaks are left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join("".join(c if c.isprintable() else " " for c in message).split()))


class MissingError(DataError):
    """A file that is not there."""
