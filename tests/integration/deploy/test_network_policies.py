"""Who can reach whom, worked out from policies and labels as a network plugin does."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

import pytest

from tests.integration.deploy.documents import (
    ARROWS,
    METRICS_PORT,
    PORTS,
    Document,
    name_of,
    of_kind,
    workload,
)

NAMESPACE = "fathom"


@dataclass(frozen=True)
class Endpoint:
    """One end of a connection: a pod somewhere in the cluster, or an address outside it."""

    labels: dict[str, str]
    """The pod's labels."""
    namespace: str = NAMESPACE
    """The pod's namespace."""
    namespace_labels: tuple[tuple[str, str], ...] = ()
    """Labels of the namespace beside its name."""
    address: str = ""
    """Address, for what is no pod."""


def service_pod(service: str) -> Endpoint:
    return Endpoint(workload(service)["spec"]["template"]["metadata"]["labels"])


def outside(address: str) -> Endpoint:
    return Endpoint({}, namespace="", address=address)


DNS = Endpoint({"k8s-app": "kube-dns"}, namespace="kube-system")
STRANGER = Endpoint({"app.kubernetes.io/name": "gateway"}, namespace="elsewhere")
"""A pod that calls itself one of ours, in another namespace."""
CLIENT = Endpoint({}, namespace="clients", namespace_labels=(("fathom-client", "allowed"),))


def reaches(source: Endpoint, target: Endpoint, port: int, protocol: str = "TCP") -> bool:
    """Tell whether a connection is allowed at both of its ends."""
    return _permits("Egress", source, target, port, protocol) and _permits(
        "Ingress", target, source, port, protocol
    )


def _permits(direction: str, subject: Endpoint, peer: Endpoint, port: int, protocol: str) -> bool:
    """Tell whether policies let `subject` have the connection; with none selecting it, yes."""
    specs = [
        each["spec"]
        for each in of_kind("NetworkPolicy")
        if subject.namespace == NAMESPACE
        and direction in each["spec"]["policyTypes"]
        and _matches(each["spec"]["podSelector"], subject.labels)
    ]
    peers = {"Egress": "to", "Ingress": "from"}[direction]
    rules = [rule for spec in specs for rule in spec.get(direction.lower(), [])]
    return not specs or any(
        (peers not in rule or any(_is_peer(each, peer) for each in rule[peers]))
        and ("ports" not in rule or {"protocol": protocol, "port": port} in rule["ports"])
        for rule in rules
    )


def _is_peer(rule: Document, peer: Endpoint) -> bool:
    if "ipBlock" in rule:
        return bool(peer.address) and _contains(rule["ipBlock"], peer.address)
    if peer.address:
        return False
    if "namespaceSelector" in rule:
        labels = dict(peer.namespace_labels)
        labels["kubernetes.io/metadata.name"] = peer.namespace
        if not _matches(rule["namespaceSelector"], labels):
            return False
    elif peer.namespace != NAMESPACE:
        return False
    return _matches(rule.get("podSelector", {}), peer.labels)


def _contains(block: Document, address: str) -> bool:
    host = ipaddress.ip_address(address)
    return host in ipaddress.ip_network(block["cidr"]) and not any(
        host in ipaddress.ip_network(each) for each in block.get("except", [])
    )


def _matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}, "selectors by expression are not worked out here"
    wanted: dict[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()


def test_services_reach_each_other_by_the_arrows_and_no_other_way() -> None:
    """Neither backwards, nor sideways, nor on another port."""
    open_ways = {
        (source, target, port)
        for source in PORTS
        for target in PORTS
        for port in (*PORTS.values(), METRICS_PORT, 22, 80, 443)
        if source != target and reaches(service_pod(source), service_pod(target), port)
    }

    assert open_ways == {(source, target, PORTS[target]) for source, target in ARROWS}


def test_a_policy_selects_every_pod_for_both_directions() -> None:
    """A pod without a policy is open to all."""
    (deny,) = [each for each in of_kind("NetworkPolicy") if name_of(each) == "default-deny"]

    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@pytest.mark.parametrize("service", PORTS)
def test_a_name_can_be_looked_up(service: str) -> None:
    assert reaches(service_pod(service), DNS, 53, "UDP")
    assert reaches(service_pod(service), DNS, 53, "TCP")


def test_only_the_gateway_reaches_the_internet_and_only_by_https() -> None:
    addresses = ("203.0.113.7", "2001:db8::7")
    ways = {
        (service, port)
        for service in PORTS
        for address in addresses
        for port in (53, 80, 443, 8080)
        if reaches(service_pod(service), outside(address), port)
    }

    assert ways == {("gateway", 443)}


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.168.0.1",
        "fc00::1",
        "fe80::1",
    ],
)
def test_the_gateway_reaches_no_private_address(address: str) -> None:
    """Neither another tenant of the cluster nor the cloud's metadata service."""
    assert not reaches(service_pod("gateway"), outside(address), 443)


def test_clients_reach_the_orchestrator_alone() -> None:
    reached = {
        (service, port)
        for service in PORTS
        for port in (*PORTS.values(), METRICS_PORT)
        if reaches(CLIENT, service_pod(service), port)
    }

    assert reached == {("orchestrator", PORTS["orchestrator"])}


@pytest.mark.parametrize("service", PORTS)
def test_a_pod_of_another_namespace_with_our_labels_reaches_nothing(service: str) -> None:
    assert not reaches(STRANGER, service_pod(service), PORTS[service])
