"""An extension of supervisord: the group of workers follows the configuration while it runs.

supervisord itself can only replace a group as a whole, which would restart every worker. It loads
this module as an RPC interface: http://supervisord.org/xmlrpc.html#custom-xml-rpc-interfaces.
"""

from __future__ import annotations

from typing import Any

from supervisor.states import STOPPED_STATES

from workers.onebox.signal_wakeup import wake_on_signals

#: The group of all workers: they stop at the same time.
WORKERS_GROUP = "workers"
#: The namespace of the interface.
NAMESPACE = "fleet"


class WorkerGroup:
    """The group of workers in this supervisord."""

    def __init__(self, supervisord: Any) -> None:
        self._supervisord = supervisord

    def update(self) -> bool:
        """Start the workers that the configuration names since it was read again.

        Stopped workers that it no longer names are forgotten; running ones stay as they are.
        """
        [wanted] = (
            config
            for config in self._supervisord.options.process_group_configs
            if config.name == WORKERS_GROUP
        )
        group = self._supervisord.process_groups[WORKERS_GROUP]
        configs = {config.name: config for config in wanted.process_configs}
        for name in group.processes.keys() - configs.keys():
            if group.processes[name].get_state() in STOPPED_STATES:
                del group.processes[name]
        for name in configs.keys() - group.processes.keys():
            group.processes[name] = configs[name].make_process(group)
        return True


def make_interface(supervisord: Any, **_: str) -> WorkerGroup:
    """Return the interface; supervisord calls this once, before it starts the processes."""
    wake_on_signals(supervisord.options.poller)
    return WorkerGroup(supervisord)
