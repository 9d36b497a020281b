"""The assignment of GPUs to local workers."""

from typing import Any

import pytest

from config.engine import EngineConfig
from primarch_fleet.errors import ConfigError
from workers.local.gpu_assignment import VISIBLE_DEVICES, assign_gpus


def engine(model: str = "m", **fields: Any) -> EngineConfig:
    defaults = {"model": model, "engine": "vllm", "path": "/m", "price": {"input": 1, "output": 2}}
    return EngineConfig.model_validate(defaults | fields)


def assigned(*engines: EngineConfig, workers: int | None = None) -> list[tuple[str, str | None]]:
    return [
        (placement.env["FLEET_ENGINE"], placement.env.get(VISIBLE_DEVICES))
        for placement in assign_gpus(engines, workers)
    ]


def test_each_worker_gets_the_gpus_it_needs_for_itself_alone() -> None:
    wide = engine(gpus=[0, 1, 2, 3], tensor_parallel_size=2, data_parallel_size=2)
    deep = engine("n", gpus=[4, "GPU-5f2a"], pipeline_parallel_size=2)
    assert assigned(wide, deep) == [("m", "0,1"), ("m", "2,3"), ("n", "4,GPU-5f2a")]


def test_each_worker_knows_its_engine() -> None:
    engines = [engine(gpus=[0, 1], data_parallel_size=2), engine("n", gpus=[2])]
    placed = [placement.engine for placement in assign_gpus(engines)]
    assert placed == [engines[0], engines[0], engines[1]]


def test_an_engine_without_gpus_sets_no_visible_devices() -> None:
    assert assigned(engine(data_parallel_size=2)) == [("m", None), ("m", None)]


def test_the_number_of_workers_can_be_set_at_the_start() -> None:
    config = engine(gpus=[0, 1], data_parallel_size=2)
    assert assigned(config, workers=1) == [("m", "0")]
    assert assigned(config, workers=0) == []


def test_more_workers_than_gpus_are_refused() -> None:
    config = engine(gpus=[0, 1], tensor_parallel_size=2)
    with pytest.raises(ConfigError, match="m: 2 workers of 2 GPUs need 4 GPUs; gpus lists 2"):
        assign_gpus([config], workers=2)


def test_two_engines_on_one_gpu_are_refused() -> None:
    with pytest.raises(ConfigError, match="m and n both list GPU 1"):
        assign_gpus([engine(gpus=[0, 1], data_parallel_size=2), engine("n", gpus=[1])])


def test_an_engine_without_gpus_is_refused_beside_an_engine_with_gpus() -> None:
    with pytest.raises(
        ConfigError, match="n: set gpus; without them the workers would also use the GPUs of m"
    ):
        assign_gpus([engine(gpus=[0]), engine("n")])


def test_a_simulated_engine_needs_no_gpu() -> None:
    assert assigned(engine(gpus=[0]), engine("n", engine="simulated"))[1] == ("n", None)


def test_engines_without_workers_may_share_a_gpu() -> None:
    assert assigned(engine(gpus=[0]), engine("n", gpus=[0]), workers=0) == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"gpus": [0, 0]}, "gpus: a GPU is named twice"),
        ({"gpus": [0, "0"]}, "gpus: a GPU is named twice"),
        ({"gpus": [0, 1, 2], "tensor_parallel_size": 2}, "3 named, 2 needed"),
        ({"gpus": [0], "data_parallel_size": 2}, "1 named, 2 needed"),
    ],
)
def test_gpus_that_do_not_fit_the_parallel_sizes_are_refused(
    fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        engine(**fields)
