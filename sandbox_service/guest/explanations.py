"""One line of advice for errors that come from where the code runs: no files, no network, ...

Python's own messages say what failed, not what to do instead in a place like this one.
"""

import types
from collections.abc import Iterable

_FILES = (
    "there are no files here, and nowhere to write: the data is in `context`, results are kept "
    "in variables, and io.StringIO or io.BytesIO stand in for a file"
)
_NETWORK = (
    "there is no network here: all data is in `context`, and sub-models are asked with "
    "llm_query(prompt) or llm_query_batched(prompts)"
)
_PROCESSES = (
    "no processes can be started here: do it in Python, in this cell; for sub-models in parallel "
    "use llm_query_batched(prompts)"
)
_THREADS = (
    "no threads can be started here: use llm_query_batched(prompts) to ask many sub-models at "
    "once; concurrent.futures.ThreadPoolExecutor does that too"
)
_PACKAGES = (
    "packages cannot be installed here: there are the standard library, numpy, pandas, scipy, "
    "regex, lxml, openpyxl and a few more"
)
_PLATFORM = "this module needs an operating system; here is WebAssembly, with plain Python only"
_ASK = "there is nobody to answer: take values from `context` or write them into the code"
_RUNNING = "a loop is running already where a cell uses `await`: write `await main()` instead"
_AWAIT = "put `await` before it: it is not the value yet"
_VALUE = "it is a value already: leave out `await`"
_MEMORY = "work on the data piece by piece, and `del` what is not needed any more"

_NETWORK_MODULES = frozenset(
    "requests httpx aiohttp urllib3 websockets boto3 paramiko grpc _ssl _socket".split()  # noqa: SIM905
)
_MODEL_MODULES = frozenset(
    "openai anthropic litellm langchain cohere mistralai google transformers torch".split()  # noqa: SIM905
)
_PLATFORM_MODULES = frozenset(
    "_ctypes _multiprocessing _posixsubprocess fcntl resource termios pwd grp _curses".split()  # noqa: SIM905
)
_NETWORK_FILES = ("socket.py", "http/client.py", "urllib/request.py", "ssl.py")
_PROCESS_FILES = ("subprocess.py", "multiprocessing/context.py", "multiprocessing/popen_fork.py")
_MISSING = {
    "os": (frozenset("system popen fork forkpty kill pipe WNOHANG waitpid".split()), _PROCESSES),  # noqa: SIM905
    "signal": (
        frozenset("alarm setitimer SIGALRM pthread_kill".split()),  # noqa: SIM905
        "there are no signals here; to bound a loop, compare time.monotonic() within it",
    ),
    "http.client": (frozenset({"HTTPSConnection"}), _NETWORK),
}


def advice(error: BaseException) -> str | None:
    """Return what to do about an error; None where Python's own words are enough."""
    if isinstance(error, BaseExceptionGroup):
        return advice(error.exceptions[0])
    if isinstance(error, SyntaxError):
        return _of_syntax(error)
    if isinstance(error, ImportError):
        return _of_import(error)
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, AttributeError):
        return _of_attribute(error)
    if isinstance(error, MemoryError):
        return _MEMORY
    if isinstance(error, EOFError):
        return _ASK if "reading a line" in str(error) else None
    if isinstance(error, (RuntimeError, TypeError)):
        return _of_words(str(error))
    if type(error).__name__ == "OperationalError" and "open database" in str(error):
        return f'{_FILES}; sqlite3.connect(":memory:") works'
    return None


def _of_import(error: ImportError) -> str | None:
    name = (error.name or "").partition(".")[0]
    if name in _NETWORK_MODULES:
        return _NETWORK
    if name in _MODEL_MODULES:
        return "sub-models are asked with llm_query(prompt) or llm_query_batched(prompts)"
    if name in _PLATFORM_MODULES:
        return _PLATFORM
    return _PACKAGES if isinstance(error, ModuleNotFoundError) else None


def _of_system(error: OSError) -> str | None:
    if error.errno is None and not _passed(error, _NETWORK_FILES):
        return None  # raised by the code itself
    if "process" in str(error) or _passed(error, _PROCESS_FILES):
        return _PROCESSES
    return _NETWORK if _passed(error, _NETWORK_FILES) else _FILES


def _of_attribute(error: AttributeError) -> str | None:
    if _passed(error, _NETWORK_FILES):
        return _NETWORK
    if isinstance(error.obj, types.ModuleType):
        names, text = _MISSING.get(error.obj.__name__, (frozenset[str](), ""))
        return text if error.name in names else None
    return _of_words(str(error))


def _of_words(message: str) -> str | None:
    if "start new thread" in message:
        return _THREADS
    if "running event loop" in message or "loop is already running" in message:
        return _RUNNING
    if any(f"'{name}' object" in message for name in ("coroutine", "_GatheringFuture", "Task")):
        return _AWAIT
    if "can't be used in 'await'" in message or "can't be awaited" in message:
        return _VALUE
    return None


def _of_syntax(error: SyntaxError) -> str | None:
    line, message = (error.text or "").strip(), error.msg or ""
    if line.startswith(("```", "~~~")):
        return "leave out the Markdown fence: a cell is Python alone"
    if "invalid character" in message or "non-printable character" in message:
        return "type plain ASCII quotes, dashes and spaces: this character was pasted from a text"
    if "unterminated" in message and "string" in message:
        return (
            "close the string on the line where it begins, or use triple quotes; a quote or a "
            "backslash within it needs a backslash before it"
        )
    if "'await' outside" in message or "'async" in message:
        return "`await` works at the top of a cell; in a function, begin it with `async def`"
    if line.startswith(("!", "%", "$ ", "pip ")):
        return "shell commands and magics do not exist here: a cell is Python alone"
    if isinstance(error, IndentationError):
        return "begin the cell at the left margin, and indent blocks by four spaces"
    if _is_prose(line):
        return "this line reads like text: a cell is Python alone, put remarks behind `#`"
    return None


def _is_prose(line: str) -> bool:
    """Tell whether a line looks like a sentence: several plain words in a row."""
    words = line.rstrip(".:!?,").split()
    plain = [word for word in words if word.strip(",;:'\"’").isalpha()]
    return len(words) >= 4 and len(plain) > 0.7 * len(words)


def _passed(error: BaseException, files: Iterable[str]) -> bool:
    """Tell whether an error came through one of these files of the library."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith(tuple(files)):
            return True
        trace = trace.tb_next
    return False
