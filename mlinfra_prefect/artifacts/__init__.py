"""The artifact store: where finished trainings are kept, verified, for longer than any lease."""

from mlinfra_prefect.artifacts.store import ArtifactStore, Lineage, hash_file, hash_files, verify_files

__all__ = ["ArtifactStore", "Lineage", "hash_file", "hash_files", "verify_files"]
