"""Measurements, each against a peer in the same run. `make bench` runs `overhead.py`, `make eval` runs `eval.py`."""
