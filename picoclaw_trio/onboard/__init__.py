"""The first steps: a configuration and a workspace, by asking. Nothing is written before everything was answered."""

from .report import curl_line
from .steps import set_up

__all__ = ["curl_line", "set_up"]
