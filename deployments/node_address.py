"""Where the replicas listen for one another: at their node's address, as Ray itself does, and nowhere else.

Ray Serve 2.60 opens each replica's gRPC server on every interface, and no setting narrows that. It runs what is sent to
it, if Ray's token is sent too: the token should not be all that stands before it.
"""

from typing import Any

import ray
from ray._common.network_utils import build_address
from ray.serve._private import replica

_add_port = replica.add_port_to_grpc_server


def listen_at_node_address() -> None:
    """In this process, from now on. The callers use the node's address anyway."""
    replica.add_port_to_grpc_server = _add_port_at_node_address


def _add_port_at_node_address(server: Any, address: str) -> int:
    port = address.rpartition(":")[2]
    bound: int = _add_port(server, build_address(ray.util.get_node_ip_address(), port))
    return bound
