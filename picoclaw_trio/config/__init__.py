"""The configuration: the file and the environment -> a frozen ``Config``, or every problem at once, with addresses."""

from .judge import load_config
from .secret import Secret
from .sources import config_home, config_path, create_first_config
from .values import (
    AgentConfig,
    AgentDefaults,
    AgentsConfig,
    Config,
    GatewayConfig,
    ModelConfig,
    OpenAIApiConfig,
)

__all__ = [
    "AgentConfig",
    "AgentDefaults",
    "AgentsConfig",
    "Config",
    "GatewayConfig",
    "ModelConfig",
    "OpenAIApiConfig",
    "Secret",
    "config_home",
    "config_path",
    "create_first_config",
    "load_config",
]
