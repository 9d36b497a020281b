"""A model on own hardware: an entry of the `engines` section of fleet.yaml."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from config.endpoints import endpoints
from config.price import Price, Priced
from config.section import Name
from primarch_fleet.catalogue import Offer
from primarch_fleet.prices import Rates
from primarch_fleet.prompt_size import MediaTokens
from primarch_fleet.requests.base import JsonObject

#: Arguments of vLLM that a local worker sets from other keys.
RESERVED_ENGINE_ARGS = {"served_model_name", "runner", "enable_lora", "enable_auto_tool_choice"}


class EngineConfig(Priced):
    """A model on own hardware. Settings that vLLM has keep vLLM's names and defaults.

    A worker process runs one engine. `data_parallel_size` workers share one queue.
    """

    #: What the model does: `chat` answers conversations, `embedding` returns vectors.
    kind: Literal["chat", "embedding"] = "chat"
    #: The name that producers use.
    model: Name
    #: `vllm`, or `simulated`: answers without a model, as every receipt says.
    engine: Literal["vllm", "simulated"]
    #: What vLLM loads: a folder or a Hugging Face name.
    path: str = ""
    #: Dollars per million tokens that the same answer would cost elsewhere; savings are measured
    #: against it. Without it, `price`.
    list_price: Price | None = None
    #: Quality of the answers, from 0 to 1; requests may ask for a minimum.
    quality: float = Field(1.0, ge=0, le=1)

    #: GPUs of all workers of the engine together, by number or UUID. Empty: each worker sees the
    #: GPUs that its process sees.
    gpus: list[Annotated[int, Field(ge=0)] | str] = []
    #: GPUs that share each layer of the model.
    tensor_parallel_size: int = Field(1, gt=0)
    #: Stages into which the model's layers are divided, each on its own GPUs.
    pipeline_parallel_size: int = Field(1, gt=0)
    #: Workers that serve the model.
    data_parallel_size: int = Field(1, gt=0)

    #: Requests that are computed at the same time. vLLM's own default depends on the hardware.
    max_num_seqs: int = Field(128, gt=0)
    #: Requests that may wait inside the engine, so that a free slot is filled at once. All others
    #: wait in the queue, where another worker takes them or an urgent request overtakes them.
    max_waiting: int = Field(32, ge=0)
    #: Requests with a common prefix go to the worker that has the prefix in its cache.
    prefix_affinity: bool = True
    #: Seconds before its deadline at which a queued request is promoted to the realtime lane, if
    #: its producer named no lane and the realtime lane serves the model. 0: never.
    promote_before: float = Field(5.0, ge=0)
    #: Most tokens of prompt and answer together. Without it, what the model supports.
    max_model_len: int | None = Field(None, gt=0)
    #: Most tokens that a picture or a sound in a prompt counts as.
    media_tokens: MediaTokens = MediaTokens()
    #: Share of each GPU's memory that the engine uses. Above 0 to 1.
    gpu_memory_utilization: float = Field(0.92, gt=0, le=1)
    #: Reuse the computed state of common prefixes. Without it, vLLM decides.
    enable_prefix_caching: bool | None = None
    #: Compute long prompts in parts, between other requests. Without it, vLLM decides.
    enable_chunked_prefill: bool | None = None
    #: vLLM's settings for speculative decoding.
    speculative_config: JsonObject | None = None
    #: The method by which the weights are quantized. Without it, what the model says.
    quantization: str | None = None
    #: Data type of weights and activations. `auto`: what the model says.
    dtype: str = "auto"
    #: Run without CUDA graphs: slower, but starts faster and needs less memory.
    enforce_eager: bool = False
    #: vLLM's parser for the model's tool calls. Without it, vLLM refuses tool_choice
    #: `auto`.
    tool_call_parser: str | None = None
    #: vLLM's parser for the model's reasoning. Empty: reasoning stays in the answer.
    reasoning_parser: str = ""
    #: LoRA adapters: folder or Hugging Face name, by the model name that producers use.
    lora_modules: dict[str, str] = {}
    #: Highest rank of the adapters.
    max_lora_rank: int = Field(16, gt=0)
    #: Other arguments of `vllm serve`, by their names with underscores.
    engine_args: JsonObject = {}

    @model_validator(mode="after")
    def _check_own_price(self) -> Self:
        self.rates()
        return self

    @model_validator(mode="after")
    def _check_path(self) -> Self:
        if self.engine == "vllm" and not self.path:
            raise ValueError("path: missing; name the folder or Hugging Face model to load")
        return self

    @model_validator(mode="after")
    def _check_engine_args(self) -> Self:
        own_keys = {*type(self).model_fields, *RESERVED_ENGINE_ARGS}
        reserved = sorted(set(self.engine_args) & own_keys)
        if reserved:
            raise ValueError(
                f"engine_args: {', '.join(reserved)}: set by the engine's own keys; "
                "remove it here and use those"
            )
        return self

    @model_validator(mode="after")
    def _check_gpus(self) -> Self:
        if len(set(map(str, self.gpus))) < len(self.gpus):
            raise ValueError("gpus: a GPU is named twice; name each once")
        needed = self.gpus_per_worker * self.data_parallel_size
        if self.gpus and len(self.gpus) != needed:
            raise ValueError(
                f"gpus: {len(self.gpus)} named, {needed} needed: tensor_parallel_size x "
                "pipeline_parallel_size x data_parallel_size"
            )
        return self

    def list_rates(self) -> Rates:
        """Return the prices of the same answer elsewhere."""
        return self.rates() if self.list_price is None else self.list_price.alone()

    @property
    def queue(self) -> str:
        """The queue of the engine's workers."""
        return f"local.{self.model}"

    @property
    def models(self) -> list[str]:
        """The names that the engine answers to: its model's and its adapters'."""
        return [self.model, *self.lora_modules]

    @property
    def gpus_per_worker(self) -> int:
        """GPUs of one worker process."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def slots(self) -> int:
        """Requests that one worker holds: those being computed and those waiting in the engine."""
        return self.max_num_seqs + self.max_waiting

    def offer(self) -> Offer:
        """Return what the local lane offers to producers with this engine."""
        return Offer(
            queue=self.queue,
            endpoints=endpoints(self.kind),
            price=self.rates(),
            quality=self.quality,
            max_output_tokens=self.max_model_len,
            media=self.media_tokens,
            context_length=self.max_model_len,
        )
