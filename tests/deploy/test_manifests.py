"""The Compose file and the Kubernetes manifest: what they tell the server, and whether they give it time to end."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from quietserve.server.settings import Settings, read_settings

FOLDER = Path(__file__).parents[2] / "docs/deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
OBJECTS: dict[str, Any] = {
    each["kind"]: each for each in yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8"))
}
LAST_REPLIES_S = 5  # that the server takes beyond its shutdown timeout
POD = OBJECTS["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
ENVIRONMENTS = {
    "compose": COMPOSE["services"]["quietserve"]["environment"],
    "kubernetes": {variable["name"]: variable["value"] for variable in CONTAINER["env"]},
}


def settings(where: str) -> Settings:
    """What the server makes of an environment, whose every name it must know."""
    environment = {name: str(text) for name, text in ENVIRONMENTS[where].items()}
    told = read_settings([], environment)
    taken = {f"QUIETSERVE_{name.upper()}" for name, origin in told.origins.items() if origin == "environment"}
    assert taken == environment.keys()
    return told.settings


@pytest.mark.parametrize("where", ENVIRONMENTS)
def test_the_server_understands_its_environment(where: str) -> None:
    assert settings(where).api_key_file is not None


def test_both_give_the_running_answers_their_time() -> None:
    graces = {
        "compose": int(COMPOSE["services"]["quietserve"]["stop_grace_period"].removesuffix("s")),
        "kubernetes": POD["terminationGracePeriodSeconds"]
        - int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1]),
    }
    for where, grace in graces.items():
        assert grace > settings(where).shutdown_timeout + LAST_REPLIES_S


def test_the_key_is_read_where_it_is_mounted() -> None:
    (mount,) = (mount for mount in CONTAINER["volumeMounts"] if mount["name"] == "api-key")
    assert str(settings("kubernetes").api_key_file).startswith(mount["mountPath"] + "/")
    (secret,) = COMPOSE["services"]["quietserve"]["secrets"]
    assert settings("compose").api_key_file == f"/run/secrets/{secret}"


def test_kubernetes_asks_the_right_questions() -> None:
    asked = {kind: CONTAINER[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert asked == {"startup": "/health", "liveness": "/health", "readiness": "/ready"}
    (port,) = CONTAINER["ports"]
    assert port["containerPort"] == Settings().port
    assert {probe["httpGet"]["port"] for name, probe in CONTAINER.items() if name.endswith("Probe")} == {port["name"]}
    assert OBJECTS["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]


def test_kubernetes_sets_no_variables_that_look_like_ours() -> None:
    assert POD["enableServiceLinks"] is False
    assert not OBJECTS["Service"]["metadata"]["name"].upper().replace("-", "_").startswith("QUIETSERVE")


def test_kubernetes_selects_what_it_makes() -> None:
    labels = OBJECTS["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    assert OBJECTS["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels
    assert OBJECTS["Service"]["spec"]["selector"].items() <= labels


def test_every_volume_is_there_and_used() -> None:
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == {volume["name"] for volume in POD["volumes"]}
    named = {source for source, _ in mounts() if not source.startswith(".")}
    assert named == COMPOSE["volumes"].keys()


def test_every_file_that_compose_mounts_is_there() -> None:
    files = [source for source, _ in mounts() if source.startswith(".")]
    assert files
    assert [file for file in files if not (FOLDER / file).is_file()] == []


def test_what_compose_refers_to_is_defined() -> None:
    for kind in ("secrets", "configs"):
        used = {name(each) for service in COMPOSE["services"].values() for each in service.get(kind, ())}
        assert used == COMPOSE[kind].keys()
    for config in COMPOSE["configs"].values():
        assert yaml.safe_load(config["content"])["apiVersion"] == 1


def test_compose_opens_nothing_to_the_network_and_pins_what_it_pulls() -> None:
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert "build" in service or re.search(r":v?\d+\.\d+\.\d+$", service["image"])


def test_prometheus_finds_the_server_and_its_key() -> None:
    (scraped,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": [f"quietserve:{Settings().port}"]}]
    key = f"/etc/prometheus/{scraped['authorization']['credentials_file']}"
    assert [secret["target"] for secret in COMPOSE["services"]["prometheus"]["secrets"]] == [key]


def mounts() -> Iterator[tuple[str, str]]:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            source, target = volume.split(":")[:2]
            yield source, target


def name(used: str | dict[str, str]) -> str:
    return used if isinstance(used, str) else used["source"]


def test_the_ray_service_tells_flags_that_are_known_and_mounts_what_they_name() -> None:
    spec = yaml.safe_load((FOLDER / "rayservice.yaml").read_text(encoding="utf-8"))["spec"]
    (application,) = yaml.safe_load(spec["serveConfigV2"])["applications"]
    assert application["import_path"] == "quietserve.server.replicas:build"
    told = Settings.from_args(application["args"]["flags"].split(), {})
    (worker,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    mounts = {mount["mountPath"] for mount in worker["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert mounts == {str(Path(told.model or "").parent), str(Path(told.api_key_file or "").parent)}
    assert worker["maxReplicas"] == application["args"]["max_replicas"]
