"""A model on own hardware: an entry of the `engines` section of fleet.yaml."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from config.section import Priced
from primarch_fleet.contract import JsonObject
from primarch_fleet.money import Price

#: What a local worker tells vLLM by itself.
RESERVED_ENGINE_ARGS = {"served_model_name", "runner", "enable_lora", "enable_auto_tool_choice"}


class EngineConfig(Priced):
    """A model on own hardware. Settings that vLLM knows have vLLM's names and defaults.

    A worker process runs one engine; `data_parallel_size` workers take from one queue.
    """

    model: str
    #: "simulated" answers without a model and says so in every receipt.
    engine: Literal["vllm", "simulated"]
    #: What vLLM loads: a folder or a Hugging Face name.
    path: str = ""
    #: What the same answer would cost elsewhere; the saving is measured against it.
    list_price: Price | None = None
    quality: float = Field(1.0, ge=0, le=1)

    #: The GPUs of its workers together, by number or UUID; empty: each sees what its process sees.
    gpus: list[Annotated[int, Field(ge=0)] | str] = []
    tensor_parallel_size: int = Field(1, gt=0)
    pipeline_parallel_size: int = Field(1, gt=0)
    data_parallel_size: int = Field(1, gt=0)

    #: Requests that are computed at the same time; vLLM's own default depends on the hardware.
    max_num_seqs: int = Field(128, gt=0)
    #: Requests that may wait inside the engine, so that a place that falls free is filled at once.
    #: All others wait in the queue, where another worker or a more urgent one can pass them.
    max_waiting: int = Field(32, ge=0)
    #: Requests with a common beginning go to the worker that has it in its cache.
    prefix_affinity: bool = True
    #: Seconds before its deadline at which a request that still waits in the queue goes to the
    #: realtime lane, if its producer named no lane and that one serves the model; 0: never.
    promote_before: float = Field(5.0, ge=0)
    max_model_len: int | None = Field(None, gt=0)
    gpu_memory_utilization: float = Field(0.92, gt=0, le=1)
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    speculative_config: JsonObject | None = None
    quantization: str | None = None
    dtype: str = "auto"
    enforce_eager: bool = False
    #: Which of vLLM's parsers reads the model's tool calls and its reasoning.
    tool_call_parser: str | None = None
    reasoning_parser: str = ""
    #: LoRA adapters, folder or Hugging Face name by the model name that producers use.
    lora_modules: dict[str, str] = {}
    max_lora_rank: int = Field(16, gt=0)
    #: Anything else that `vllm serve` takes, by its name with underscores.
    engine_args: JsonObject = {}

    @model_validator(mode="after")
    def _loads_something(self) -> Self:
        if self.engine == "vllm" and not self.path:
            raise ValueError("path: vLLM needs a folder or a Hugging Face name to load")
        return self

    @model_validator(mode="after")
    def _says_nothing_twice(self) -> Self:
        if twice := sorted(
            set(self.engine_args) & {*type(self).model_fields, *RESERVED_ENGINE_ARGS}
        ):
            raise ValueError(f"engine_args: {', '.join(twice)}: it follows from the engine's keys")
        return self

    @model_validator(mode="after")
    def _fits_its_gpus(self) -> Self:
        if len(set(map(str, self.gpus))) < len(self.gpus):
            raise ValueError("gpus: one is named twice")
        needed = self.gpus_per_worker * self.data_parallel_size
        if self.gpus and len(self.gpus) != needed:
            raise ValueError(
                f"gpus: {len(self.gpus)} are given, {needed} are needed: tensor_parallel_size x "
                "pipeline_parallel_size x data_parallel_size"
            )
        return self

    @property
    def queue(self) -> str:
        return f"local.{self.model}"

    @property
    def models(self) -> list[str]:
        """The names that it answers to: its model's and its adapters'."""
        return [self.model, *self.lora_modules]

    @property
    def gpus_per_worker(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def places(self) -> int:
        """Requests that one worker holds: those that are computed and those that wait for it."""
        return self.max_num_seqs + self.max_waiting
