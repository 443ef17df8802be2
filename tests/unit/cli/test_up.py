"""What `headroom up` keeps between two starts."""

from pathlib import Path

from app.cli.up import _local_secret_key


def test_secret_key_is_created_once_and_again_if_its_file_is_empty(tmp_path: Path) -> None:
    """A full disk, or a power failure, leaves an empty file."""
    key = _local_secret_key(tmp_path)
    file = tmp_path / "secret-key"

    assert len(key) == 64
    assert _local_secret_key(tmp_path) == key
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("")
    assert len(_local_secret_key(tmp_path)) == 64
    assert _local_secret_key(tmp_path) == file.read_text()
