# SPDX-License-Identifier: Apache-2.0
"""What a request brings."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

PICTURES = ("", "png", "drawn")


@dataclass(frozen=True)
class Limits:
    """What is accepted.

    Attributes:
        size (int): Bytes of a request.
        products (tuple[str, ...]): Products that can be given.
    """

    size: int
    products: tuple[str, ...]


@dataclass(frozen=True)
class Upload:
    """An image as it was sent.

    Attributes:
        data (bytes): The file.
        product (str): What it shows; empty if that is not known.
        pictures (str): Which pictures are wanted: none, ``"png"`` (map and mask) or ``"drawn"``.
    """

    data: bytes
    product: str
    pictures: str


async def read_upload(request: Request) -> Upload:
    """Read a request: a form with one file, or an image alone; other fields are of the form or of the address.

    Args:
        request (Request): To an app that has :class:`Limits` as ``state.limits``.

    Raises:
        HTTPException: 400, 413, 415 or 422 if it is something else.
    """
    limits: Limits = request.app.state.limits
    fields = dict(request.query_params)
    kind = _kind(request.headers.get("content-type"))
    if kind != "multipart/form-data":
        _check_kind(kind)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.size:
        raise _too_large(limits)
    if kind == "multipart/form-data":
        try:
            form = await MultiPartParser(request.headers, _chunks(request, limits), max_files=1, max_fields=8).parse()
        except MultiPartException as error:
            raise HTTPException(400, f"The form cannot be read: {error.message.rstrip('.')}.") from error
        except ValueError as error:  # of the charset that it names
            raise HTTPException(400, "The form cannot be read: its text is not what its charset says.") from error
        fields |= {name: value for name, value in form.items() if isinstance(value, str)}
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        if not files:
            raise HTTPException(400, "The form has no file: send the image as the field 'image'.")
        _check_kind(_kind(files[0].content_type))
        data = await files[0].read()
        await form.close()
    else:
        data = b"".join([chunk async for chunk in _chunks(request, limits)])
    if not data:
        raise HTTPException(400, "The image is empty.")
    product, pictures = fields.get("product", ""), fields.get("map", "")
    if product and product not in limits.products:
        known = ", ".join(limits.products) or "none"
        raise HTTPException(422, f"The model has no threshold of the product {product!r}, only of: {known}.")
    if pictures not in PICTURES:
        raise HTTPException(422, f"map must be png or drawn, got {pictures!r}.")
    return Upload(data, product, pictures)


async def _chunks(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """The body, until it is too large."""
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limits.size:
                raise _too_large(limits)
            yield chunk
    except ClientDisconnect as error:  # nobody reads it, but it is no fault of the server
        raise HTTPException(400, "The request was broken off.") from error


def _too_large(limits: Limits) -> HTTPException:
    return HTTPException(413, f"The request is larger than {limits.size / 1e6:g} MB.")


def _kind(content_type: str | None) -> str:
    return (content_type or "").partition(";")[0].strip().lower()


def _check_kind(kind: str) -> None:
    if kind and kind != "application/octet-stream" and not kind.startswith("image/"):
        raise HTTPException(415, f"An image is needed, as the file of a form or as it is, not {kind}.")
