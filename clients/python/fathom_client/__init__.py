"""fathom from Python: ask questions over contexts far larger than a model's window.

The names below are the public ones; `fathom_client.command` is the `fathom` command.
"""

from fathom_client.access import Access
from fathom_client.client import Client
from fathom_client.errors import CallError, FathomError
from fathom_client.inputs import read_inputs
from fathom_client.limits import Limits
from fathom_client.results import Result
from fathom_client.uploads import InputFile, Upload

__all__ = [
    "Access",
    "CallError",
    "Client",
    "FathomError",
    "InputFile",
    "Limits",
    "Result",
    "Upload",
    "read_inputs",
]
