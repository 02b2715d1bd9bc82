"""A ``model_list`` entry: the shape that the file has, and the value that the other rooms get.

Theory: see ``values``. Editing rule: a new key is a field with a type and a default, and a line in
``config.example.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

import attrs

from .checks import (
    FieldName,
    HeaderName,
    HeaderValue,
    Key,
    ModelId,
    Name,
    ProxyUrl,
    between,
    check_writable_json,
    zero_means,
)
from .secret import Secret
from .vendors import ECHO, VENDORS

DEFAULT_REQUEST_TIMEOUT = 120.0
NO_PROTOCOL = (
    "cannot be asked: {vendor} speaks its own protocol; api_base may name a gateway in front of it that speaks OpenAI's"
)
NO_KEY = (
    "cannot be asked: it has no key, and this gateway does not log in to {vendor} as PicoClaw does for its "
    "auth_method; give it an api_key"
)
NOTHING: Mapping[str, Any] = MappingProxyType({})


@attrs.frozen(kw_only=True)
class UpstreamOptions:
    """The part of a ``model_list`` entry that is the same in file and value.

    Attributes:
        proxy: http, https or socks5 address; may hold a password.
        fallbacks: aliases to ask, in order, when this one fails.
        rpm: requests a minute, 0 for no limit.
        max_tokens_field: what the upstream calls ``max_tokens``; None to choose by the model.
        request_timeout: seconds of one attempt.
        extra_body: merged last into the body of a request; JSON, the inner parts plain dicts and lists.
        custom_headers: legal names and values; they replace the gateway's own.
        user_agent: None for the gateway's own.
    """

    proxy: ProxyUrl | None = attrs.field(default=None, repr=False)
    fallbacks: tuple[Name, ...] = ()
    rpm: Annotated[int, between(0)] = 0
    max_tokens_field: FieldName | None = None
    request_timeout: Annotated[float, between(0), zero_means(DEFAULT_REQUEST_TIMEOUT)] = DEFAULT_REQUEST_TIMEOUT
    extra_body: Annotated[Mapping[str, Any], check_writable_json] = attrs.field(default=NOTHING, repr=False)
    custom_headers: Mapping[HeaderName, HeaderValue] = attrs.field(default=NOTHING, repr=False)
    user_agent: HeaderValue | None = None


@attrs.frozen
class ModelEntry(UpstreamOptions):
    """A ``model_list`` entry as the file has it. ``api_key`` is one more key in front of ``api_keys``."""

    model_name: Name
    model: ModelId
    provider: Name | None = None
    api_base: str | None = attrs.field(default=None, repr=False)
    api_key: Key | None = None
    api_keys: tuple[Key, ...] = ()


@attrs.frozen
class ModelConfig(UpstreamOptions):
    """One target: an alias, and who is asked for it under which id. Targets of one alias share its load.

    Attributes:
        model_name: the alias; any text without control characters, also beyond ASCII.
        model: the id as the upstream knows it.
        vendor: canonical name of the vendor, e.g. ``openai``.
        api_base: address in front of ``/chat/completions``, without a slash at its end. None for ``echo``, and where
            the vendor speaks only a protocol of its own or wants a key that is not there: such a target is not
            ``is_usable``.
        api_keys: may be empty, then no ``Authorization`` is sent.
    """

    model_name: str
    model: str
    vendor: str
    api_base: str | None
    api_keys: tuple[Secret, ...] = ()

    @property
    def is_usable(self) -> bool:
        return self.api_base is not None or self.vendor == ECHO

    @property
    def where(self) -> str:
        """Where it is asked, or why it cannot be, for people."""
        if not self.is_usable:
            return (NO_KEY if VENDORS[self.vendor].speaks_openai else NO_PROTOCOL).format(vendor=self.vendor)
        return self.api_base or "in process"
