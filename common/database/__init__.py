"""The database of a service: transactions to read and to write in, and what is raised where it does
not answer. It holds no queries; each store has its own.
"""

from common.database.absence import DatabaseAwayError, DatabaseFullError, telling_absence
from common.database.connections import bound_idleness
from common.database.database import Database
from common.database.thread import DatabaseThread

__all__ = [
    "Database",
    "DatabaseAwayError",
    "DatabaseFullError",
    "DatabaseThread",
    "bound_idleness",
    "telling_absence",
]
