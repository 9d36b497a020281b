"""Which local worker gets which GPUs."""

from typing import Any

import pytest

from config.engine import EngineConfig
from primarch_fleet.errors import ConfigError
from workers.local.gpu_assignment import VISIBLE_DEVICES, assign_gpus


def engine(model: str = "m", **fields: Any) -> EngineConfig:
    defaults = {"model": model, "engine": "vllm", "path": "/m", "price": {"input": 1, "output": 2}}
    return EngineConfig.model_validate(defaults | fields)


def pinned(*engines: EngineConfig, workers: int | None = None) -> list[tuple[str, str | None]]:
    return [
        (seat.env["FLEET_ENGINE"], seat.env.get(VISIBLE_DEVICES))
        for seat in assign_gpus(engines, workers)
    ]


def test_each_worker_of_a_queue_gets_as_many_gpus_as_it_needs_and_no_other_has_them() -> None:
    wide = engine(gpus=[0, 1, 2, 3], tensor_parallel_size=2, data_parallel_size=2)
    deep = engine("n", gpus=[4, "GPU-5f2a"], pipeline_parallel_size=2)
    assert pinned(wide, deep) == [("m", "0,1"), ("m", "2,3"), ("n", "4,GPU-5f2a")]


def test_an_engine_without_gpus_leaves_its_environment_as_it_is() -> None:
    assert pinned(engine(data_parallel_size=2)) == [("m", None), ("m", None)]


def test_the_number_of_workers_can_be_said_at_the_start() -> None:
    one = engine(gpus=[0, 1], data_parallel_size=2)
    assert pinned(one, workers=1) == [("m", "0")]
    assert pinned(one, workers=0) == []


def test_more_workers_than_gpus_are_refused() -> None:
    one = engine(gpus=[0, 1], tensor_parallel_size=2)
    with pytest.raises(ConfigError, match="m: 2 workers of 2 GPUs need 4, gpus names 2"):
        assign_gpus([one], workers=2)


def test_two_engines_on_one_gpu_are_refused() -> None:
    with pytest.raises(ConfigError, match="m and n are both given GPU 1"):
        assign_gpus([engine(gpus=[0, 1], data_parallel_size=2), engine("n", gpus=[1])])


def test_an_engine_that_would_see_the_others_gpus_must_name_its_own() -> None:
    with pytest.raises(ConfigError, match="n: name its gpus too, or it takes those of m"):
        assign_gpus([engine(gpus=[0]), engine("n")])


def test_a_simulated_engine_needs_no_gpu() -> None:
    assert pinned(engine(gpus=[0]), engine("n", engine="simulated"))[1] == ("n", None)


def test_engines_that_are_not_started_cannot_collide() -> None:
    assert pinned(engine(gpus=[0]), engine("n", gpus=[0]), workers=0) == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"gpus": [0, 0]}, "gpus: one is named twice"),
        ({"gpus": [0, "0"]}, "gpus: one is named twice"),
        ({"gpus": [0, 1, 2], "tensor_parallel_size": 2}, "3 are given, 2 are needed"),
        ({"gpus": [0], "data_parallel_size": 2}, "1 are given, 2 are needed"),
    ],
)
def test_gpus_that_do_not_fit_the_parallel_sizes_are_refused(
    fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        engine(**fields)
