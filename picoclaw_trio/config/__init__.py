"""The configuration: the file and the environment -> a frozen ``Config``, or every problem at once, with addresses."""

from .checks import reachable
from .judge import load_config
from .models import ModelConfig
from .secret import Secret
from .sources import (
    config_home,
    config_path,
    create_config,
    create_first_config,
    expand,
    first_config,
    make_folders,
    write_new,
)
from .stamps import Stamp, stamps_of
from .tools import Door, ExecConfig, McpConfig, McpServerConfig, ToolsConfig, WebFetchConfig
from .values import (
    AgentConfig,
    AgentDefaults,
    AgentsConfig,
    Config,
    GatewayConfig,
    OpenAIApiConfig,
)

__all__ = [
    "AgentConfig",
    "AgentDefaults",
    "AgentsConfig",
    "Config",
    "Door",
    "ExecConfig",
    "GatewayConfig",
    "McpConfig",
    "McpServerConfig",
    "ModelConfig",
    "OpenAIApiConfig",
    "Secret",
    "Stamp",
    "ToolsConfig",
    "WebFetchConfig",
    "config_home",
    "config_path",
    "create_config",
    "create_first_config",
    "expand",
    "first_config",
    "load_config",
    "make_folders",
    "reachable",
    "stamps_of",
    "write_new",
]
