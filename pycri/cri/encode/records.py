# SPDX-License-Identifier: Apache-2.0
"""Model to protobuf. Total: every value of the model has an encoding."""

from collections.abc import Iterable

import msgspec

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.signals import encode_signal
from pycri.model.container import ContainerRecord, ContainerState, Mount, Propagation
from pycri.model.host import Condition
from pycri.model.image import FilesystemUsage, Image, chain_ids
from pycri.model.pod import PodMetadata, PodRecord, PodState, Stage
from pycri.model.resources import Resources
from pycri.model.security import IdMapping, IdMappings, NamespaceMode, NamespaceModes

_POD_STATES = {
    PodState.READY: pb.SANDBOX_READY,
    PodState.NOTREADY: pb.SANDBOX_NOTREADY,
}
_CONTAINER_STATES = {
    ContainerState.CREATED: pb.CONTAINER_CREATED,
    ContainerState.RUNNING: pb.CONTAINER_RUNNING,
    ContainerState.EXITED: pb.CONTAINER_EXITED,
    ContainerState.UNKNOWN: pb.CONTAINER_UNKNOWN,
}
_PROPAGATIONS = {
    Propagation.PRIVATE: pb.PROPAGATION_PRIVATE,
    Propagation.HOST_TO_CONTAINER: pb.PROPAGATION_HOST_TO_CONTAINER,
    Propagation.BIDIRECTIONAL: pb.PROPAGATION_BIDIRECTIONAL,
}
_NAMESPACE_MODES = {
    NamespaceMode.POD: pb.POD,
    NamespaceMode.CONTAINER: pb.CONTAINER,
    NamespaceMode.NODE: pb.NODE,
    NamespaceMode.TARGET: pb.TARGET,
}


def encode_pod(record: PodRecord) -> pb.PodSandbox:
    """Return a pod as ListPodSandbox shows it."""
    return pb.PodSandbox(
        id=record.id,
        metadata=_pod_metadata(record.spec.metadata),
        state=_POD_STATES[record.state],
        created_at=record.created_ns,
        labels=record.spec.labels,
        annotations=record.spec.annotations,
        runtime_handler=record.spec.runtime_handler,
    )


def encode_pod_status(record: PodRecord) -> pb.PodSandboxStatus:
    """Return a pod as PodSandboxStatus shows it; no address with the host's network."""
    addresses = record.attachment.addresses if record.attachment else ()
    namespaces = pb.Namespace(options=_namespaces(record.spec.namespaces))
    return pb.PodSandboxStatus(
        id=record.id,
        metadata=_pod_metadata(record.spec.metadata),
        state=_POD_STATES[record.state],
        created_at=record.created_ns,
        network=pb.PodSandboxNetworkStatus(
            ip=addresses[0] if addresses else "",
            additional_ips=[pb.PodIP(ip=address) for address in addresses[1:]],
        ),
        linux=pb.LinuxPodSandboxStatus(namespaces=namespaces),
        labels=record.spec.labels,
        annotations=record.spec.annotations,
        runtime_handler=record.spec.runtime_handler,
    )


def encode_container(record: ContainerRecord) -> pb.Container:
    """Return a container as ListContainers shows it."""
    return pb.Container(
        id=record.id,
        pod_sandbox_id=record.pod_id,
        metadata=_container_metadata(record),
        image=_image_spec(record),
        image_ref=record.image_id,
        image_id=record.image_id,
        state=_CONTAINER_STATES[record.state],
        created_at=record.created_ns,
        labels=record.spec.labels,
        annotations=record.spec.annotations,
    )


def encode_container_status(record: ContainerRecord) -> pb.ContainerStatus:
    """Return a container as ContainerStatus shows it; times are 0 before they come."""
    user = pb.LinuxContainerUser(
        uid=record.user.uid, gid=record.user.gid, supplemental_groups=record.user.groups
    )
    return pb.ContainerStatus(
        id=record.id,
        metadata=_container_metadata(record),
        state=_CONTAINER_STATES[record.state],
        created_at=record.created_ns,
        started_at=record.started_ns or 0,
        finished_at=record.finished_ns or 0,
        exit_code=record.exit_code,
        image=_image_spec(record),
        image_ref=record.image_id,
        image_id=record.image_id,
        reason=record.reason,
        message=record.message,
        labels=record.spec.labels,
        annotations=record.spec.annotations,
        mounts=_mounts(record),
        log_path=record.log_path,
        resources=pb.ContainerResources(linux=_resources(record.resources)),
        user=pb.ContainerUser(linux=user),
        stop_signal=encode_signal(record.stop_signal),
    )


def encode_pod_info(record: PodRecord) -> dict[str, str]:
    """Return the verbose map of a pod: JSON under "info", where crictl looks for it."""
    namespaces = record.spec.namespaces
    return _info(
        sandboxID=record.id,
        runtimeHandler=record.spec.runtime_handler,
        hostname=record.spec.hostname,
        namespaces={
            "network": namespaces.network.name,
            "pid": namespaces.pid.name,
            "ipc": namespaces.ipc.name,
        },
        network=msgspec.to_builtins(record.attachment),
        overhead=msgspec.to_builtins(record.overhead),
        resources=msgspec.to_builtins(record.resources),
        timeline=_timeline(record.timeline),
    )


def encode_container_info(record: ContainerRecord) -> dict[str, str]:
    """Return the verbose map of a container. Never its environment."""
    return _info(
        sandboxID=record.pod_id,
        pid=record.pid,
        cgroup=record.cgroup,
        timeline=_timeline(record.timeline),
    )


def encode_image(image: Image) -> pb.Image:
    """Return an image; of its config's user either the number or the name."""
    user = image.config.user.partition(":")[0]
    is_number = user.isascii() and user.isdigit() and int(user) < 1 << 32
    return pb.Image(
        id=image.id,
        repo_tags=image.tags,
        repo_digests=image.digests,
        size=image.size_bytes,
        uid=pb.Int64Value(value=int(user)) if is_number else None,
        username="" if is_number else user,
        spec=pb.ImageSpec(image=image.id, annotations=image.annotations),
        pinned=image.pinned,
    )


def encode_image_info(image: Image) -> dict[str, str]:
    """Return the verbose map of an image. Its environment is no secret: it is published with it."""
    config = image.config
    return _info(
        chainID=chain_ids(image.layers)[-1] if image.layers else "",
        imageSpec={
            "architecture": image.architecture,
            "created": image.created,
            "config": {
                "Entrypoint": config.entrypoint,
                "Cmd": config.cmd,
                "Env": config.env,
                "WorkingDir": config.working_dir,
                "User": config.user,
                "StopSignal": config.stop_signal,
                "Labels": config.labels,
            },
            "rootfs": {"type": "layers", "diff_ids": image.layers},
        },
    )


def encode_filesystem(usage: FilesystemUsage) -> pb.FilesystemUsage:
    return pb.FilesystemUsage(
        timestamp=usage.timestamp_ns,
        fs_id=pb.FilesystemIdentifier(mountpoint=usage.mountpoint),
        used_bytes=pb.UInt64Value(value=usage.used_bytes),
        inodes_used=pb.UInt64Value(value=usage.inodes_used),
    )


def encode_conditions(conditions: Iterable[Condition]) -> pb.RuntimeStatus:
    return pb.RuntimeStatus(
        conditions=[
            pb.RuntimeCondition(
                type=condition.type,
                status=condition.status,
                reason=condition.reason,
                message=condition.message,
            )
            for condition in conditions
        ]
    )


def _info(**values: object) -> dict[str, str]:
    return {"info": msgspec.json.encode(values).decode()}


def _timeline(stages: Iterable[Stage]) -> object:
    return msgspec.to_builtins(list(stages))


def _pod_metadata(metadata: PodMetadata) -> pb.PodSandboxMetadata:
    return pb.PodSandboxMetadata(
        name=metadata.name,
        uid=metadata.uid,
        namespace=metadata.namespace,
        attempt=metadata.attempt,
    )


def _container_metadata(record: ContainerRecord) -> pb.ContainerMetadata:
    metadata = record.spec.metadata
    return pb.ContainerMetadata(name=metadata.name, attempt=metadata.attempt)


def _image_spec(record: ContainerRecord) -> pb.ImageSpec:
    """Return the image by the name its user knows; the kubelet itself asks by id."""
    image = record.spec.image
    return pb.ImageSpec(
        image=image.user_specified_image or image.image,
        annotations=image.annotations,
        user_specified_image=image.user_specified_image,
        runtime_handler=image.runtime_handler,
    )


def _mounts(record: ContainerRecord) -> list[pb.Mount]:
    images = {volume.mount: volume.image_id for volume in record.volume_images}
    return [_mount(mount, images.get(i, "")) for i, mount in enumerate(record.spec.mounts)]


def _mount(mount: Mount, image_ref: str) -> pb.Mount:
    """image_ref: what the image of the mount was found to be, if it has one."""
    image = mount.image
    return pb.Mount(
        container_path=mount.container_path,
        host_path=mount.host_path,
        readonly=mount.readonly,
        recursive_read_only=mount.recursive_read_only,
        selinux_relabel=mount.selinux_relabel,
        propagation=_PROPAGATIONS[mount.propagation],
        mount_options=mount.options,
        image_sub_path=mount.image_sub_path,
        uidMappings=_id_map(mount.ids.uids) if mount.ids else (),
        gidMappings=_id_map(mount.ids.gids) if mount.ids else (),
        image=pb.ImageSpec(
            image=image.image,
            annotations=image.annotations,
            user_specified_image=image.user_specified_image,
            runtime_handler=image.runtime_handler,
            image_ref=image_ref,
        )
        if image
        else None,
    )


def _namespaces(modes: NamespaceModes) -> pb.NamespaceOption:
    return pb.NamespaceOption(
        network=_NAMESPACE_MODES[modes.network],
        pid=_NAMESPACE_MODES[modes.pid],
        ipc=_NAMESPACE_MODES[modes.ipc],
        target_id=modes.target_id,
        userns_options=_user_namespace(modes.user) if modes.user else None,
    )


def _user_namespace(ids: IdMappings) -> pb.UserNamespace:
    return pb.UserNamespace(mode=pb.POD, uids=_id_map(ids.uids), gids=_id_map(ids.gids))


def _id_map(lines: tuple[IdMapping, ...]) -> list[pb.IDMapping]:
    return [
        pb.IDMapping(host_id=line.host_id, container_id=line.container_id, length=line.length)
        for line in lines
    ]


def _resources(resources: Resources) -> pb.LinuxContainerResources:
    return pb.LinuxContainerResources(
        cpu_period=resources.cpu_period_us,
        cpu_quota=resources.cpu_quota_us,
        cpu_shares=resources.cpu_shares,
        memory_limit_in_bytes=resources.memory_limit_bytes,
        memory_swap_limit_in_bytes=resources.memory_swap_limit_bytes,
        oom_score_adj=resources.oom_score_adj,
        cpuset_cpus=resources.cpuset_cpus,
        cpuset_mems=resources.cpuset_mems,
        hugepage_limits=[
            pb.HugepageLimit(page_size=limit.page_size, limit=limit.limit_bytes)
            for limit in resources.hugepage_limits
        ],
        unified=resources.unified,
    )
