"""What a call of an MCP server's tool gave, as text for the model.

Theory: text goes through as it is; of an image, a sound or a file the model is told the type and the size, since a
tool's message holds text.
Editing rule: nothing is cut here: whoever runs tools has one bound for all of them.

Source: https://modelcontextprotocol.io/specification/2025-11-25/server/tools section "Tool Result"
"""

from __future__ import annotations

import json

from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

from .values import ToolError


def result_text(result: CallToolResult) -> str:
    """The result in words.

    Raises:
        ToolError: the tool says that it failed; the text is what it says.
    """
    parts = [block_text(block) for block in result.content]
    if result.structured_content is not None and not any(is_text(block) for block in result.content):
        parts.append(json.dumps(result.structured_content, ensure_ascii=False, separators=(",", ":")))
    text = "\n".join(filter(None, parts))
    if result.is_error:
        raise ToolError(text or "The tool failed and did not say why.")
    return text


def is_text(block: ContentBlock) -> bool:
    return isinstance(block, TextContent) or (
        isinstance(block, EmbeddedResource) and isinstance(block.resource, TextResourceContents)
    )


def block_text(block: ContentBlock) -> str:
    match block:
        case TextContent(text=text) | EmbeddedResource(resource=TextResourceContents(text=text)):
            return text
        case ImageContent(data=data, mime_type=kind):
            return _told("image", kind, data)
        case AudioContent(data=data, mime_type=kind):
            return _told("sound", kind, data)
        case EmbeddedResource(resource=BlobResourceContents(blob=data, mime_type=kind, uri=uri)):
            return _told(f"file {uri}", kind, data)
        case ResourceLink(uri=uri, name=name, description=description):
            return f"[link to {uri}: {description or name}]"
    return "[content of an unknown kind]"


def _told(what: str, kind: str | None, base64: str) -> str:
    size = len(base64) * 3 // 4 - base64[-2:].count("=")
    return f"[{what}, {kind or 'of an unknown type'}, {size} bytes: not shown]"
