"""Assigns GPUs to the local lane's workers; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from config.engine import EngineConfig
from primarch_fleet.errors import ConfigError

#: CUDA reads this variable; vLLM reads it on AMD GPUs too.
VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"


class WorkerPlacement(NamedTuple):
    """One worker process: its engine, and the environment variables that select it and its GPUs."""

    #: From 1; no other worker of the machine has it, however many workers an engine has.
    number: int
    engine: EngineConfig
    env: dict[str, str]


def assign_gpus(
    engines: Iterable[EngineConfig], workers: int | None = None
) -> list[WorkerPlacement]:
    """Place the local workers of one machine so that no two share a GPU.

    Args:
        engines: The engines of this machine.
        workers: Worker processes per engine; None starts `data_parallel_size` of each.

    Raises:
        ConfigError: Two engines would share a GPU, or an engine has too few for its workers.
    """
    engines = list(engines)
    if workers != 0:
        _check_no_shared_gpus(engines)
    return [
        WorkerPlacement(number=replica * len(engines) + index, engine=engine, env=env)
        for index, engine in enumerate(engines, start=1)
        for replica, env in enumerate(_environments(engine, workers))
    ]


def _environments(engine: EngineConfig, workers: int | None) -> Iterator[dict[str, str]]:
    count = engine.data_parallel_size if workers is None else workers
    size = engine.gpus_per_worker
    if engine.gpus and count * size > len(engine.gpus):
        raise ConfigError(
            f"engines: {engine.model}: {count} workers of {size} GPUs need {count * size} GPUs; "
            f"gpus lists {len(engine.gpus)}"
        )
    for start in range(0, count * size, size):
        env = {"FLEET_ENGINE": engine.model}
        if gpus := engine.gpus[start : start + size]:
            env[VISIBLE_DEVICES] = ",".join(map(str, gpus))
        yield env


def _check_no_shared_gpus(engines: list[EngineConfig]) -> None:
    vllm_engines = [engine for engine in engines if engine.engine == "vllm"]
    owners: dict[str, str] = {}
    for engine in vllm_engines:
        for gpu in map(str, engine.gpus):
            if gpu in owners:
                raise ConfigError(
                    f"engines: {owners[gpu]} and {engine.model} both list GPU {gpu}; "
                    "give each engine its own gpus"
                )
            owners[gpu] = engine.model
    unassigned = [engine.model for engine in vllm_engines if not engine.gpus]
    if owners and unassigned:
        raise ConfigError(
            f"engines: {', '.join(unassigned)}: set gpus; without them the workers would also use "
            f"the GPUs of {', '.join(sorted(set(owners.values())))}"
        )
