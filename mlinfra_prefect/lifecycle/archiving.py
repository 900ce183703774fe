"""What stays of a released record beside the ledger: its record with the receipt, in its own directory.

The Terraform state, its backup, the bundle and what every command printed stay where they were, in
``work/<id>/<attempt>/terraform``. With the record beside them a directory explains itself, also to somebody who has
lost the ledger, and the reaper knows without asking that it is no leftover.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.agent.wire import write_json
from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.model.home import Home

NAME = "record.json"


def archive(home: Home, record: KeptRecord) -> None:
    """Write a released record into its directory. Idempotent; a full disk never undoes a release."""
    place = home.record_dir(record.id)
    with contextlib.suppress(OSError):
        private_folder(place)
        write_json(place / NAME, json.loads(record.model_dump_json()))


def is_archived(place: Path) -> bool:
    """Whether the directory of a record holds its archived record: it was released."""
    return (place / NAME).exists()
