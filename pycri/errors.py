# SPDX-License-Identifier: Apache-2.0
"""The exception tree. Imports nothing; `cri/status.py` maps each leaf to a gRPC code.

PycriError
├── InvalidRequest       a field of the request is missing or wrong; names the field path
├── NotFound             no such pod, container or image
├── AlreadyExists        a name in use with another config
├── WrongState           the object is not in a state that allows the call
├── Unsupported          asked for what this node or this version cannot do
├── TimedOut             a deadline given by the caller has passed
├── Unavailable          recovering, or a process beside the daemon is being replaced
├── OutOfResources       disk, addresses, descriptors
├── Denied               a registry refused the credentials
├── RegistryUnavailable  a registry cannot be reached or answers with a server error
├── CorruptImage         content that does not match its digest, or is not what it says
├── SignatureRejected    the node's policy, or a verifier it asks, does not let an image in
├── ImageVolumeMountFailed   an image cannot be mounted as a volume; names the mount
├── RecursiveReadOnlyUnsupported   the kernel cannot make submounts read-only
├── ProtocolViolation    a client of the streaming server breaks the rules of its protocol
├── InvalidSettings      a settings file is unreadable or wrong; names file and key
└── SetupFailed          a step towards a running process failed; names step and errno
"""


class PycriError(Exception):
    """The root of every error that pycri raises on purpose."""


class InvalidRequest(PycriError):
    """A field of a request is missing or wrong.

    field: the path of the field in the CRI's own words, `config.metadata.name`.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class NotFound(PycriError):
    """There is no such object.

    kind: "pod sandbox", "container", "image" ...
    """

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"{kind} {name!r} not found")
        self.kind = kind
        self.name = name


class AlreadyExists(PycriError):
    """The name is in use by an object with another config."""


class WrongState(PycriError):
    """The object is not in a state that allows the call."""


class Unsupported(PycriError):
    """This node, or this version of pycri, cannot do what was asked."""


class TimedOut(PycriError):
    """The deadline given by the caller has passed."""


class Unavailable(PycriError):
    """Not now: recovering, or a process beside the daemon is being replaced."""


class OutOfResources(PycriError):
    """Disk, addresses or descriptors are used up."""


class Denied(PycriError):
    """A registry refused the credentials, or there were none."""


class RegistryUnavailable(PycriError):
    """A registry cannot be reached or answers with a server error."""


class CorruptImage(PycriError):
    """Image content does not match its digest or is not what it claims to be."""


class SignatureRejected(PycriError):
    """The node's image policy, or a verifier it asks, does not let an image in."""


class ImageVolumeMountFailed(PycriError):
    """An image cannot be mounted as a volume: it is not there, or has no such sub path."""


class RecursiveReadOnlyUnsupported(PycriError):
    """This kernel cannot make a mount and all below it read-only."""


class ProtocolViolation(PycriError):
    """A client of the streaming server breaks the rules of its protocol; says how."""


class InvalidSettings(PycriError):
    """A settings file cannot be read, or a key in it is unknown or wrong.

    At start; of registries (hosts.toml, certificates, credentials) at each pull.
    """


class SetupFailed(PycriError):
    """A step towards a running process failed.

    step: the step in words, as the plan prints it; errno: 0 when no system call failed.
    """

    def __init__(self, step: str, errno: int, reason: str) -> None:
        super().__init__(f"{step}: {reason}")
        self.step = step
        self.errno = errno
        self.reason = reason
