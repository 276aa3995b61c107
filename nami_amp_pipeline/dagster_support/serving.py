"""Whether a code server serves, asked without loading Dagster: a health check that costs a tenth of Dagster's own.

``python -m nami_amp_pipeline.dagster_support.serving 4000``. Exit status 0 if it does, 1 if not, 2 for no port.
"""

from __future__ import annotations

import sys
from typing import Final

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

SERVICE: Final = "DagsterApi"
SECONDS: Final = 10.0


def why_not(port: int) -> str | None:
    """Why the code server on a port of this machine does not serve; None if it does."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            answer = HealthStub(channel).Check(HealthCheckRequest(service=SERVICE), timeout=SECONDS)
        except grpc.RpcError as error:
            return str(error.code().name)
    if answer.status == HealthCheckResponse.SERVING:
        return None
    return str(HealthCheckResponse.ServingStatus.Name(answer.status))


def main() -> int:
    """Asks, and says why not."""
    if len(sys.argv) != 2 or not sys.argv[1].isdigit():
        sys.stderr.write("usage: python -m nami_amp_pipeline.dagster_support.serving PORT\n")
        return 2
    why = why_not(int(sys.argv[1]))
    if why is not None:
        sys.stderr.write(f"the code server on port {sys.argv[1]} does not serve: {why}\n")
    return int(why is not None)


if __name__ == "__main__":
    sys.exit(main())
