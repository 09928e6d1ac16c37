import pytest
from pydantic import ValidationError

from serve_app.config import AppConfig, BackupConfig, EncoderConfig, GeneratorConfig, StorageConfig


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


def test_each_generator_has_a_deployment_and_its_own_view_of_the_configuration() -> None:
    config = AppConfig(further_generators=(GeneratorConfig(model_id="org/other", engine={"max_model_len": 99}),))

    assert config.generator_deployments == {
        "smollm2-135m-instruct": "Generator",
        "org/other": "Generator:org-other",
    }
    assert config.of("org/other").generator.engine == {"max_model_len": 99}
    assert config.of("smollm2-135m-instruct").generator == config.generator


@pytest.mark.parametrize("ids", [("other", "other"), ("smollm2-135m-instruct",), ("org/other", "org-other")])
def test_two_generators_that_cannot_be_told_apart_are_refused(ids: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="two generators or adapters have the model_id"):
        AppConfig(further_generators=tuple(GeneratorConfig(model_id=each) for each in ids))


def test_adapters_are_models_of_their_generator() -> None:
    other = GeneratorConfig(model_id="other", adapters={"pirate": "folder"})
    config = AppConfig(further_generators=(other,))

    assert list(config.models) == ["smollm2-135m-instruct", "other", "pirate"]
    assert config.of("pirate").generator == other
    assert config.parents == {"pirate": "other"}
    with pytest.raises(ValidationError, match="'pirate'"):
        AppConfig(generator=GeneratorConfig(model_id="pirate"), further_generators=(other,))
    with pytest.raises(ValidationError, match="adapters need vLLM"):
        GeneratorConfig(adapters={"pirate": "folder"}, backend="transformers")
