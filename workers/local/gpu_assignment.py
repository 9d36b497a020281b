"""Which worker of the local lane gets which GPUs, as a pure function."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from config.engine import EngineConfig
from primarch_fleet.errors import ConfigError

#: What CUDA, and vLLM on AMD's GPUs too, reads.
VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"


class WorkerPlacement(NamedTuple):
    """One worker process: the engine it runs, and what its environment says about it."""

    engine: EngineConfig
    env: dict[str, str]


def assign_gpus(
    engines: Iterable[EngineConfig], workers: int | None = None
) -> list[WorkerPlacement]:
    """The local workers of one machine, each with GPUs of its own.

    Args:
        workers: Worker processes of each engine; None starts `data_parallel_size` of each.

    Raises ConfigError when two would share a GPU, or an engine has too few for its workers.
    """
    engines = list(engines)
    if workers != 0:
        _check_nothing_is_shared(engines)
    return [seat for engine in engines for seat in _seats(engine, workers)]


def _seats(engine: EngineConfig, workers: int | None) -> Iterator[WorkerPlacement]:
    count, size = engine.data_parallel_size if workers is None else workers, engine.gpus_per_worker
    if engine.gpus and count * size > len(engine.gpus):
        raise ConfigError(
            f"engines: {engine.model}: {count} workers of {size} GPUs need {count * size}, "
            f"gpus names {len(engine.gpus)}"
        )
    for start in range(0, count * size, size):
        gpus = ",".join(map(str, engine.gpus[start : start + size]))
        yield WorkerPlacement(
            engine, {"FLEET_ENGINE": engine.model} | ({VISIBLE_DEVICES: gpus} if gpus else {})
        )


def _check_nothing_is_shared(engines: list[EngineConfig]) -> None:
    real = [engine for engine in engines if engine.engine == "vllm"]
    owners: dict[str, str] = {}
    for engine in real:
        for gpu in map(str, engine.gpus):
            if gpu in owners:
                raise ConfigError(
                    f"engines: {owners[gpu]} and {engine.model} are both given GPU {gpu}"
                )
            owners[gpu] = engine.model
    everywhere = [engine.model for engine in real if not engine.gpus]
    if owners and everywhere:
        raise ConfigError(
            f"engines: {', '.join(everywhere)}: name its gpus too, or it takes those of "
            f"{', '.join(sorted(set(owners.values())))}"
        )
