import pytest
from pydantic import ValidationError

from serve_app.config import AppConfig, BackupConfig, EncoderConfig, StorageConfig


def test_backups_are_kept_beside_the_rest_unless_it_says_otherwise() -> None:
    storage = StorageConfig(folder="/data")
    assert AppConfig(storage=storage).backup_url == "/data/backups"
    assert AppConfig(storage=storage, backup=BackupConfig(url="s3://b/c")).backup_url == "s3://b/c"


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/folder", "ftp://user:word@host/folder"])
def test_a_secret_in_the_url_of_the_backups_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="AWS_SECRET_ACCESS_KEY"):
        BackupConfig(url=url)


def test_two_encoders_of_one_name_are_refused() -> None:
    other = EncoderConfig(model_id="other")
    assert [each.model_id for each in AppConfig(further_encoders=(other,)).encoders] == ["all-minilm-l6-v2", "other"]
    with pytest.raises(ValidationError, match="'other'"):
        AppConfig(further_encoders=(other, other))
    with pytest.raises(ValidationError, match="'all-minilm-l6-v2'"):
        AppConfig(further_encoders=(EncoderConfig(),))
