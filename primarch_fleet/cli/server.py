"""Commands for operators, which need the fleet's own packages: a checkout or an image of the fleet.

Nothing of these packages is imported before such a command runs.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import primarch_fleet
from primarch_fleet.cli.address import find_fleet
from primarch_fleet.errors import ConfigError

#: What each command does; its options are in the module.
COMMANDS = {
    "status": "show the fleet at a glance, and what is wrong with it",
    "queues": "show what waits in each queue, and its workers' capacity",
    "workers": "show the workers that answer",
    "scale": "change how many workers of a lane `make up` runs, while it runs",
    "reload": "give the fleet that `make up` runs the present fleet.yaml",
    "stop": "stop the fleet that `make up` runs, as Ctrl-C does",
    "batches": "show live batches and waiting requests",
    "costs": "show costs and savings of all lanes",
    "deployments": "show the health of the realtime lane's deployments",
    "cancel": "cancel requests of any lane, by id or filter, or one batch",
    "dead": "list, show, replay or drop dead letters",
    "retry": "run requests again that became dead letters, by id or filter",
    "pause": "pause queues or, without a name, batch creation until `resume`",
    "drain": "pause batch creation, and wait until the live batches have ended",
    "resume": "resume queues or, without a name, batch creation and accounts that were refused",
    "webhook": "receive providers' webhooks",
    "serve": "serve an OpenAI-compatible HTTP API",
    "key": "make a key of that API",
    "check-config": "check fleet.yaml before anything starts",
}
#: Commands that need no address of a Redis.
_WITHOUT_REDIS = ("check-config", "key", "reload", "scale", "stop")
#: Where the commands are.
_MODULES = dict.fromkeys(COMMANDS, "scheduler.cli.main") | {"serve": "api.cli", "key": "api.cli"}


def run(arguments: list[str]) -> None:
    """Run one of COMMANDS and exit with its status.

    Raises:
        ConfigError: The fleet's packages are not installed, or no fleet is found.
    """
    folder, module = Path(primarch_fleet.__file__).parent.parent, _MODULES[arguments[0]]
    if not folder.joinpath(*module.split(".")).with_suffix(".py").exists():
        raise ConfigError(
            "this command needs the fleet's own packages, which no wheel has: run it in a checkout "
            "(`.venv/bin/fleet` after `make up`) or in an image of the fleet"
        )
    asks_for_help = {"-h", "--help"} & set(arguments)
    if arguments[0] not in _WITHOUT_REDIS and not asks_for_help:
        os.environ["FLEET_REDIS_URL"] = find_fleet()
    importlib.import_module(module).main(arguments, "fleet")
