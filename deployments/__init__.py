"""Thin shells round `serve_app`, and the graph: the only code that imports Ray or vLLM.

Read `app.py` first. No number that an operator turns stands here: replicas, CPUs, GPUs and queue limits are in
`serve_config.yaml`.
"""

from deployments.node_address import listen_at_node_address

# Every replica imports its class from this package before it opens its port.
listen_at_node_address()
