"""Kept-alive HTTP/1.1 connections to upstreams, through TLS and proxies."""

from .addresses import Url, parse_proxy, parse_url
from .dialing import ConnectError, ExchangeError
from .exchange import ConnectionLost, Headers, ProtocolError, Response, ResponseTooLarge, TimedOut
from .pool import ConnectionPool, Statistics, Timeouts, open_pool

__all__ = [
    "ConnectError",
    "ConnectionLost",
    "ConnectionPool",
    "ExchangeError",
    "Headers",
    "ProtocolError",
    "Response",
    "ResponseTooLarge",
    "Statistics",
    "TimedOut",
    "Timeouts",
    "Url",
    "open_pool",
    "parse_proxy",
    "parse_url",
]
