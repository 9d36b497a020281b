"""The parameters that an engine of the local lane honours, by endpoint.

They are the fields of vLLM's own requests (vLLM 0.32), which `tests/integration/local/test_vllm.py`
compares. The simulated engine accepts the same; its answers are the same words with any of them.
"""

from __future__ import annotations

from primarch_fleet.requests import CompletionRequest, EmbeddingRequest, ResponsesRequest

#: Fields of vLLM's requests that an engine sets itself, or that its handlers ignore.
NOT_FOR_REQUESTS = frozenset(
    {
        *("priority", "request_id"),
        *("mm_payload", "return_mm_kwargs", "return_token_offsets"),
        *("previous_response_id", "previous_input_messages", "prompt", "prompt_cache_key"),
        *("service_tier", "enable_response_messages"),
    }
)
ENGINE_PARAMETERS = {
    CompletionRequest.endpoint: frozenset(
        {
            *("model", "messages", "user", "stream", "stream_options", "stream_interval"),
            *("max_tokens", "max_completion_tokens", "n", "seed", "temperature", "top_p", "top_k"),
            *("min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
            *("length_penalty", "use_beam_search", "watermarking", "repetition_detection"),
            *("logit_bias", "logprobs", "top_logprobs", "prompt_logprobs", "logprob_token_ids"),
            *("stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "min_tokens"),
            *("bad_words", "allowed_token_ids", "skip_special_tokens"),
            *("spaces_between_special_tokens", "response_format", "structured_outputs"),
            *("tools", "tool_choice", "parallel_tool_calls"),
            *("reasoning_effort", "include_reasoning", "thinking_token_budget"),
            *("documents", "chat_template", "chat_template_kwargs", "add_generation_prompt"),
            *("continue_final_message", "add_special_tokens", "echo", "truncate_prompt_tokens"),
            *("truncation_side", "mm_processor_kwargs", "media_io_kwargs", "cache_salt"),
            *("session_id", "return_tokens_as_token_ids", "return_token_ids", "return_prompt_text"),
            *("routed_experts_prompt_start", "kv_transfer_params", "ec_transfer_params"),
            "vllm_xargs",
        }
    ),
    ResponsesRequest.endpoint: frozenset(
        {
            *("model", "input", "instructions", "user", "metadata", "stream", "store"),
            *("background", "max_output_tokens", "max_tool_calls", "temperature", "top_p"),
            *("top_k", "min_p"),
            *("presence_penalty", "frequency_penalty", "repetition_penalty", "watermarking"),
            *("logit_bias", "top_logprobs", "seed", "stop", "stop_token_ids", "ignore_eos"),
            *("include_stop_str_in_output", "skip_special_tokens", "text", "structured_outputs"),
            *("tools", "tool_choice", "parallel_tool_calls", "include", "truncation"),
            *("reasoning", "include_reasoning", "chat_template_kwargs", "mm_processor_kwargs"),
            *("media_io_kwargs", "cache_salt", "session_id", "vllm_xargs"),
            *("kv_transfer_params", "ec_transfer_params"),
        }
    ),
    EmbeddingRequest.endpoint: frozenset(
        {
            *("model", "input", "user", "dimensions", "encoding_format", "embed_dtype"),
            *("endianness", "use_activation", "truncate_prompt_tokens", "truncation_side"),
            *("padding", "add_special_tokens", "mm_processor_kwargs", "cache_salt"),
        }
    ),
}
