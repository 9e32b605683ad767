"""Random hostile input against the parts of Halt that read what others wrote: `make fuzz`.

A target makes inputs from a seed and checks each one. An input is bytes, so that it can be saved,
made smaller and tried again. One that breaks a promise is a finding: it is made as small as it gets
and written to `findings/`, where tests/fuzz/test_findings.py replays it for ever.
"""
