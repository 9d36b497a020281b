"""`GET /v1/models` and `GET /v1/models/{model}`: the catalogue, as far as the key may use it."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from api.call import Call
from api.errors import ApiError
from primarch_fleet.catalogue import Model

#: When a model was created, which the fleet does not know: OpenAI's type needs a number.
_UNKNOWN_TIME = 0


async def list_models(call: Call) -> Response:
    """List the models."""
    catalogue = await call.services.catalogue.get()
    listed = [
        _object(name, model)
        for name, model in sorted(catalogue.models.items())
        if call.caller.may_use(name)
    ]
    return JSONResponse({"object": "list", "data": listed})


async def retrieve(call: Call) -> Response:
    """Show a model."""
    name = call.request.path_params["model"]
    catalogue = await call.services.catalogue.get()
    model = catalogue.models.get(name)
    if model is None or not call.caller.may_use(name):
        message = f"The model {name[:100]!r} does not exist"
        raise ApiError(404, "model_not_found", message, param="model")
    return JSONResponse(_object(name, model))


def _object(name: str, model: Model) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": _UNKNOWN_TIME,
        "owned_by": "primarch-fleet",
        "kind": model.kind,
        "lanes": sorted(model.lanes),
    }
