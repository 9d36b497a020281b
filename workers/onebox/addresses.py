"""Where the processes of the one-machine fleet are, in files of its data folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from primarch_fleet.cli.address import ADDRESSES
from workers.onebox.private_file import write_private

#: The targets for a Prometheus on this machine:
#: https://prometheus.io/docs/prometheus/latest/configuration/configuration/#file_sd_config
TARGETS = "prometheus-targets.json"
_METRICS = "metrics of "


def write_addresses(data_dir: Path, addresses: Mapping[str, str]) -> None:
    """Write all addresses by name, and those of metrics as targets for Prometheus.

    Both files are replaced at once, so that a reader finds complete ones.
    """
    targets = [
        {
            "targets": [urlsplit(address).netloc],
            "labels": {"process": name.removeprefix(_METRICS)},
        }
        for name, address in addresses.items()
        if name.startswith(_METRICS)
    ]
    write_private(data_dir / TARGETS, json.dumps(targets, indent=2) + "\n")
    write_private(data_dir / ADDRESSES, yaml.safe_dump(dict(addresses), sort_keys=False))
