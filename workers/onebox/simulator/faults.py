"""The errors of fault rules."""

from workers.onebox.simulator.errors import ApiError
from workers.onebox.simulator.profile import Fault


def error_of(fault: Fault, status: int) -> ApiError:
    """The error response of a fault."""
    code = fault.code or ("rate_limit_exceeded" if status == 429 else None)
    return ApiError(status, fault.message, code=code, retry_after=fault.retry_after)
