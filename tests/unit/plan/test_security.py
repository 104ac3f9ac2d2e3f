# SPDX-License-Identifier: Apache-2.0
import pytest

from pycri.errors import InvalidRequest, Unsupported
from pycri.model.host import HostFacts
from pycri.model.plan import CapabilitySets
from pycri.model.security import CAPABILITY_NAMES, ContainerSecurity
from pycri.plan.container import plan_container
from pycri.plan.security import DEFAULT_CAPABILITIES, plan_capabilities
from tests.unit.plan.samples import container_inputs, host_v2, pod_spec

FIELD = "config.linux.security_context"


def names(numbers: tuple[int, ...]) -> set[str]:
    return {CAPABILITY_NAMES[number] for number in numbers}


def plan(security: ContainerSecurity, host: HostFacts | None = None) -> CapabilitySets:
    sets = plan_capabilities(security, host or host_v2())
    assert sets.bounding == sets.permitted == sets.effective
    assert sets.inheritable == sets.ambient
    assert set(sets.ambient) <= set(sets.permitted)
    return sets


def given(security: ContainerSecurity, host: HostFacts | None = None) -> set[str]:
    return names(plan(security, host).permitted)


def test_the_names_stand_at_their_numbers() -> None:
    assert len(CAPABILITY_NAMES) == 41
    assert CAPABILITY_NAMES[10] == "CAP_NET_BIND_SERVICE"
    assert CAPABILITY_NAMES[21] == "CAP_SYS_ADMIN"
    assert CAPABILITY_NAMES[40] == "CAP_CHECKPOINT_RESTORE"


def test_the_default_set_has_fourteen_and_nothing_is_inheritable() -> None:
    assert given(ContainerSecurity()) == set(DEFAULT_CAPABILITIES)
    assert len(DEFAULT_CAPABILITIES) == 14
    assert plan(ContainerSecurity()).inheritable == ()


def test_the_default_set_shrinks_to_what_the_host_has() -> None:
    host = host_v2(capabilities=frozenset(("CAP_KILL", "CAP_SYS_ADMIN", "CAP_OF_TOMORROW")))
    assert given(ContainerSecurity(), host) == {"CAP_KILL"}


@pytest.mark.parametrize("name", ["SYS_TIME", "CAP_SYS_TIME", "cap_sys_time"])
def test_names_may_lack_their_prefix(name: str) -> None:
    added = given(ContainerSecurity(add_capabilities=(name,)))
    assert added == {*DEFAULT_CAPABILITIES, "CAP_SYS_TIME"}
    assert "CAP_KILL" not in given(ContainerSecurity(drop_capabilities=("KILL",)))


def test_all_comes_before_single_names() -> None:
    one = ContainerSecurity(add_capabilities=("NET_RAW",), drop_capabilities=("all",))
    assert given(one) == {"CAP_NET_RAW"}
    but_one = ContainerSecurity(add_capabilities=("ALL",), drop_capabilities=("NET_RAW",))
    assert given(but_one) == set(CAPABILITY_NAMES) - {"CAP_NET_RAW"}
    none = ContainerSecurity(add_capabilities=("ALL",), drop_capabilities=("ALL",))
    assert given(none) == set()


def test_ambient_ones_are_inheritable_and_permitted_too() -> None:
    sets = plan(
        ContainerSecurity(
            drop_capabilities=("ALL",), add_ambient_capabilities=("NET_BIND_SERVICE",)
        )
    )
    assert names(sets.ambient) == names(sets.permitted) == {"CAP_NET_BIND_SERVICE"}


def test_a_dropped_one_is_not_ambient() -> None:
    security = ContainerSecurity(add_ambient_capabilities=("ALL",), drop_capabilities=("BPF",))
    assert names(plan(security).ambient) == set(CAPABILITY_NAMES) - {"CAP_BPF"}


def test_privileged_is_all_the_host_has_whatever_is_dropped() -> None:
    host = host_v2(capabilities=frozenset(CAPABILITY_NAMES) - {"CAP_SYS_RESOURCE"})
    security = ContainerSecurity(privileged=True, drop_capabilities=("ALL", "KILL"))
    assert given(security, host) == set(CAPABILITY_NAMES) - {"CAP_SYS_RESOURCE"}


@pytest.mark.parametrize("field", ["add", "drop", "add_ambient"])
def test_an_unknown_name_is_refused_by_its_place(field: str) -> None:
    names_by_field = {f"{field}_capabilities": ("ALL", "FLY")}
    with pytest.raises(InvalidRequest) as caught:
        plan_capabilities(ContainerSecurity(**names_by_field), host_v2())  # type: ignore[arg-type]
    assert caught.value.field == f"{FIELD}.capabilities.{field}_capabilities[1]"


def test_what_the_node_cannot_give_is_unsupported_and_what_it_lacks_can_be_dropped() -> None:
    host = host_v2(capabilities=frozenset(DEFAULT_CAPABILITIES))
    with pytest.raises(Unsupported, match="CAP_SYS_RESOURCE"):
        plan_capabilities(ContainerSecurity(add_capabilities=("SYS_RESOURCE",)), host)
    dropped = ContainerSecurity(drop_capabilities=("SYS_RESOURCE",))
    assert given(dropped, host) == set(DEFAULT_CAPABILITIES)


def test_a_privileged_container_needs_a_privileged_pod() -> None:
    security = ContainerSecurity(privileged=True)
    with pytest.raises(InvalidRequest) as caught:
        plan_container(container_inputs(security=security))
    assert caught.value.field == f"{FIELD}.privileged"
    plan_container(container_inputs(security=security, pod=pod_spec(privileged=True)))


def test_empty_lists_hide_nothing() -> None:
    steps = [str(step) for step in plan_container(container_inputs()).steps]
    assert not [step for step in steps if step.startswith(("mask", "readonly"))]
