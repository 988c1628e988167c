"""The manifests as they are sent to a cluster: valid to the letter, and as strict as they claim."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from common.config import load
from tests.integration.deploy.documents import (
    KUSTOMIZATION,
    METRICS_PORT,
    PORTS,
    SECRET,
    Document,
    compose_environment,
    config_class,
    container,
    kubernetes_environment,
    manifests,
    name_of,
    of_kind,
    pod,
    prefix,
    render,
    workload,
)

OLDEST, NEWEST = "1.31", "1.37"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
OPTIONS = sorted(path.name for path in (KUSTOMIZATION / "components").iterdir())


def with_option(option: str, tmp_path: Any) -> list[Document]:
    """Render the kustomization with one of its components, as its last lines say how to."""
    base, overlay = tmp_path / "base", tmp_path / "overlay"
    base.symlink_to(KUSTOMIZATION)
    overlay.mkdir()
    component = f"../base/components/{option}"
    text = yaml.safe_dump({"resources": ["../base"], "components": [component]})
    (overlay / "kustomization.yaml").write_text(text)
    return render(overlay)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_document_is_valid_to_the_letter(version: str) -> None:
    """Strict schemas refuse a misspelt field, which a cluster would drop with a warning."""
    for document in manifests():
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_valid_to_the_letter(option: str, version: str, tmp_path: Any) -> None:
    documents = with_option(option, tmp_path)

    assert documents != manifests()
    for document in documents:
        kubernetes_validate.validate(document, version, strict=True)


def test_the_validation_refuses_a_misspelt_field() -> None:
    """Otherwise the tests above would prove nothing."""
    document = copy.deepcopy(workload("sandbox"))
    document["spec"]["template"]["spec"]["enableServiceLink"] = False

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, NEWEST, strict=True)


def test_gvisor_is_for_the_sandbox_alone(tmp_path: Any) -> None:
    documents = with_option("gvisor", tmp_path)
    classes = {
        name_of(each): each["spec"]["template"]["spec"].get("runtimeClassName")
        for each in documents
        if each["kind"] in {"Deployment", "StatefulSet"}
    }

    assert classes == {"orchestrator": None, "sandbox": "gvisor", "gateway": None}


def test_only_under_gvisor_may_a_wall_around_workers_be_missing(tmp_path: Any) -> None:
    """It has no Landlock, and is a wall itself; elsewhere a missing one has to be noticed."""
    setting = "FATHOM_SANDBOX_REQUIRE_JAIL"
    (sandbox,) = [
        each
        for each in with_option("gvisor", tmp_path)
        if each["kind"] == "Deployment" and name_of(each) == "sandbox"
    ]
    (container,) = sandbox["spec"]["template"]["spec"]["containers"]

    assert {"name": setting, "value": "false"} in container["env"]
    assert kubernetes_environment("sandbox")[setting] == "true"
    assert compose_environment("sandbox")[setting] == "true"


def pods_with(option: str, tmp_path: Any) -> dict[str, Document]:
    """Return the spec of each service's pods with an option."""
    return {
        name_of(each): each["spec"]["template"]["spec"]
        for each in with_option(option, tmp_path)
        if each["kind"] in {"Deployment", "StatefulSet"}
    }


def added_settings(service: str, spec: Document) -> dict[str, str]:
    """Return the variables that an option adds to a service, checked as the service checks them."""
    (only,) = spec["containers"]
    environment = {each["name"]: each.get("value", SECRET) for each in only["env"]}
    load(config_class(service), environment, prefix=prefix(service))
    before = kubernetes_environment(service)
    assert before.items() <= environment.items()
    return {name: value for name, value in environment.items() if name not in before}


def test_with_tls_every_service_shows_asks_for_and_trusts_certificates(tmp_path: Any) -> None:
    """One that does not would serve who shows none, or send a run token to who is no service."""
    kinds = {"CERTIFICATE_FILE": "tls.crt", "KEY_FILE": "tls.key", "CLIENT_CA_FILE": "ca.crt"}
    for service, spec in pods_with("tls", tmp_path).items():
        calls = kinds if service == "gateway" else kinds | {"CA_FILE": "ca.crt"}
        [mount] = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "tls"]
        [volume] = [v for v in spec["volumes"] if v["name"] == "tls"]

        assert added_settings(service, spec) == {
            f"{prefix(service)}TLS_{kind}": f"{mount['mountPath']}/{file}"
            for kind, file in calls.items()
        }
        assert mount["readOnly"]
        assert volume["secret"] == {"secretName": f"{service}-tls", "defaultMode": 0o440}


def test_with_tls_a_container_is_probed_by_a_command_that_speaks_it(tmp_path: Any) -> None:
    """The kubelet's gRPC probes know no TLS: each pod would be restarted for ever."""
    for service, spec in pods_with("tls", tmp_path).items():
        for name in PROBES:
            probe = spec["containers"][0][name]
            command = probe["exec"]["command"]

            assert "grpc" not in probe
            assert probe["timeoutSeconds"] > 3
            assert command[:4] == [
                "python", "-m", "common.healthcheck", f"127.0.0.1:{PORTS[service]}",
            ]  # fmt: skip
            assert {each.partition("=")[0] for each in command[4:]} == {
                "--tls-ca-file", "--tls-certificate-file", "--tls-key-file",
            }  # fmt: skip


def test_api_keys_come_from_a_secret_of_the_orchestrator_alone(tmp_path: Any) -> None:
    pods = pods_with("api-keys", tmp_path)
    [volume] = [v for v in pods["orchestrator"]["volumes"] if v["name"] == "api-keys"]
    added = {service: added_settings(service, spec) for service, spec in pods.items()}

    assert volume["secret"]["secretName"] == "api-keys"
    assert added == {
        "orchestrator": {"FATHOM_ORCHESTRATOR_API_KEYS_FILE": "/etc/fathom-keys/keys.toml"},
        "sandbox": {},
        "gateway": {},
    }


def test_host_tools_are_called_by_the_orchestrator_alone(tmp_path: Any) -> None:
    """Code in the sandbox reaches them by it or not at all."""
    [policy] = [
        each
        for each in with_option("host-tools", tmp_path)
        if each["kind"] == "NetworkPolicy" and name_of(each) == "host-tools"
    ]

    assert policy["spec"]["podSelector"]["matchLabels"] == {
        "app.kubernetes.io/name": "orchestrator"
    }
    assert policy["spec"]["policyTypes"] == ["Egress"]
    assert "ingress" not in policy["spec"]


def test_every_document_is_in_the_namespace() -> None:
    """One that is not would be made in whatever namespace the operator happens to be in."""
    inside = [each for each in manifests() if each["kind"] != "Namespace"]

    assert {each["metadata"].get("namespace") for each in inside} == {"fathom"}


def test_admission_enforces_the_restricted_standard() -> None:
    (namespace,) = of_kind("Namespace")

    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_there_is_one_workload_for_each_service() -> None:
    """What follows looks at each service: a fourth workload would go unchecked."""
    kinds = of_kind("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "Pod", "ReplicaSet")

    assert sorted(map(name_of, kinds)) == sorted(PORTS)


@pytest.mark.parametrize("service", PORTS)
def test_a_pod_has_no_privilege(service: str) -> None:
    spec = pod(service)
    context = spec["securityContext"]

    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == 65532
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(service)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(spec)
    assert not any("hostPath" in volume for volume in spec["volumes"])


@pytest.mark.parametrize("service", PORTS)
def test_a_pod_gets_no_variables_of_other_services(service: str) -> None:
    """A Service named fathom-gateway would set FATHOM_GATEWAY_PORT, which is no setting."""
    assert pod(service)["enableServiceLinks"] is False


@pytest.mark.parametrize("service", PORTS)
def test_a_container_has_requests_and_limits(service: str) -> None:
    resources = container(service)["resources"]

    for side in ("requests", "limits"):
        assert set(resources[side]) == {"cpu", "memory", "ephemeral-storage"}


@pytest.mark.parametrize("service", PORTS)
def test_a_container_is_probed_by_grpc_on_the_port_it_listens_on(service: str) -> None:
    port = PORTS[service]
    spec = container(service)

    assert kubernetes_environment(service)[f"FATHOM_{service.upper()}_LISTEN"] == f"0.0.0.0:{port}"
    assert {each["containerPort"] for each in spec["ports"]} == {port, METRICS_PORT}
    for probe in PROBES:
        assert spec[probe]["grpc"] == {"port": port}


@pytest.mark.parametrize("service", PORTS)
def test_a_busy_pod_leaves_the_balancer_long_before_it_is_restarted(service: str) -> None:
    """A restart ends work under way, so liveness is the laxer of the two."""
    spec = container(service)

    def patience_s(probe: str) -> int:
        return int(spec[probe]["periodSeconds"]) * int(spec[probe].get("failureThreshold", 3))

    assert patience_s("livenessProbe") >= 4 * patience_s("readinessProbe")


@pytest.mark.parametrize("service", PORTS)
def test_the_kubelet_waits_longer_than_the_drain(service: str) -> None:
    """SIGKILL in the middle of a drain would lose what the drain is for."""
    environment = kubernetes_environment(service)
    prefix = f"FATHOM_{service.upper()}_"
    notice_s = float(environment[f"{prefix}DRAIN_NOTICE_S"])
    drain_s = float(environment[f"{prefix}DRAIN_S"])

    assert notice_s > 0
    assert pod(service)["terminationGracePeriodSeconds"] > notice_s + drain_s + 5


@pytest.mark.parametrize("service", PORTS)
def test_reflection_is_off(service: str) -> None:
    assert kubernetes_environment(service)[f"FATHOM_{service.upper()}_REFLECTION"] == "false"


@pytest.mark.parametrize("service", PORTS)
def test_a_service_is_headless_and_selects_its_pods(service: str) -> None:
    (found,) = [each for each in of_kind("Service") if name_of(each) == service]
    labels = workload(service)["spec"]["template"]["metadata"]["labels"]

    assert found["spec"]["clusterIP"] == "None"
    assert found["spec"]["selector"].items() <= labels.items()
    (port,) = found["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (PORTS[service], "grpc")


@pytest.mark.parametrize("service", PORTS)
def test_a_disruption_budget_selects_the_pods(service: str) -> None:
    (found,) = [each for each in of_kind("PodDisruptionBudget") if name_of(each) == service]
    labels = workload(service)["spec"]["template"]["metadata"]["labels"]

    assert found["spec"]["selector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize("service", PORTS)
def test_only_one_replica_runs(service: str) -> None:
    """Runs, sessions and meters are in one process's keeping in this form."""
    assert workload(service)["spec"]["replicas"] == 1


def test_the_object_store_is_read_only_in_the_sandbox() -> None:
    """A sandbox that was taken over cannot change what other runs read."""

    def mounts(service: str) -> dict[str, bool]:
        claims = [each for each in pod(service)["volumes"] if "persistentVolumeClaim" in each]
        names = {each["name"] for each in claims}
        listed = container(service)["volumeMounts"]
        return {
            each["name"]: each.get("readOnly", False) for each in listed if each["name"] in names
        }

    assert mounts("orchestrator") == {"objects": False}
    assert mounts("sandbox") == {"objects": True, "sessions": False}
    assert mounts("gateway") == {}


def test_only_the_gateway_has_a_providers_key() -> None:
    holders = {
        service
        for service in PORTS
        for secret in secret_references(pod(service))
        if secret["name"] == "providers"
    }

    assert holders == {"gateway"}


def test_the_sandbox_has_no_secret_at_all() -> None:
    """It carries a run's token to the gateway but cannot make one."""
    assert not list(secret_references(pod("sandbox")))


def test_no_secret_is_among_what_is_applied() -> None:
    assert of_kind("Secret") == []
    for service in PORTS:
        for variable in container(service)["env"]:
            is_secret = variable["name"].endswith("_KEY")
            assert ("value" in variable) is not is_secret


def test_the_example_of_secrets_has_every_key_that_the_pods_refer_to() -> None:
    text = (KUSTOMIZATION / "secret.example.yaml").read_text()
    offered = {
        (name_of(each), key) for each in yaml.safe_load_all(text) for key in each["stringData"]
    }
    wanted = {
        (each["name"], each["key"]) for service in PORTS for each in secret_references(pod(service))
    }

    assert offered == wanted


def secret_references(node: Any) -> Iterator[dict[str, str]]:
    """Yield every reference to a Secret's key, however deep."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in {"secretKeyRef", "secretRef"}:
                yield value
            elif key == "secret":
                yield {"name": value["secretName"], "key": "*"}
            else:
                yield from secret_references(value)
    elif isinstance(node, list):
        for value in node:
            yield from secret_references(value)
