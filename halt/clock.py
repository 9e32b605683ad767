"""The clock for all durations in Halt."""

from __future__ import annotations

import time

#: Monotonic time in seconds.
now = time.monotonic
