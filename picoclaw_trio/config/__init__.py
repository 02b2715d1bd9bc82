"""The configuration: the file and the environment -> a frozen ``Config``, or every problem at once, with addresses."""

from .judge import load_config
from .models import ModelConfig
from .secret import Secret
from .security_file import security_path
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
    "security_path",
    "write_new",
]
