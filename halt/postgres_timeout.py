"""A connection to PostgreSQL that is given up when the server does not answer.

`statement_timeout` and `lock_timeout` are kept by the server, `tcp_user_timeout` by its kernel: all
of them hold only while the server's processes run.
"""

from __future__ import annotations

from typing import Any

from psycopg import Connection, OperationalError
from psycopg.errors import _WaitTimeout


class TimeoutConnection(Connection[Any]):
    """Waits `answer_timeout` seconds for each answer, None: for ever. Then it is closed."""

    answer_timeout: float | None = None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Raises OperationalError where the answer does not come."""
        try:
            return super().wait(gen, interval, self.answer_timeout if timeout is None else timeout)
        except _WaitTimeout:
            if timeout is not None:
                raise
            self.pgconn.finish()
            raise OperationalError("the server does not answer") from None
