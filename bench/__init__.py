"""Measurements, each against a peer in the same run. `make bench` runs `report.py`, which runs all the others."""
