"""The processes that the one-machine fleet plans, and their configuration."""

import fcntl
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.engine import EngineConfig
from config.fleet import load
from config.settings import ROOT, Settings
from primarch_fleet.errors import ConfigError
from tests.support.engines import settings as engine_settings
from workers.onebox.lane_workers import lane_workers
from workers.onebox.options import Options, options
from workers.onebox.ports import PORTS, Ports, free_port
from workers.onebox.private_file import write_private
from workers.onebox.processes import PROCESSES_LOCK, Process
from workers.onebox.supervisor import socket_sections
from workers.onebox.up import (
    Plan,
    engine_python,
    lock,
    supervisor_config,
    wait_for_earlier_processes,
)
from workers.onebox.wait_ready import welcome

VLLM = engine_settings("vllm") | {"path": "/models/small"}


def plan(
    folder: Path, *engines: dict[str, Any], local: int | None = None, simulate: bool = True
) -> Plan:
    file = yaml.safe_load((ROOT / "config" / "fleet.yaml").read_text())
    file["engines"] = list(engines)
    (folder / "fleet.yaml").write_text(yaml.safe_dump(file))
    machine = Settings(data_dir=folder, engine_python=Path("/vllm/bin/python"))
    chosen = Options(realtime=1, local=local, batch=1, simulate=simulate)
    return Plan(chosen, load(folder / "fleet.yaml"), machine)


def locals_of(plan: Plan) -> list[Process]:
    return [process for process in plan.processes if process.name.startswith("local-")]


def test_each_worker_of_an_engine_gets_its_own_gpus(tmp_path: Path) -> None:
    wide = VLLM | {"gpus": [0, 1, 2, 3], "tensor_parallel_size": 2, "data_parallel_size": 2}
    workers = locals_of(plan(tmp_path, wide))
    assert [worker.name for worker in workers] == ["local-1", "local-2"]
    assert [worker.env["CUDA_VISIBLE_DEVICES"] for worker in workers] == ["0,1", "2,3"]
    assert {worker.env["FLEET_ENGINE"] for worker in workers} == {"tested"}


def test_a_worker_keeps_its_name_and_engine_when_others_start() -> None:
    engines = [EngineConfig.model_validate(VLLM | {"model": name}) for name in ("m", "n")]
    few, many = (
        {
            worker.name: worker.env["FLEET_ENGINE"]
            for worker in lane_workers("local", count, engines)
        }
        for count in (1, 2)
    )
    assert few == {"local-1": "m", "local-2": "n"}
    assert many == few | {"local-3": "m", "local-4": "n"}


def test_a_fleet_without_batch_workers_starts_no_beat_until_it_is_scaled(tmp_path: Path) -> None:
    for batch, autostart in ((0, "false"), (1, "true"), (None, "true")):
        chosen = Options(realtime=1, local=0, batch=batch, simulate=True)
        machine = Settings(data_dir=tmp_path)
        made = Plan(chosen, load(ROOT / "config" / "fleet.yaml"), machine)
        config = supervisor_config(made, machine)
        assert config["program:beat"]["autostart"] == autostart


def test_a_data_folder_with_a_path_too_long_for_a_socket_has_none(tmp_path: Path) -> None:
    assert "unix_http_server" in socket_sections(Path("/srv/fleet"))
    assert not socket_sections(tmp_path / ("long" * 30)).sections()


def test_processes_that_a_killed_supervisor_left_are_waited_for(tmp_path: Path) -> None:
    wait_for_earlier_processes(tmp_path, 0)
    with (tmp_path / PROCESSES_LOCK).open() as left:
        fcntl.flock(left, fcntl.LOCK_SH)
        with pytest.raises(ConfigError, match=r"an earlier fleet still run .*\(`fuser "):
            wait_for_earlier_processes(tmp_path, 0)
    wait_for_earlier_processes(tmp_path, 0)


def test_a_lane_that_the_command_line_leaves_out_is_not_scaled() -> None:
    assert options(["--realtime", "4", "--local", "0"]).named() == {"realtime": 4, "local": 0}
    assert options([]).workers() == {"realtime": 1, "local": None, "batch": 1}


def test_what_a_running_fleet_cannot_change_is_known() -> None:
    asked = options(["--flower-port", "5999", "--api-port", "0", "--simulate", "--batch", "1"])
    assert asked.ignored() == ["--flower-port 5999", "--simulate"]
    assert options(["--batch", "1"]).ignored() == []


def test_vllm_runs_in_its_own_python_and_a_simulated_engine_in_the_fleets(
    tmp_path: Path,
) -> None:
    simulated = VLLM | {"model": "other", "engine": "simulated"}
    real, other = locals_of(plan(tmp_path, VLLM, simulated))
    assert "/vllm/bin/python" in real.command
    assert "/vllm/bin/python" not in other.command


def test_an_engine_that_does_not_start_is_retried_without_limit(tmp_path: Path) -> None:
    config = supervisor_config(plan(tmp_path, VLLM), Settings(data_dir=tmp_path))
    program = config["program:local-1"]
    assert (program["startsecs"], program["startretries"]) == ("900", "1000000")
    assert program["autorestart"] == "true"


def test_the_plan_says_why_providers_are_simulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plan(tmp_path).simulation_reason == "--simulate"
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    simulated = plan(tmp_path, simulate=False)
    assert simulated.simulation_reason == "not set: OPENAI_API_KEY"
    assert simulated.simulated == "openai"
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    assert plan(tmp_path, simulate=False).simulation_reason == ""


def test_a_real_account_stays_as_it_is_beside_a_simulated_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    claude = {
        "id": "claude",
        "model": "claude",
        "price": {"input": "3", "output": "15"},
        "litellm_params": {"model": "anthropic/claude", "api_key": "os.environ/ANTHROPIC_API_KEY"},
    }
    file = yaml.safe_load((ROOT / "config" / "fleet.yaml").read_text())
    (tmp_path / "fleet.yaml").write_text(
        yaml.safe_dump(file | {"deployments": [*file["deployments"], claude]})
    )
    real = load(tmp_path / "fleet.yaml")
    chosen = Options(realtime=1, local=0, batch=1, simulate=False)
    made = Plan(chosen, real, Settings(data_dir=tmp_path))
    assert (made.simulated, made.simulation_reason) == ("anthropic", "not set: ANTHROPIC_API_KEY")
    written = load(tmp_path / "simulated-fleet.yaml")
    assert written.providers["openai"] == real.providers["openai"]
    assert written.batch == real.batch
    [account] = (one for name, one in written.providers.items() if name != "openai")
    assert account.simulated
    assert account.base_url() == made.addresses["simulated provider"]
    assert "OPENAI_API_KEY" not in made.env


def test_the_welcome_text_has_addresses_configuration_data_and_how_to_stop(tmp_path: Path) -> None:
    text = welcome({"redis": "redis://host:1/0"}, "/etc/fleet.yaml", tmp_path)
    for part in ("redis://host:1/0", "/etc/fleet.yaml", str(tmp_path), "Ctrl-C stops it"):
        assert part in text


def test_the_welcome_text_masks_the_password(tmp_path: Path) -> None:
    text = welcome({"redis": "rediss://user:hunter2@host:1/0"}, "/etc/fleet.yaml", tmp_path)
    assert "rediss://user:***@host:1/0" in text
    assert "hunter2" not in text


def test_a_file_of_an_earlier_version_becomes_private(tmp_path: Path) -> None:
    path = tmp_path / "wait_ready.yaml"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o600)


def test_the_data_folder_becomes_private_unless_it_is_shared(tmp_path: Path) -> None:
    own, shared = tmp_path / "own", tmp_path / "shared"
    for folder, mode in ((own, 0o755), (shared, 0o1777)):
        folder.mkdir()
        folder.chmod(mode)
        lock(folder)
    assert own.stat().st_mode & 0o7777 == 0o700
    assert shared.stat().st_mode & 0o7777 == 0o1777


def test_workers_that_would_share_a_gpu_are_not_started(tmp_path: Path) -> None:
    engines = [VLLM | {"gpus": [0]}, VLLM | {"model": "other", "gpus": [0]}]
    with pytest.raises(ConfigError, match="tested and other both list GPU 0"):
        plan(tmp_path, *engines)
    assert locals_of(plan(tmp_path, *engines, local=0)) == []


def test_the_configured_engine_python_is_preferred_over_the_installed_one() -> None:
    configured = Path("/opt/python")
    assert engine_python(Settings(engine_python=configured)) == configured
    assert engine_python(Settings()).exists()


def test_a_free_port_is_below_the_range_of_outgoing_connections() -> None:
    outgoing = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first = int(outgoing.read_text().split()[0]) if outgoing.exists() else 32_768
    assert PORTS.start <= free_port() < min(first, PORTS.stop)


def test_flower_has_the_port_that_is_asked_for(tmp_path: Path) -> None:
    port = free_port()
    assert options(["--flower-port", str(port)]).flower_port == port
    chosen = Options(realtime=1, local=0, batch=1, simulate=True, flower_port=port)
    planned = Plan(chosen, load(ROOT / "config" / "fleet.yaml"), Settings(data_dir=tmp_path))
    assert planned.addresses["flower"] == f"http://127.0.0.1:{port}"


def test_a_preferred_port_in_use_is_replaced() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) in PORTS
    assert free_port(port) == port


def test_fleets_that_start_at_the_same_time_have_other_ports(tmp_path: Path) -> None:
    ports = Ports(tmp_path / "none", reserve=True)
    port = ports.choose("flower")
    other = Ports(tmp_path / "none", reserve=True)
    moved = other.choose("flower", requested=port)
    assert moved != port
    assert other.moved == [f"Port {port} is taken: flower moves to port {moved}."]
    ports.release()
    assert Ports(tmp_path / "none", reserve=True).choose("flower", requested=port) == port


def test_a_port_that_a_starting_fleet_has_reserved_is_not_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting = Ports(tmp_path / "none", reserve=True)
    port = starting.choose("flower")
    monkeypatch.setattr("workers.onebox.ports.PORTS", range(port, port + 1))
    with pytest.raises(ConfigError, match="no port is free"):
        free_port()
    starting.release()
    assert free_port() == port


def test_a_second_start_has_the_ports_of_the_first(tmp_path: Path) -> None:
    first = plan(tmp_path)
    write_private(tmp_path / "ports.yaml", first.ports.text())
    first.ports.release()
    second = plan(tmp_path)
    assert second.addresses == first.addresses
    assert second.ports.moved == []


def test_a_port_that_is_taken_since_the_last_start_moves_alone_and_is_named(tmp_path: Path) -> None:
    first = plan(tmp_path)
    write_private(tmp_path / "ports.yaml", first.ports.text())
    first.ports.release()
    port = int(first.addresses["redis"].rpartition(":")[2].removesuffix("/0"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        second = plan(tmp_path)
    changed = {name for name, url in second.addresses.items() if first.addresses[name] != url}
    assert changed == {"redis"}
    [sentence] = second.ports.moved
    assert sentence.startswith(f"Port {port} is taken: redis moves to port ")


def test_no_two_processes_have_the_same_port(tmp_path: Path) -> None:
    (tmp_path / "ports.yaml").write_text("redis: 20001\nflower: 20001\n")
    addresses = plan(tmp_path).addresses
    assert len(set(addresses.values())) == len(addresses)


@pytest.mark.parametrize("text", ["", "[", "redis: no port", "redis: 70000"])
def test_a_damaged_file_of_ports_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "ports.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"ports\.yaml .* remove it"):
        plan(tmp_path)
