from serve_app.knowledge.distinct import first_of_each


def test_case_and_blank_space_make_no_difference() -> None:
    texts = ["Page  1\nof 9", "other", "page 1 of 9", "\fPAGE\t1 OF 9 ", "STRASSE", "Straße", "page 1 of 90"]

    assert first_of_each(texts, str) == ["Page  1\nof 9", "other", "STRASSE", "page 1 of 90"]
