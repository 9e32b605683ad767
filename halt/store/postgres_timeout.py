"""A connection to PostgreSQL with a client-side timeout for each answer.

The server itself enforces `statement_timeout` and `lock_timeout`, and `tcp_user_timeout` watches
only acknowledgements, which the server's kernel sends. None of them ends the wait for a server
whose processes are frozen.
"""

from __future__ import annotations

from typing import Any

from psycopg import Connection, OperationalError
from psycopg.errors import _WaitTimeout


class TimeoutConnection(Connection[Any]):
    """Closes itself if an answer takes longer than `answer_timeout` seconds; None: no limit."""

    answer_timeout: float | None = None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Like psycopg's `wait`, with the timeout. Raises OperationalError after it."""
        try:
            return super().wait(gen, interval, self.answer_timeout if timeout is None else timeout)
        except _WaitTimeout:
            if timeout is not None:
                raise
            self.pgconn.finish()
            raise OperationalError("the server does not answer") from None
