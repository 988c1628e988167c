"""The health check of containers: asks a service by gRPC whether it is serving.

For Compose, where a probe is a command; Kubernetes asks by gRPC itself. Not part of any service.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.tls import credentials_from_files


def is_serving(
    address: str,
    *,
    service: str = "",
    timeout_s: float = 3.0,
    credentials: grpc.ChannelCredentials | None = None,
) -> bool:
    """Tell whether `service` at `address` (`host:port`) answers SERVING within `timeout_s`.

    An empty name asks for the server as a whole. Without `credentials` it speaks plaintext. A
    server that cannot be reached, does not answer in time or does not know the name is not serving.
    """
    with _channel(address, credentials) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    if credentials is None:
        return grpc.insecure_channel(address)
    return grpc.secure_channel(address, credentials)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 when serving, 1 when not. Says which on standard error."""
    parser = argparse.ArgumentParser(prog="python -m common.healthcheck", description=__doc__)
    parser.add_argument("address", help="host:port of the service")
    parser.add_argument("--service", default="", help="full name; the whole server by default")
    parser.add_argument("--timeout-s", type=float, default=3.0)
    parser.add_argument("--tls-ca-file", type=Path, help="authority of the service's certificate")
    parser.add_argument("--tls-certificate-file", type=Path, help="what to show to the service")
    parser.add_argument("--tls-key-file", type=Path, help="the private key of that")
    options = parser.parse_args(arguments)
    shown = (options.tls_certificate_file, options.tls_key_file)
    serving = is_serving(
        options.address,
        service=options.service,
        timeout_s=options.timeout_s,
        credentials=options.tls_ca_file and credentials_from_files(options.tls_ca_file, *shown),
    )
    name = options.service or "server"
    print(f"{name} at {options.address}: {'' if serving else 'not '}serving", file=sys.stderr)
    return 0 if serving else 1


if __name__ == "__main__":
    sys.exit(main())
