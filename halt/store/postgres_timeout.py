"""A connection to PostgreSQL with a timeout on the client's side for each answer.

The server enforces `statement_timeout` and `lock_timeout`, and its kernel acknowledges what
`tcp_user_timeout` watches, so none of them ends the wait for a server whose processes are frozen.
"""

from __future__ import annotations

from typing import Any

from psycopg import Connection, OperationalError
from psycopg.errors import _WaitTimeout


class TimeoutConnection(Connection[Any]):
    """Closes itself when an answer takes more than `answer_timeout` seconds; None: no limit."""

    answer_timeout: float | None = None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """As psycopg does it. Raises OperationalError when the time is over."""
        try:
            return super().wait(gen, interval, self.answer_timeout if timeout is None else timeout)
        except _WaitTimeout:
            if timeout is not None:
                raise
            self.pgconn.finish()
            raise OperationalError("the server does not answer") from None
