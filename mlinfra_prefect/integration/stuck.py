"""What is stuck, where people look: one artifact in the Prefect UI, red while anything is, the same until it is not.

The reaper runs every minute. An artifact per pass would bury what it says, so the one that is red is written over in
place, and turns green once, when nothing is stuck any more. A pass that finds nothing, after nothing, writes nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import ArtifactCollectionFilter, ArtifactCollectionFilterKey

from mlinfra_prefect.integration.artifacts import WAIT_SECONDS, artifact_key, created, harmless
from mlinfra_prefect.keeper.passes import Pass
from mlinfra_prefect.lifecycle.markdown import RED, escaped, stuck_markdown

KEY = artifact_key("stuck", "")


def show_stuck(found: Pass) -> UUID | None:
    """Show what is stuck after a pass; returns the artifact's id, or None where nothing was written."""
    listed = [(each.id, each.reason) for each in found.stuck]

    def write() -> UUID | None:
        with get_client(httpx_settings={"timeout": WAIT_SECONDS}, sync_client=True) as client:
            ours = ArtifactCollectionFilter(key=ArtifactCollectionFilterKey(any_=[KEY]))
            latest = client.read_latest_artifacts(artifact_filter=ours)
            red = bool(latest) and RED in str(latest[0].data)
            if not listed and not red:
                return None
            page = stuck_markdown(listed, now=datetime.now(UTC))
            about = f"{len(listed)} stuck" if listed else "nothing is stuck any more"
            if not red:
                return created(KEY, about, page)
            client.update_artifact(latest[0].latest_id, ArtifactUpdate(data=page, description=escaped(about)))
            return latest[0].latest_id

    return harmless(write)
