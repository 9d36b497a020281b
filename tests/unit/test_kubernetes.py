"""The manifests of docker/kubernetes, as kubectl renders them. No cluster is asked."""

import json
import re
import shutil
import subprocess
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from config.fleet import FleetConfig, load
from config.settings import ROOT, Settings
from workers.onebox.processes import STOP_MARGIN_SECONDS

FOLDER = ROOT / "docker" / "kubernetes"
API = " and the api"  # with the component of that name
OVERLAYS = ("small", "production", f"small{API}", f"production{API}")
SCHEMAS: dict[str, Any] = json.loads((ROOT / "tests" / "data" / "kubernetes-1.37.json").read_text())
#: What an operator creates beforehand: docs/deployment.md.
SECRETS = {
    "small": {"fleet-providers", "fleet-flower"},
    "production": {"fleet-redis", "fleet-providers", "fleet-flower"},
}
SECRETS |= {f"{overlay}{API}": names for overlay, names in SECRETS.items()}

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl renders them")
pytestmark = needs_kubectl

Manifest = dict[str, Any]


@cache
def rendered(overlay: str) -> list[Manifest]:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "kubernetes"
        shutil.copytree(FOLDER, folder)
        if overlay.endswith(API):
            with (folder / overlay.removesuffix(API) / "kustomization.yaml").open("a") as file:
                file.write("components: [../api]\n")
        command = ["kubectl", "kustomize", str(folder / overlay.removesuffix(API))]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return list(yaml.safe_load_all(text))


def of_kind(overlay: str, *kinds: str) -> dict[str, Manifest]:
    return {
        manifest["metadata"]["name"]: manifest
        for manifest in rendered(overlay)
        if manifest["kind"] in kinds
    }


def workloads(overlay: str) -> dict[str, Manifest]:
    return of_kind(overlay, "Deployment", "StatefulSet")


def pod(workload: Manifest) -> Manifest:
    spec: Manifest = workload["spec"]["template"]["spec"]
    return spec


def container(workload: Manifest) -> Manifest:
    [one] = pod(workload)["containers"]
    return dict(one)


def variables(workload: Manifest) -> dict[str, str]:
    return {item["name"]: item["value"] for item in container(workload).get("env", [])}


def is_worker(workload: Any) -> bool:
    return "worker" in container(workload)["command"]


WORKLOADS = [
    pytest.param(workload, id=f"{overlay}-{name}")
    for overlay in (OVERLAYS if shutil.which("kubectl") else ())
    for name, workload in workloads(overlay).items()
]
WORKERS = [param for param in WORKLOADS if is_worker(param.values[0])]


def schema_of(manifest: Manifest) -> Manifest:
    """The schema of a kind, by the name of its API group."""
    group, _, version = manifest["apiVersion"].rpartition("/")
    package = group.partition(".")[0] or "core"
    name = f"io.k8s.api.{package}.{version}.{manifest['kind']}"
    return {"$ref": f"#/$defs/{name}", "$defs": SCHEMAS["$defs"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_manifest_is_valid_by_the_schema_of_its_kind(overlay: str) -> None:
    for manifest in rendered(overlay):
        if manifest["kind"] != "ScaledObject":
            jsonschema.Draft7Validator(schema_of(manifest)).validate(manifest)


def test_the_schemas_refuse_a_wrong_name_of_a_field() -> None:
    manifest = {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replica": 1}}
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        jsonschema.Draft7Validator(schema_of(manifest)).validate(manifest)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_pod_runs_without_root_and_on_a_file_system_that_it_cannot_write(
    workload: Manifest,
) -> None:
    of_pod, of_container = pod(workload)["securityContext"], container(workload)["securityContext"]
    assert of_pod["runAsNonRoot"]
    assert of_pod["runAsUser"] > 0
    assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert of_container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(workload)["automountServiceAccountToken"] is False


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_container_has_probes_resources_and_an_image_of_one_version(workload: Manifest) -> None:
    one = container(workload)
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= one.keys()
    assert {"cpu", "memory"} <= one["resources"]["requests"].keys()
    assert "memory" in one["resources"]["limits"]
    tag = one["image"].rpartition("/")[2].partition(":")[2]
    assert re.search(r"\d", tag), one["image"]
    ports = {port["name"] for port in one.get("ports", [])}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert one[probe].get("httpGet", {}).get("port") in {None, *ports}


@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_folders_that_a_process_writes_are_mounted(workload: Manifest) -> None:
    claims = workload["spec"].get("volumeClaimTemplates", [])
    writable = {
        volume["name"] for volume in pod(workload).get("volumes", []) if "emptyDir" in volume
    }
    writable |= {claim["metadata"]["name"] for claim in claims}
    mounted = {
        mount["mountPath"]
        for mount in container(workload)["volumeMounts"]
        if mount["name"] in writable
    }
    assert "/data" in mounted
    if "HOME" in variables(workload):
        assert variables(workload)["HOME"] in mounted
    caches = [value for name, value in variables(workload).items() if name.endswith("_CACHE_DIR")]
    assert {str(Path(folder).parent) for folder in caches} <= mounted


@pytest.mark.parametrize("workload", WORKERS)
def test_a_worker_has_more_time_to_stop_than_to_drain(workload: Manifest) -> None:
    drain = float(variables(workload).get("FLEET_DRAIN_TIMEOUT", Settings().drain_timeout))
    assert pod(workload)["terminationGracePeriodSeconds"] >= drain + STOP_MARGIN_SECONDS
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container(workload)[probe]["httpGet"] == {"path": "/health", "port": "metrics"}


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_container_starts_a_module_that_exists_with_settings_that_exist(
    workload: Manifest,
) -> None:
    command = container(workload)["command"]
    for option in {"-A", "-m"}.intersection(command):
        assert find_spec(command[command.index(option) + 1])
    names = {name for name in variables(workload) if name.startswith("FLEET_")}
    assert {name.removeprefix("FLEET_").lower() for name in names} <= Settings.model_fields.keys()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_there_is_one_beat_also_during_an_update(overlay: str) -> None:
    spec = workloads(overlay)["beat"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert workloads(overlay)["flower"]["spec"]["replicas"] == 1


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_lanes_that_call_a_provider_get_its_key_and_reach_it(overlay: str) -> None:
    secrets = {
        name: {source["secretRef"]["name"] for source in container(workload).get("envFrom", [])}
        for name, workload in workloads(overlay).items()
    }
    with_key = {name for name, names in secrets.items() if "fleet-providers" in names}
    assert with_key == {"realtime", "batch"}
    policy = of_kind(overlay, "NetworkPolicy")["fleet-providers"]["spec"]
    assert set(policy["podSelector"]["matchExpressions"][0]["values"]) == with_key
    own = of_kind(overlay, "Secret").keys()
    assert set().union(*secrets.values()) == SECRETS[overlay] | own


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_selector_finds_pods(overlay: str) -> None:
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in workloads(overlay).values()]
    selectors = [
        *(one["spec"]["podSelector"] for one in of_kind(overlay, "NetworkPolicy").values()),
        *(one["spec"]["selector"] for one in of_kind(overlay, "PodDisruptionBudget").values()),
        *({"matchLabels": one["spec"]["selector"]} for one in of_kind(overlay, "Service").values()),
    ]
    assert len(selectors) >= 5
    for selector in selectors:
        wanted = selector.get("matchLabels", {}).items()
        assert any(wanted <= found.items() for found in labels), selector
    covered = of_kind(overlay, "NetworkPolicy").values()
    for found in labels:
        assert any(
            one["spec"]["podSelector"].get("matchLabels", {}).items() <= found.items()
            and "Ingress" in one["spec"]["policyTypes"]
            for one in covered
        ), found


@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if name.endswith(API)])
def test_the_api_is_reached_at_its_port_and_stops_after_its_open_requests(overlay: str) -> None:
    api = workloads(overlay)["api"]
    one, stop = container(api), pod(api)["terminationGracePeriodSeconds"]
    pause = one["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert stop >= pause + float(variables(api)["FLEET_DRAIN_TIMEOUT"]) + STOP_MARGIN_SECONDS
    [port] = [port["containerPort"] for port in one["ports"] if port["name"] == "http"]
    assert one["command"][-2:] == ["--port", str(port)]
    assert of_kind(overlay, "Service")["api"]["spec"]["ports"][0]["targetPort"] == "http"
    [allowed] = of_kind(overlay, "NetworkPolicy")["fleet-api"]["spec"]["ingress"]
    assert [item["port"] for item in allowed["ports"]] == [port]


def fleet(overlay: str, folder: Path) -> FleetConfig:
    """The configuration of the ConfigMap that the pods mount."""
    [(name, config)] = of_kind(overlay, "ConfigMap").items()
    for workload in workloads(overlay).values():
        mounted = [
            one["configMap"]["name"]
            for one in pod(workload).get("volumes", [])
            if "configMap" in one
        ]
        assert set(mounted) <= {name}
    (folder / "fleet.yaml").write_text(config["data"]["fleet.yaml"])
    return load(folder / "fleet.yaml")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_configuration_is_valid_and_each_engine_has_its_workers(
    overlay: str, tmp_path: Path
) -> None:
    config = fleet(overlay, tmp_path)
    engines = {
        variables(one)["FLEET_ENGINE"]
        for one in workloads(overlay).values()
        if "FLEET_ENGINE" in variables(one)
    }
    assert engines == {engine.model for engine in config.engines}


# Scaling.

#: The fields of a ScaledObject that the manifests use: https://keda.sh/docs/latest/reference/scaledobject-spec/
SCALED_OBJECT = {
    *("scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval"),
    *("cooldownPeriod", "advanced", "triggers"),
}
#: Those of its Prometheus scaler: https://keda.sh/docs/latest/scalers/prometheus/
PROMETHEUS = {"serverAddress", "query", "threshold", "activationThreshold", "ignoreNullValues"}


def scaled_objects() -> dict[str, Manifest]:
    return {name: one["spec"] for name, one in of_kind("production", "ScaledObject").items()}


def queries() -> dict[tuple[str, str], str]:
    return {
        (lane, trigger["name"]): trigger["metadata"]["query"]
        for lane, spec in scaled_objects().items()
        for trigger in spec["triggers"]
    }


def test_the_lanes_scale_from_none_by_fields_that_keda_knows(tmp_path: Path) -> None:
    assert scaled_objects().keys() == {"realtime", "local"}
    for lane, spec in scaled_objects().items():
        assert spec.keys() == SCALED_OBJECT
        assert "replicas" not in workloads("production")[lane]["spec"]
        assert (spec["scaleTargetRef"], spec["minReplicaCount"]) == ({"name": lane}, 0)
        for trigger in spec["triggers"]:
            assert trigger.keys() <= {"type", "name", "metricType", "metadata"}
            assert trigger["metadata"].keys() <= PROMETHEUS
            assert all(isinstance(value, str) for value in trigger["metadata"].values())
    served = set(fleet("production", tmp_path).catalogue().queues)
    for query in queries().values():
        assert set(re.findall(r'queue="([^"]+)"', query)) <= served


def test_a_depth_that_is_not_known_changes_nothing() -> None:
    """KEDA reads a missing value as 0, which would end all workers while Flower restarts."""
    for spec in scaled_objects().values():
        for trigger in spec["triggers"]:
            if "queue_depth" in trigger["metadata"]["query"]:
                assert trigger["metadata"]["ignoreNullValues"] == "false"


def test_queries_use_metrics_that_exist() -> None:
    code = (ROOT / "workers" / "observability" / "metrics.py").read_text()
    for path in (ROOT / "scheduler" / "fleet_metrics").glob("*.py"):
        code += path.read_text()
    used = set(re.findall(r"primarch_\w+", " ".join(queries().values())))
    named = set(re.findall(r'"(primarch_\w+)"', code))
    assert {name.removesuffix("_count") for name in used} <= named


#: Samples every 15 s: 40 wait. In the first case no worker runs; in the second two workers answer
#: 2 requests a second each; in the third nothing waits and Flower restarts.
CASES: list[tuple[dict[str, str], dict[str, float | None]]] = [
    ({"depth": "40x40"}, {"wait": 40.0, "length": 40.0, "answers": 0.0}),
    ({"depth": "40x40", "answered": "0+30x40"}, {"wait": 10.0, "length": 40.0, "answers": 4.0}),
    ({"depth": "0x40", "answered": "0+30x40"}, {"wait": 0.0, "length": 0.0, "answers": 4.0}),
    ({"answered": "5x40"}, {"wait": None, "length": None, "answers": 0.0}),
]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool evaluates them")
@pytest.mark.parametrize("lane", ["realtime", "local"])
def test_queries_have_the_values_by_which_a_lane_scales(lane: str, tmp_path: Path) -> None:
    queue = {"realtime": "realtime", "local": "local.qwen3-8b"}[lane]
    (tmp_path / "rules.yml").write_text("groups: []\n")
    tests = []
    for given, expected in CASES:
        series = []
        if "depth" in given:
            labels = f'lane="{lane}",queue="{queue}"'
            # Two Flowers, and the queue of another lane.
            for instance, depth in (("a", given["depth"]), ("b", given["depth"])):
                name = f'primarch_queue_depth{{{labels},instance="{instance}"}}'
                series.append({"series": name, "values": depth})
            series.append({"series": 'primarch_queue_depth{queue="batch"}', "values": "900x40"})
        if "answered" in given:
            for instance in ("a", "b"):
                labels = f'lane="{lane}",tenant_id="t",instance="{instance}"'
                name = f"primarch_request_duration_seconds_count{{{labels}}}"
                series.append({"series": name, "values": given["answered"]})
        evaluated = [
            {
                "expr": queries()[lane, name],
                "eval_time": "9m",
                "exp_samples": [] if value is None else [{"labels": "{}", "value": value}],
            }
            for name, value in expected.items()
        ]
        tests.append({"interval": "15s", "input_series": series, "promql_expr_test": evaluated})
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump({"rule_files": ["rules.yml"], "tests": tests}))
    result = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
