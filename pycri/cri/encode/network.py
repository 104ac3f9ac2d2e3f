# SPDX-License-Identifier: Apache-2.0
"""Networks of pods to protobuf."""

from pycri.cri.api import node_v1_pb2 as pb
from pycri.model.pod import PodRecord, PodState
from pycri.network.hostports import name_of


def encode_pod_network(record: PodRecord) -> pb.PodNetwork:
    """Return the network of a pod; a pod that has none of its own has no interfaces."""
    metadata = record.spec.metadata
    return pb.PodNetwork(
        pod_sandbox_id=record.id,
        namespace=metadata.namespace,
        name=metadata.name,
        ready=record.state is PodState.READY,
        interfaces=[
            pb.NetworkInterface(
                name=interface.name,
                mac=interface.mac,
                addresses=interface.addresses,
                host_interface=interface.host_interface,
            )
            for interface in (record.attachment.interfaces if record.attachment else ())
        ],
        host_ports=[
            f"{name_of(port)}->{port.container_port}"
            for port in record.spec.port_mappings
            if port.host_port
        ],
    )
