"""Pauses of accounts on the realtime lane: a refused account gets no calls for a while."""

from __future__ import annotations

from collections import Counter, defaultdict

from config.fleet import FleetConfig
from tasks.failure_reasons import Reason
from tasks.provider_errors import Fault
from workers.observability import metrics
from workers.realtime.cooldowns import Cooldowns
from workers.realtime.errors import retry_after

#: Each refusal in a row doubles the pause, up to this many times the first one.
MAX_GROWTH = 16
#: The status that a pause is stored with, by its reason: other processes read it.
STATUSES = {Reason.CREDENTIALS: 401, Reason.BILLING: 402, Reason.PERMISSION: 403}


class Accounts:
    """The accounts of one Router.

    A refused key, a lack of money or a used-up quota pauses all deployments of the account. A
    missing permission may concern a model, so it pauses the deployment. The pause is a cooldown:
    all processes that share the Router's state keep it. The first refusal in a row raises the
    alarm; an answer of the account ends the row.
    """

    def __init__(self, config: FleetConfig, cooldowns: Cooldowns) -> None:
        self._cooldowns = cooldowns
        self._first_pause = config.routing.account_pause
        self._account_of = {item.id: item.provider for item in config.deployments}
        self._deployments_of: defaultdict[str, list[str]] = defaultdict(list)
        for deployment_id, account in self._account_of.items():
            self._deployments_of[account].append(deployment_id)
        #: Refusals in a row, by what is paused: an account, or a deployment of it.
        self._refusals: Counter[str] = Counter()

    def refuse(self, deployment_id: str, fault: Fault, error: Exception) -> None:
        """Pause what a refused call shows to be unusable."""
        account = self._account_of[deployment_id]
        only_it = fault.reason is Reason.PERMISSION
        paused = [deployment_id] if only_it else self._deployments_of[account]
        name = deployment_id if only_it else account
        growth = min(2 ** self._refusals[name], MAX_GROWTH)
        seconds = retry_after(error) or self._first_pause * growth
        if seconds:
            self._cooldowns.cool_down(paused, error, STATUSES.get(fault.reason), seconds)
        if not self._refusals[name]:
            metrics.alarm_account(account, fault)
        self._refusals[name] += 1

    def answer(self, deployment_id: str) -> None:
        """End the row of refusals of a deployment and its account."""
        if self._refusals:
            self._refusals.pop(deployment_id, None)
            self._refusals.pop(self._account_of.get(deployment_id, ""), None)
