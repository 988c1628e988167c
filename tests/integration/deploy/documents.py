"""What `deploy/` says, for the tests of this folder: rendered manifests, compose, settings.

Reads and renders; what must hold is said in the tests.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import yaml

from common.config import ServerConfig

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
KUSTOMIZATION = DEPLOY / "kubernetes"
PACKAGES = {"orchestrator": "orchestrator", "sandbox": "sandbox_service", "gateway": "llm_gateway"}
"""Service to the package that it is in."""
PORTS = {"orchestrator": 7311, "sandbox": 7312, "gateway": 7313}
"""Service to its gRPC port."""
ARROWS = {
    *(("orchestrator", "sandbox"), ("sandbox", "orchestrator")),
    *(("orchestrator", "gateway"), ("sandbox", "gateway")),
}
"""Who calls whom, as ARCHITECTURE.md draws it."""
METRICS_PORT = 9464
SECRET = "secret " * 8
"""Stands for the value of a Secret; long enough for a key."""

Document = dict[str, Any]


def tool(name: str) -> str:
    """Return the path of a program that came with the development dependencies."""
    path = shutil.which(name, path=sysconfig.get_path("scripts"))
    assert path is not None, f"{name} is not installed"
    return path


def render(folder: Path) -> list[Document]:
    """Return the documents that `kubectl apply -k` would send."""
    result = subprocess.run(
        [tool("kubectl"), "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr, result.stderr
    return list(yaml.safe_load_all(result.stdout))


@functools.cache
def manifests() -> list[Document]:
    """Return what the kustomization renders to, without options."""
    return render(KUSTOMIZATION)


def of_kind(*kinds: str) -> list[Document]:
    """Return the rendered documents of some kinds."""
    return [document for document in manifests() if document["kind"] in kinds]


def name_of(document: Document) -> str:
    """Return a document's name."""
    return str(document["metadata"]["name"])


def workload(service: str) -> Document:
    """Return a service's Deployment or StatefulSet."""
    (found,) = [each for each in of_kind("Deployment", "StatefulSet") if name_of(each) == service]
    return found


def pod(service: str) -> Document:
    """Return the spec of a service's pods."""
    spec: Document = workload(service)["spec"]["template"]["spec"]
    return spec


def container(service: str) -> Document:
    """Return the one container of a service's pods."""
    (only,) = pod(service)["containers"]
    return dict(only)


@functools.cache
def compose() -> Document:
    """Return the compose file, merge keys applied, variables left as they are."""
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))


def kubernetes_environment(service: str) -> dict[str, str]:
    """Return a container's variables, with a stand-in for the value of a Secret."""
    return {each["name"]: each.get("value", SECRET) for each in container(service)["env"]}


def compose_environment(service: str) -> dict[str, str]:
    """Return a compose service's variables."""
    return dict(compose()["services"][service]["environment"])


def config_class(service: str) -> type[ServerConfig]:
    """Return the dataclass that a service reads its settings into."""
    module = importlib.import_module(f"{PACKAGES[service]}.config")
    (found,) = [
        each
        for _, each in inspect.getmembers(module, inspect.isclass)
        if issubclass(each, ServerConfig) and each.__module__ == module.__name__
    ]
    return found


def prefix(service: str) -> str:
    """Return what the names of a service's variables begin with."""
    return f"FATHOM_{service.upper()}_"
