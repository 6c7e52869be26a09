"""The Kubernetes manifests of launch/serving: commands, ports and probes agree with `ham-dist serve`."""

from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.main import get_command

from ham_dist.cli import app
from tests.support.asgi import Client, ask
from tests.support.forked import ROOT
from tests.support.live_models import export, live_model

FOLDER = ROOT / "launch" / "serving"
FILES = sorted(FOLDER.glob("*.yaml"))


def documents(file: Path) -> list[Any]:
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


def pod_of(document: Any) -> Any:
    spec = document["spec"]
    return spec["predictor"] if "predictor" in spec else spec["template"]["spec"]


def options_of(container: Any) -> dict[str, Any]:
    """The options that the container's command sets, as the command line reads them."""
    words: list[str] = container["command"] + container["args"]
    assert words[:2] == ["ham-dist", "serve"]
    parsed = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    context = typer.Context(parsed)
    parsed.parse_args(context, words[2:])
    return dict(context.params)


def test_there_is_one_for_plain_kubernetes_and_one_for_kserve() -> None:
    kinds = [[document["kind"] for document in documents(file)] for file in FILES]
    assert kinds == [["Deployment", "Service"], ["InferenceService"]]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_command_ports_and_probes_agree(file: Path, tmp_path: Path) -> None:
    pod = pod_of(documents(file)[0])
    (container,) = pod["containers"]
    options = options_of(container)
    assert options["host"] == "0.0.0.0", "127.0.0.1 is not reached from outside of the container"
    ports = [port["containerPort"] for port in container["ports"]]
    assert ports == [port for port in (options["port"], options["grpc_port"]) if port is not None]
    wait = int(container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["", "0"])[1])
    assert pod["terminationGracePeriodSeconds"] > wait + options["drain_seconds"] + 5
    assert str(options["bundle"]).startswith(
        tuple(mount["mountPath"] for mount in container.get("volumeMounts", ())) or "/mnt/models"
    )
    probes = [container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    names = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {names.get(probe["port"], probe["port"]) for probe in probes} == {options["port"]}

    async def questions(client: Client) -> None:
        for probe in probes:
            assert (await client.get(probe["path"])).status == 200

    export(live_model(), tmp_path / "bundle")
    ask(tmp_path / "bundle", questions, name=options["name"])


def test_the_service_selects_the_pods_and_names_their_ports() -> None:
    deployment, service = documents(FOLDER / "deployment.yaml")
    assert deployment["metadata"]["name"] == service["metadata"]["name"]
    template = deployment["spec"]["template"]
    selected = deployment["spec"]["selector"]["matchLabels"]
    assert service["spec"]["selector"] == selected == template["metadata"]["labels"]
    (container,) = template["spec"]["containers"]
    names = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == names
    volumes = {volume["name"] for volume in template["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    scraped = template["metadata"]["annotations"]
    assert int(scraped["prometheus.io/port"]) == options_of(container)["port"]
    assert scraped["prometheus.io/path"] == "/metrics"
