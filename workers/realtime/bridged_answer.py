"""The chat completion in a response, for models that have only OpenAI's Responses API.

LiteLLM does this on the realtime lane; the batch lane reads responses from files.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from litellm.completion_extras.litellm_responses_transformation.transformation import (
    LiteLLMResponsesTransformationHandler,
)
from litellm.litellm_core_utils.litellm_logging import Logging
from litellm.types.llms.openai import ResponsesAPIResponse
from litellm.types.utils import ModelResponse

Body = dict[str, Any]
_HANDLER: Any = LiteLLMResponsesTransformationHandler()  # type: ignore[no-untyped-call]


def chat_completion(response: Body) -> Body:
    """Return the `chat.completion` that LiteLLM makes of a `response`.

    Raises:
        Exception: Any, if `response` is not a valid response.
    """
    log = Logging(
        model=response["model"],
        messages=[],
        stream=False,
        call_type="completion",
        start_time=datetime.now(),  # noqa: DTZ005 - LiteLLM's own times have no zone
        litellm_call_id="",
        function_id="",
    )
    completion = _HANDLER.transform_response(
        model=response["model"],
        raw_response=ResponsesAPIResponse(**response),
        model_response=ModelResponse(created=int(response["created_at"])),
        logging_obj=log,
        request_data={},
        messages=[],
        optional_params={},
        litellm_params={},
        encoding=None,
    )
    body: Body = completion.model_dump()
    return {**body, "created": int(response["created_at"])}
