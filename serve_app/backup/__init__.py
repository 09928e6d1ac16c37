"""Backup and restore: `repository.py` is what lies there, `snapshot.py` makes one, `restore.py` brings it back,
`jobs.py` does both behind the API."""
