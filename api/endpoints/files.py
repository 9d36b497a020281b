"""`/v1/files`: upload, list, retrieve, content, delete."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from api.call import Call, too_large, too_slow
from api.errors import NO_RETRY, ApiError, not_found
from api.store.files import MAX_FILES, FileStore, NoRoom, StoredFile, UploadLost
from api.store.pages import Page, PageQuery

#: Bytes of an upload besides the file: fields, and the boundaries between them.
_FORM_BYTES = 64 * 1024
#: Most fields of an upload, and bytes of each.
_MAX_FIELDS, _MAX_FIELD_BYTES = 10, 4_096
#: Uploads that a process takes at the same time; later ones wait. Each has a file on the disk.
_uploads = asyncio.Semaphore(16)
#: Bounds of the limit of a list, and of `expires_after` in seconds.
_MAX_LISTED = 10_000
MIN_EXPIRY_SECONDS = 3_600
_MAX_NAME = 255


async def create(call: Call) -> Response:
    """Store a file of the purpose `batch`."""
    store, config = files_of(call), call.services.config
    async with _uploads:
        form = await _form(call, config.max_file_bytes)
        try:
            file, seconds = _file(form), expiry_seconds(call, _expires_after(form))
            if (file.size or 0) > config.max_file_bytes:
                raise too_large(config.max_file_bytes)
            upload = await store.upload(
                call.caller.tenant, _name(file), "batch", file, config.max_stored_bytes
            )
            return JSONResponse((await store.publish(upload, seconds)).body())
        except NoRoom as error:
            raise _no_room(error, config.max_stored_bytes) from None
        except UploadLost:
            raise too_slow(config.upload_timeout) from None
        finally:
            await form.close()


async def list_files(call: Call) -> Response:
    """List the tenant's files."""
    query = call.request.query_params
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise ApiError(400, "invalid_request", "order: must be asc or desc", param="order")
    limit = limit_of(call, default=_MAX_LISTED, most=_MAX_LISTED)
    part = PageQuery(limit, query.get("after"), order == "asc")
    return page_response(
        call, await files_of(call).page(call.caller.tenant, query.get("purpose"), part)
    )


async def retrieve(call: Call) -> Response:
    """Show a file."""
    return JSONResponse((await _stored(call)).body())


async def content(call: Call) -> Response:
    """Send the content of a file."""
    file = await _stored(call)
    headers = {
        "content-length": str(file.size_bytes),
        "content-disposition": f'attachment; filename="{file.id}.jsonl"',
        "x-content-type-options": "nosniff",
    }
    parts: AsyncIterator[bytes] = files_of(call).content(file)
    return StreamingResponse(parts, media_type="application/octet-stream", headers=headers)


async def delete(call: Call) -> Response:
    """Delete a file."""
    identity = call.request.path_params["file_id"]
    done = await files_of(call).delete(call.caller.tenant, identity)
    if done == "unknown":
        raise not_found("file", identity)
    if done == "read":
        message = "a batch reads the file: cancel the batch, or wait for its end"
        raise ApiError(409, "file_in_use", message, param="id", headers=NO_RETRY)
    return JSONResponse({"id": identity, "object": "file", "deleted": True})


def files_of(call: Call) -> FileStore:
    """Return the store of files."""
    return FileStore(call.services.redis, call.services.result_seconds)


def limit_of(call: Call, default: int, most: int) -> int:
    """Return the `limit` of a list. Raises ApiError, status 400."""
    text = call.request.query_params.get("limit", str(default))
    if not text.isdecimal() or not 1 <= int(text[:9]) <= most:
        raise ApiError(400, "invalid_request", f"limit: must be 1 to {most}", param="limit")
    return int(text)


def page_response(call: Call, page: Page | None) -> Response:
    """Return the answer of a list. Raises ApiError, status 404: `after` is not in the list."""
    if page is None:
        raise not_found("object", call.request.query_params["after"])
    return JSONResponse(page.body())


def expiry_seconds(call: Call, value: Any, name: str = "expires_after") -> int | None:
    """Return the seconds of an `expires_after`; None without one.

    Files are kept no longer than results, so a longer time is shortened.

    Args:
        value: An object, or None.
        name: Of the parameter.

    Raises:
        ApiError: Status 400: the value is none of OpenAI's.
    """
    if value is None:
        return None
    anchor, seconds = value.get("anchor"), value.get("seconds")
    is_time = type(seconds) is int and seconds >= MIN_EXPIRY_SECONDS
    if anchor != "created_at" or not is_time:
        raise ApiError(
            400,
            "invalid_request",
            f"{name}: anchor must be created_at, and seconds at least {MIN_EXPIRY_SECONDS}",
            param=name,
        )
    return min(int(seconds), call.services.result_seconds)


async def _stored(call: Call) -> StoredFile:
    identity = call.request.path_params["file_id"]
    file = await files_of(call).get(call.caller.tenant, identity)
    if file is None:
        raise not_found("file", identity)
    return file


async def _form(call: Call, max_file_bytes: int) -> FormData:
    """Read the form; a large file is on the disk then. Raises ApiError, status 400, 408 or 413."""
    request = call.limited(max_file_bytes, _FORM_BYTES)
    if not call.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(400, "invalid_request", "send the file as multipart/form-data")
    try:
        async with call.upload_time():
            return await request.form(
                max_files=1, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES
            )
    except HTTPException as error:  # the form is wrong
        raise ApiError(400, "invalid_request", f"the form is wrong: {error.detail}") from None


def _file(form: FormData) -> UploadFile:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise ApiError(400, "missing_required_parameter", "file: missing", param="file")
    if (purpose := form.get("purpose")) != "batch":
        given = f"{purpose[:50]!r} is not served" if isinstance(purpose, str) else "missing"
        message = f"purpose: {given}; the fleet stores files of the purpose 'batch' only"
        raise ApiError(400, "invalid_request", message, param="purpose", headers=NO_RETRY)
    return file


def _expires_after(form: FormData) -> dict[str, Any] | None:
    """The field as the SDKs write it: `expires_after[seconds]`."""
    anchor, seconds = (form.get(f"expires_after[{name}]") for name in ("anchor", "seconds"))
    if anchor is None and seconds is None:
        return None
    is_number = isinstance(seconds, str) and seconds.isdecimal() and len(seconds) < 12
    return {"anchor": anchor, "seconds": int(str(seconds)) if is_number else None}


def _name(file: UploadFile) -> str:
    """The name that the client gives, which is only shown: without what is not printable."""
    text = "".join(one for one in file.filename or "upload" if one.isprintable())
    return text.encode(errors="replace").decode()[:_MAX_NAME]


def _no_room(error: NoRoom, max_bytes: int) -> ApiError:
    limit = f"{max_bytes} bytes" if error.limit == "bytes" else f"{MAX_FILES} files"
    message = f"the stored files of this tenant would exceed {limit}: delete files, or wait"
    return ApiError(413, "storage_full", message, headers=NO_RETRY)
