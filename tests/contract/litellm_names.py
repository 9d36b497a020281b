"""The names that LiteLLM gives its parameters and settings, taken from its installed source.

    python -m tests.contract.litellm_names          writes config/litellm_names.json

`config` refuses names that are not in that file: it must not import LiteLLM, which takes seconds.
After an upgrade of LiteLLM, write the file again and sort the new names into the tables of
config/litellm_params.py and config/litellm_proxy.py, as their tests say.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import workers.realtime  # noqa: F401 - LiteLLM's settings, before its import
from config.litellm_params import NAMES_FILE

#: The variables of LiteLLM's source that hold the parameters of a call.
CALL_PARAMS = (
    "litellm_params|litellm_params_dict|optional_params|non_default_params|inference_params|"
    "passed_params|kwargs|params"
)
#: A name that is read from one of them: `optional_params.pop("aws_region_name", None)`.
READ = r"\b(?:{})(?:\.(?:get|pop)\(\s*|\[)[\"']([A-Za-z]\w*)[\"']"
#: Settings of LiteLLM's documentation, or of its older versions, that its source does not read.
DOCUMENTED = {
    "general_settings": (
        *("disable_adding_master_key_hash_to_db", "use_client_credentials_pass_through_routes"),
        *("completion_model", "embedding_model", "image_generation_model", "moderation_model"),
    ),
    "litellm_settings": ("service_callbacks", "telemetry", "langfuse_host", "redis_url"),
    "router_settings": ("enable_pre_call_check",),
    "sections": ("vector_stores",),
}
#: Where parameters of calls are read.
CALL_SOURCES = ("main.py", "utils.py", "litellm_core_utils", "llms")


def names() -> dict[str, list[str]]:
    """All names, by what they name."""
    return {
        kind: sorted(
            {
                name
                for name in (*found, *DOCUMENTED.get(kind, ()))
                if name[0].islower() or kind.endswith("_policy")
            }
        )
        for kind, found in _found().items()
    }


def _found() -> dict[str, Iterable[str]]:
    import litellm  # noqa: PLC0415 - seconds
    from litellm.proxy._types import ConfigGeneralSettings  # noqa: PLC0415
    from litellm.router import Router  # noqa: PLC0415
    from litellm.types.router import (  # noqa: PLC0415
        AllowedFailsPolicy,
        CredentialLiteLLMParams,
        OptionalPreCallChecks,
        RetryPolicy,
    )
    from litellm.types.utils import StandardCallbackDynamicParams  # noqa: PLC0415

    package = Path(litellm.__path__[0])
    proxy = package / "proxy"
    server = (proxy / "proxy_server.py").read_text()
    router = [name for name in _parameters(Router) if name != "model_list"]
    return {
        "providers": _providers(litellm),
        "litellm_params": [
            *_typed_params(),
            *_provider_params(package),
            *_read(package, CALL_PARAMS, CALL_SOURCES),
        ],
        "account_params": CredentialLiteLLMParams.model_fields,
        "retry_policy": RetryPolicy.model_fields,
        "allowed_fails_policy": AllowedFailsPolicy.model_fields,
        "optional_pre_call_checks": _literals(OptionalPreCallChecks),
        "router_settings": router,
        "litellm_settings": [
            *_settings(litellm),
            # "Most values can also be set via litellm_settings", says LiteLLM of the Router's.
            *router,
            *StandardCallbackDynamicParams.__annotations__,
            *re.findall(r"key == \"(\w+)\"", server),
            *_read(package, "litellm_settings", ["proxy", "integrations"]),
        ],
        "general_settings": [
            *ConfigGeneralSettings.model_fields,
            *_read(proxy, "general_settings", ["."]),
        ],
        "sections": ["include", *re.findall(READ.format("config|new_config"), server)],
    }


def _literals(annotation: Any) -> Iterator[str]:
    """The texts in the `Literal` of a type, at any depth."""
    for part in get_args(annotation):
        if isinstance(part, str):
            yield part
        else:
            yield from _literals(part)


def _providers(litellm: Any) -> list[str]:
    from litellm.llms.openai_like.json_loader import JSONProviderRegistry  # noqa: PLC0415

    return [
        *(str(getattr(one, "value", one)) for one in litellm.provider_list),
        *JSONProviderRegistry.list_providers(),
    ]


def _typed_params() -> Iterator[str]:
    """The parameters that LiteLLM's own types declare, and those of the OpenAI API."""
    from litellm.constants import DEFAULT_CHAT_COMPLETION_PARAM_VALUES  # noqa: PLC0415
    from litellm.types.router import LiteLLM_Params, LiteLLMParamsTypedDict  # noqa: PLC0415
    from litellm.types.utils import all_litellm_params  # noqa: PLC0415
    from openai.types import embedding_create_params  # noqa: PLC0415
    from openai.types.chat import completion_create_params  # noqa: PLC0415

    yield from LiteLLM_Params.model_fields
    yield from LiteLLMParamsTypedDict.__annotations__
    yield from all_litellm_params
    yield from DEFAULT_CHAT_COMPLETION_PARAM_VALUES
    yield from completion_create_params.CompletionCreateParamsBase.__annotations__
    yield from embedding_create_params.EmbeddingCreateParams.__annotations__


def _provider_params(package: Path) -> Iterator[str]:
    """The parameters of single providers: what LiteLLM's `...Config` classes are made with."""
    for file in (package / "llms").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
                yield from _arguments(node)


def _arguments(config: ast.ClassDef) -> Iterator[str]:
    for node in config.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            yield from (argument.arg for argument in (*node.args.args, *node.args.kwonlyargs))


def _parameters(kind: type) -> Iterator[str]:
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            yield name


def _settings(litellm: Any) -> Iterator[str]:
    """The attributes of the module that hold a value: the proxy sets them."""
    for name, value in vars(litellm).items():
        if name.islower() and not (callable(value) or isinstance(value, ModuleType)):
            yield name


def _read(folder: Path, variables: str, sources: Iterable[str]) -> Iterator[str]:
    """The names that source files read from variables."""
    for source in sources:
        path = folder / source
        for file in [path] if path.is_file() else path.rglob("*.py"):
            yield from re.findall(READ.format(variables), file.read_text())


def main() -> None:
    NAMES_FILE.write_text(json.dumps(names(), indent=0) + "\n")


if __name__ == "__main__":
    main()
