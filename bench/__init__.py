"""Benchmarks: `python -m bench` runs all of them and prints one table.

All measurements are made from outside, on real processes: Halt under gunicorn, an upstream and a
load generator, each in its own process. Linux only: figures are read from /proc, and times are
compared between processes, which share CLOCK_MONOTONIC on Linux.
"""
