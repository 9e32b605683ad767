"""The clock of every duration in Halt."""

from __future__ import annotations

import time

#: Seconds; never goes backwards.
now = time.monotonic
