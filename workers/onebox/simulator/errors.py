"""API errors in OpenAI's form."""

from typing import Any

JsonObject = dict[str, Any]


class ApiError(Exception):
    """An error response: `status` and OpenAI's error object; `retry_after` is in seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def body(self) -> JsonObject:
        """The JSON body: one `error` object with `message`, `type`, `param` and `code`."""
        return {
            "error": {
                "message": self.message,
                "type": self._type(),
                "param": self.param,
                "code": self.code,
            }
        }

    def _type(self) -> str:
        if self.status >= 500:
            return "server_error"
        if self.status != 429:
            return "invalid_request_error"
        return "insufficient_quota" if self.code == "insufficient_quota" else "requests"


def invalid(message: str, param: str | None, code: str | None = None) -> ApiError:
    """The 400 for an invalid parameter."""
    return ApiError(400, message, code=code, param=param)


def missing(param: str) -> ApiError:
    """The 400 for a missing parameter."""
    return invalid(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")


def model_not_found(model: str) -> ApiError:
    """The 404 for a model that is not in the profile."""
    message = f"The model `{model}` does not exist or you do not have access to it."
    return ApiError(404, message, code="model_not_found")
