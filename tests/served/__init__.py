"""Tests of the whole application as users run it: `rayconteur serve` with the real models, and HTTP.

It is started once for all of them, on ports of its own and a folder of its own, from the YAML that we ship.
"""
