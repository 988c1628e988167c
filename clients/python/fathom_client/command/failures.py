"""What went wrong, in words: the cause, the cost so far and the next thing to try.

The one place that turns exceptions into messages and exit statuses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fathom_client.access import ApiKeyError, TlsFilesError
from fathom_client.archives import ArchiveError
from fathom_client.command import exit_codes
from fathom_client.command.limit_words import amount_text, option_of
from fathom_client.directory_walk import IgnoreFileError
from fathom_client.errors import (
    CallError,
    DeadlineExceededError,
    FathomError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from fathom_client.figures import NANOS_PER_USD
from fathom_client.home import HomeInUseError
from fathom_client.inputs import InputError
from fathom_client.local_stack import ListenAddressError, StackEndedError
from fathom_client.model_settings import ModelSettingsError, NoKeyError
from fathom_client.processes import ServiceStartError

_TRIES_BY_REASON = {
    "ERROR_REASON_PROVIDER_UNAVAILABLE": "check the provider's address, then ask again",
    "ERROR_REASON_PROVIDER_CREDENTIAL": "check the provider's key and its funds",
    "ERROR_REASON_PROVIDER_RATE_LIMITED": "wait a little, or lower --max-calls",
    "ERROR_REASON_PROVIDER_REJECTED": "check the models' names in FATHOM_ROOT_MODEL and _SUB_MODEL",
    "ERROR_REASON_PROVIDER_BROKEN_REPLY": "ask again",
    "ERROR_REASON_PROVIDER_TIMEOUT": "ask again, with more time: --max-time",
    "ERROR_REASON_CONTEXT_WINDOW_EXCEEDED": "name a root model with a larger window: --root-model",
    "ERROR_REASON_RUN_INTERRUPTED": "ask again",
    "ERROR_REASON_MODEL_NOT_OFFERED": "use one of the models that the message names",
    "ERROR_REASON_RUN_LIMIT_EXCEEDED": "raise the limit that the message names",
    "ERROR_REASON_RUN_QUEUE_FULL": "wait for a run to end: {fathom} runs list{server}",
    "ERROR_REASON_GUEST_NOT_PREPARED": "fathom-prepare-guest",
    "ERROR_REASON_CONTEXT_TOO_LARGE": "ask over fewer or smaller files",
    "ERROR_REASON_SANDBOX_CAPACITY": "wait for other runs to end, then ask again",
    "ERROR_REASON_INTERNAL": "look into the server's log: `{fathom} up` keeps it in logs/",
    "ERROR_REASON_REQUEST_ID_REUSED": "ask again with another request id",
    "ERROR_REASON_QUOTA_EXCEEDED": "wait, or ask the server's operator for a larger quota",
    "ERROR_REASON_SERVER_BUSY": "wait a little, then ask again",
    "ERROR_REASON_LEDGER_UNAVAILABLE": "wait a little, then ask again; nothing was spent",
    "ERROR_REASON_EGRESS_REFUSED": "take the secret out of the question or the files",
    "ERROR_REASON_CONTEXT_IN_USE": "{fathom} runs cancel RUN{server}, or {fathom} conversations"
    " delete CONVERSATION{server}, with what the message names",
    "ERROR_REASON_DATABASE_AWAY": "wait a little; if it lasts, see whether its disk is full",
    "ERROR_REASON_RUN_OVERDUE": "ask again; if it happens twice, look into the server's log",
    "ERROR_REASON_CHILD_RUN_REFUSED": "ask again with a higher --max-depth or --max-children",
    "ERROR_REASON_CONVERSATION_BUSY": "wait for its run, or end it: {fathom} runs list{server}",
    "ERROR_REASON_CONVERSATION_LIMIT_EXCEEDED": "{fathom} conversations start{server} PATH...",
    "ERROR_REASON_FORK_TURN_UNKNOWN": "name a turn that has ended: {fathom} runs show RUN{server}",
    "ERROR_REASON_STORAGE_QUOTA_EXCEEDED": "{fathom} contexts delete CONTEXT{server}",
    "ERROR_REASON_OBJECT_STORE_UNAVAILABLE": "check the server's object store and its free space",
    "ERROR_REASON_UPLOAD_SUPERSEDED": "leave it to the other command, or ask again after it",
    "ERROR_REASON_UPLOADS_TOO_MANY": "wait for other uploads to end, then ask again",
    "ERROR_REASON_KILL_SWITCH": "ask the server's operator, who stopped it",
    "ERROR_REASON_TENANT_BUSY": "wait for other commands of your tenant to end, then ask again",
    "ERROR_REASON_REQUEST_TOO_LARGE": "upload what is large, and name it by its context",
    "ERROR_REASON_STORAGE_FULL": "ask the server's operator to make room on the disk it names",
    "ERROR_REASON_DATABASE_FULL": "wait for the server's operator to make room: runs go on then",
    "ERROR_REASON_PROFILE_HELPER_FAILED": "ask the server's operator: the profile has a defect",
}
_LIMITS_OF_MORE_THAN_THE_RUN = frozenset(
    {"ERROR_REASON_QUOTA_EXCEEDED", "ERROR_REASON_CONVERSATION_LIMIT_EXCEEDED"}
)
"""Reasons that name a limit which no option of a question raises."""
_LISTS_BY_KIND = {
    "contexts": "{fathom} contexts list{server}",
    "conversations": "{fathom} conversations list{server}",
    "profiles": "{fathom} profiles list{server}",
}
"""Where to look up the names of what was not found, by the first part of its name."""
_WORDS_BY_FIELD = {
    "question": "the question",
    "context": "--context",
    "answer_schema_json": "--schema",
    "confidence_min": "--confidence",
    "root_tier": "--root-model",
    "sub_tier": "--sub-model",
    "profile": "--profile",
}
"""What people type for a field of a run's spec, besides limits."""
_KEY_BY_PROBLEM = {
    "missing": "set FATHOM_API_KEY to the key that the server's operator gave you",
    "expired": "ask the server's operator for a new key, and set FATHOM_API_KEY to it",
}
_PERMISSIONS = {
    "uri": "ask the server's operator to have it read there, or name files of this machine",
}
"""What to try without a permission, by its name."""
_NO_OPERATOR = "use an operator's key: FATHOM_API_KEY"
_OTHER_KEY = "check FATHOM_API_KEY: the server does not know this key"
_WHERE_RUNS_ARE = "{fathom} runs list{server}"


class NoServerError(FathomError):
    """There is no service to ask and no way to start one."""


class NoLastingServerError(FathomError):
    """There is no service that would go on after this command."""


class RunWaitsError(FathomError):
    """A run has not ended, and no service is there that would go on with it."""


_NO_SERVER = (
    "set OPENAI_API_KEY and ask again, or use services that run elsewhere:"
    " {fathom} ask --server HOST:PORT (to see it work without a key: {fathom} demo)"
)
_HOME_IN_USE = (
    "wait for it or end it, or set FATHOM_HOME to another folder (services that `{fathom} up` runs"
    " take any number of questions at a time)"
)
_NO_ROOM_TO_LISTEN = "{fathom} up --listen 127.0.0.1:0, which takes any free port"
_KEY_TEXT = "correct FATHOM_API_KEY, or the file of --api-key-file"
_TLS_FILES = (
    "name files in PEM form: --tls-ca-file, --tls-certificate-file, --tls-key-file, or"
    " FATHOM_TLS_CA_FILE and so on"
)
_HANDSHAKES = (
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the server's certificate is of no authority that is trusted here, or for another name",
        "name its authority: --tls-ca-file FILE, or FATHOM_TLS_CA_FILE",
    ),
    (
        "WRONG_VERSION_NUMBER",
        "the server speaks no TLS",
        "name it by http://HOST:PORT if what is sent may be read on its way",
    ),
    (
        "Socket closed",
        "the server ends each connection at once: it may want TLS, or a certificate to be shown",
        "name it by https://HOST:PORT; what to show: --tls-certificate-file and --tls-key-file",
    ),
)
"""What gRPC says of a connection that does not come about, what that means, and what to try."""
_STATUS_OF_WRONG_SETTINGS = 2
"""With which a service ends that cannot be started with the settings it has."""
_GATEWAY_START = (
    "check models and prices: FATHOM_ROOT_MODEL, FATHOM_SUB_MODEL, and FATHOM_ROOT_PRICE and"
    " FATHOM_SUB_PRICE as INPUT/OUTPUT in US dollars a million tokens, such as 1.25/10, or free"
)
_TRIES_BY_CLASS: tuple[tuple[type[Exception], str, int], ...] = (
    (InputError, "{fathom} {verb} --help", exit_codes.USAGE),
    (ArchiveError, "unpack it, and name the files", exit_codes.USAGE),
    (IgnoreFileError, "shorten it, or name the files", exit_codes.USAGE),
    (ModelSettingsError, "correct the variable", exit_codes.USAGE),
    (ApiKeyError, _KEY_TEXT, exit_codes.NOT_AUTHORISED),
    (TlsFilesError, _TLS_FILES, exit_codes.USAGE),
    (NoKeyError, "set OPENAI_API_KEY, or {fathom} up --scripted-model", exit_codes.NOT_AUTHORISED),
    (NoServerError, _NO_SERVER, exit_codes.NOT_AUTHORISED),
    (HomeInUseError, _HOME_IN_USE, exit_codes.UNREACHABLE),
    (NoLastingServerError, "{fathom} up, then ask again in another terminal", exit_codes.USAGE),
    (RunWaitsError, "{fathom} up, then watch it in another terminal", exit_codes.UNREACHABLE),
    (ListenAddressError, _NO_ROOM_TO_LISTEN, exit_codes.USAGE),
    (ServiceStartError, "{fathom} doctor", exit_codes.UNREACHABLE),
    (StackEndedError, "{fathom} doctor", exit_codes.UNREACHABLE),
    (OSError, "check the path, its permissions and the free space", exit_codes.FAILED),
)


@dataclass(frozen=True)
class Failure:
    """A failure as people and scripts see it."""

    cause: str
    """What went wrong."""
    attempt: str
    """What to do next."""
    exit_code: int
    """The command's exit status."""


def explain(
    error: Exception,
    *,
    run: str = "",
    fathom: str = "fathom",
    verb: str = "ask",
    server: str = "",
) -> Failure:
    """Return what to say of an error.

    `run` is the run that was being worked on, if any; `fathom` is how the user names the command,
    `verb` what it was to do, such as `contexts put`, and `server` the option that names the same
    server again, with a space before it.
    """
    failure = _explain_call(error, run) if isinstance(error, CallError) else _explain(error)
    attempt = failure.attempt
    for place, text in (("{fathom}", fathom), ("{verb}", verb), ("{server}", server)):
        attempt = attempt.replace(place, text)
    return replace(failure, attempt=attempt)


def _explain(error: Exception) -> Failure:
    if isinstance(error, ServiceStartError) and error.status == _STATUS_OF_WRONG_SETTINGS:
        attempt = _GATEWAY_START if error.service == "gateway" else "correct what the log names"
        return Failure(str(error), attempt, exit_codes.UNREACHABLE)
    for error_class, attempt, exit_code in _TRIES_BY_CLASS:
        if isinstance(error, error_class):
            return Failure(_cause(error), attempt, exit_code)
    return Failure(str(error), "{fathom} doctor", exit_codes.FAILED)


def _cause(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _explain_call(error: CallError, run: str) -> Failure:
    if error.reason == "ERROR_REASON_LIMIT_ABOVE_CEILING":
        return _explain_ceiling(error)
    cause = _cause_of_call(error)
    option = option_of(error.metadata.get("limit", ""))
    if option and error.reason not in _LIMITS_OF_MORE_THAN_THE_RUN:
        return Failure(cause, f"ask again with a higher {option}", exit_codes.FAILED)
    again = f"{{fathom}} runs watch {run}{{server}}" if run else "{fathom} doctor{server}"
    if isinstance(error, UnauthenticatedError):
        attempt = _KEY_BY_PROBLEM.get(error.metadata.get("problem", ""), _OTHER_KEY)
        exit_code = exit_codes.NOT_AUTHORISED
    elif isinstance(error, PermissionDeniedError):
        permission = error.metadata.get("permission", "")
        attempt, exit_code = _PERMISSIONS.get(permission, _NO_OPERATOR), exit_codes.NOT_AUTHORISED
    elif handshake := _handshake(error):
        return Failure(*handshake, exit_codes.UNREACHABLE)
    elif isinstance(error, (UnavailableError, DeadlineExceededError)):
        attempt, exit_code = again, exit_codes.UNREACHABLE
    elif isinstance(error, InvalidArgumentError):
        attempt, exit_code = "correct what the message names", exit_codes.USAGE
    elif isinstance(error, NotFoundError):
        kind = error.metadata.get("resource", "").partition("/")[0]
        attempt, exit_code = _LISTS_BY_KIND.get(kind, _WHERE_RUNS_ARE), exit_codes.FAILED
    else:
        attempt = f"{{fathom}} runs show {run}{{server}}" if run else _WHERE_RUNS_ARE
        exit_code = exit_codes.FAILED
    return Failure(cause, _TRIES_BY_REASON.get(error.reason, attempt), exit_code)


def _handshake(error: CallError) -> tuple[str, str] | None:
    """Return cause and remedy where TLS does not come about; gRPC tells that in words alone."""
    if not isinstance(error, UnavailableError) or error.reason:
        return None
    said = (each for each in _HANDSHAKES if each[0] in str(error))
    return next(((cause, attempt) for _, cause, attempt in said), None)


def _cause_of_call(error: CallError) -> str:
    cause = str(error)
    for field, description in error.field_violations.items():
        if description not in cause:
            cause += f"\n  {_words_of(field)}: {description}"
    # As the command's user knows it, who never sees the contract; any other text stays as it is.
    field, colon, rest = cause.partition(": ")
    cause = _words_of(field) + colon + rest
    if offered := error.metadata.get("offered"):
        cause += f" (offered: {offered})"
    if error.retry_after_s:
        cause += f" (try again after {error.retry_after_s:.0f} s)"
    if isinstance(error, UnavailableError) and not error.reason:
        # gRPC calls every way of not getting through "UNKNOWN", before it tells which.
        cause = f"the service cannot be reached: {cause.replace('last error: UNKNOWN: ', '')}"
    return cause


def _words_of(field: str) -> str:
    """Return the option that sets a field of a request, else the field."""
    _, _, name = field.rpartition(".")
    is_of_spec = field.startswith(("spec.", "changes."))
    return (_WORDS_BY_FIELD.get(name) or option_of(name) or field) if is_of_spec else field


def _explain_ceiling(error: CallError) -> Failure:
    """Name the option that set the limit, and its value, as they were typed."""
    field, value, ceiling = (error.metadata.get(key, "") for key in ("field", "value", "ceiling"))
    limit = field.removeprefix("spec.limits.")
    option = option_of(limit)
    if option is None or not value or not ceiling:
        return Failure(str(error), "ask over fewer or smaller files", exit_codes.USAGE)
    asked, most = int(float(value)), int(float(ceiling))
    cause = (
        f"{option}: {amount_text(limit, asked)} is above this server's ceiling of"
        f" {amount_text(limit, most)}"
    )
    typed = most // NANOS_PER_USD if option == "--max-usd" else most
    return Failure(cause, f"ask again with {option} {typed}", exit_codes.USAGE)
