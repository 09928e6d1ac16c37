import json
import subprocess
import sys
import zipfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest
from pypdf import PdfReader, PdfWriter

from serve_app.errors import InvalidRequest, UnsupportedFile
from serve_app.knowledge.parse import (
    _IMAGE_BEGINNINGS,
    DOCX,
    HTML,
    JSONL,
    MARKDOWN,
    PDF,
    PLAIN,
    detect_media_type,
    extract_text,
)

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256))
EXE = b"MZ\x90\x00\x03\x00\x00\x00" + bytes(64)


def pdf(*pages: str) -> bytes:
    """A PDF with one line of text on each page."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, text in enumerate(pages):
        content = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET" if text else ""
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >>"
            f" /Contents {5 + 2 * number} 0 R >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    data = b"%PDF-1.4\n"
    offsets = []
    for number, each in enumerate(objects, start=1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{each}\nendobj\n".encode()
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    data += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}".encode()
    start = data.rindex(b"xref")
    return data + f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n".encode()


def encrypted_pdf(text: str, password: str) -> bytes:
    writer = PdfWriter(clone_from=PdfReader(BytesIO(pdf(text))))
    writer.encrypt(user_password=password, owner_password="owner", algorithm="AES-256")
    out = BytesIO()
    writer.write(out)
    return out.getvalue()


def docx(body: str, **more_parts: str | bytes) -> bytes:
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    package = "http://schemas.openxmlformats.org/package/2006"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    main = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    parts: dict[str, str | bytes] = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/word/document.xml" ContentType="{main}"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships">'
        f'<Relationship Id="rId1" Type="{office}" Target="word/document.xml"/></Relationships>',
        "word/document.xml": f'<w:document xmlns:w="{word}"><w:body>{body}</w:body></w:document>',
        **more_parts,
    }
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return out.getvalue()


def paragraph(text: str, style: str = "") -> str:
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{properties}<w:r><w:t>{text}</w:t></w:r></w:p>"


def archive(name: str, content: str) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(name, content)
    return out.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "upload"


def detect(path: Path, filename: str, content: bytes) -> str:
    path.write_bytes(content)
    return detect_media_type(path, filename)


def extract(path: Path, media_type: str, content: bytes | str, max_characters: int = 100_000) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return extract_text(path, media_type, max_characters)


# --- detection ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filename", "content", "media_type"),
    [
        ("a.txt", b"text", PLAIN),
        ("A.TXT", "caf\u00e9".encode("latin-1"), PLAIN),
        ("README", b"text", PLAIN),
        ("a.log", b"\x1b[31mred\x1b[0m", PLAIN),
        ("a.csv", b"a,b\n1,2\n", PLAIN),
        ("a.txt", "text".encode("utf-16"), PLAIN),
        ("a.md", b"# Title", MARKDOWN),
        ("a.markdown", b"# Title", MARKDOWN),
        ("a.html", b"<p>text", HTML),
        ("a.htm", b"<p>text", HTML),
        ("a.pdf", pdf("text"), PDF),
        ("a.pdf", b"\n\n" + pdf("text"), PDF),
        ("a.docx", docx(paragraph("text")), DOCX),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "b"}', JSONL),
        ("a.jsonl", b'\xef\xbb\xbf{"text": "a"}', JSONL),
        ("a.jsonl", b'{"text": "' + b"a" * 100_000 + b'"}\n', JSONL),
        ("../a.b.txt", b"text", PLAIN),
    ],
)
def test_media_type_is_found(path: Path, filename: str, content: bytes, media_type: str) -> None:
    assert detect(path, filename, content) == media_type


@pytest.mark.parametrize(
    ("filename", "content"),
    [
        ("a.png", PNG),
        ("a.exe", EXE),
        ("a.xyz", b"text"),
        ("a.txt", PNG),
        ("a.txt", EXE),
        ("a.txt", b"text with \x00 in it"),
        ("a.txt", b"a" * 200_000 + b"\x00"),
        ("a.txt", b"\x01\x02\x03\x04" * 10),
        ("a.txt", pdf("text")),
        ("a.md", archive("a", "b")),
        ("noextension", PNG),
        ("a.html", PNG),
        ("a.pdf", b"<html>about %PDF-1.7</html>"),
        ("a.pdf", b"plain text"),
        ("a.pdf", archive("a", "b")),
        ("a.pdf", EXE),
        ("a.docx", archive("a.txt", "b")),
        ("a.docx", b"PK\x03\x04 no zip"),
        ("a.docx", b"plain text"),
        ("a.jsonl", b"no json\n"),
        ("a.jsonl", b'{"text": "a"}\nno json\n'),
        ("a.jsonl", b"12\n13\n"),
        ("a.jsonl", b"[" * 100_000),
        ("a.jsonl", PNG),
    ],
)
def test_what_is_not_read_here_is_refused(path: Path, filename: str, content: bytes) -> None:
    with pytest.raises(UnsupportedFile) as refusal:
        detect(path, filename, content)

    assert (refusal.value.status, refusal.value.param) == (415, "file")


def test_empty_file_is_refused(path: Path) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        detect(path, "a.txt", b"")

    assert (refusal.value.status, refusal.value.code) == (400, "empty_file")


def test_detection_of_a_huge_file_reads_little(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"text " * 20_000)
        file.seek(2**40)  # sparse: reading it all would take minutes
        file.write(b"text " * 20_000)

    assert detect_media_type(path, "a.txt") == PLAIN


def test_gateway_imports_no_parser() -> None:
    program = """
import sys, serve_app.knowledge.parse
print(sorted({"pypdf", "bs4", "mammoth", "charset_normalizer", "numpy", "lancedb", "torch"} & set(sys.modules)))
"""
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert child.stdout == "[]\n"


# --- extraction ---------------------------------------------------------------------------------


def test_plain_text_keeps_its_words_and_unix_line_ends(path: Path) -> None:
    assert extract(path, PLAIN, b"\xef\xbb\xbfone\r\ntwo\rthree \xe2\x82\xac") == "one\ntwo\nthree €"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Der Bär läuft über die Straße, und die Häuser grüßen schön. " * 5, "cp1252"),
        ("Москва является столицей России и крупнейшим городом. " * 5, "cp1251"),
        ("日本語の文章です。東京は首都であり、人口は多い。" * 5, "shift_jis"),
        ("Wide text with an €.", "utf-16"),
    ],
)
def test_other_encodings_are_recognised(path: Path, text: str, encoding: str) -> None:
    assert extract(path, PLAIN, text.encode(encoding)) == text


def test_encoding_is_recognised_where_the_text_leaves_ascii(path: Path) -> None:
    late = "x " * 100_000 + "Der Bär läuft über die Straße, und die Häuser grüßen schön. " * 5

    assert extract(path, PLAIN, late.encode("cp1252"), 10**6) == late


@pytest.mark.parametrize("character", ["a", "é", "日", "🎉"])
def test_text_is_cut_at_the_limit(path: Path, character: str) -> None:
    assert extract(path, PLAIN, character * 5000, 1001) == character * 1001


def test_html_keeps_headings_and_words_only(path: Path) -> None:
    page = """<html><head><title>Ferrets</title><style>p {color: red}</style></head><body>
    <nav><a href="/">Home</a></nav><script>alert("x")</script>
    <h2>Sleep &amp; food</h2><p>They <b>sleep</b> a_lot, <a href="https://example.org">they say</a>.</p>
    <img src="data:image/png;base64,AAAA" alt="A ferret"><ul><li>meat</li><li>eggs</li></ul></body></html>"""

    text = extract(path, HTML, page)

    assert text.startswith("# Ferrets\n\n## Sleep & food\n\nThey **sleep** a_lot, they say.")
    assert "A ferret" in text
    assert "* meat\n* eggs" in text
    for unwanted in ("Home", "alert", "color", "base64", "example.org"):
        assert unwanted not in text


def test_title_of_a_page_is_not_said_twice(path: Path) -> None:
    assert extract(path, HTML, "<title>T</title><h1>Ferrets</h1><p>They sleep.") == "# Ferrets\n\nThey sleep."


def test_html_says_its_encoding(path: Path) -> None:
    assert extract(path, HTML, '<meta charset="koi8-r"><p>Москва'.encode("koi8-r")) == "Москва"
    assert extract(path, HTML, '<meta charset="nonsense"><p>Grüße aus der Straße der Häuser'.encode("cp1252"))


def test_deeply_nested_html_loses_its_structure_but_no_words(path: Path) -> None:
    assert "word" in extract(path, HTML, "<div>" * 5000 + "word" + "</div>" * 5000)


def test_pdf_is_read_page_by_page(path: Path) -> None:
    assert extract(path, PDF, pdf("First page.", "", "Third page.")) == "First page.\f\n\n\f\n\nThird page."
    assert extract(path, PDF, pdf(*["Some words here."] * 9), 21) == "Some words here.\f\n\nSo"


def test_pdf_with_an_empty_password_is_read(path: Path) -> None:
    assert extract(path, PDF, encrypted_pdf("Open.", "")) == "Open."


def test_docx_keeps_headings_and_tables(path: Path) -> None:
    cells = "".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in ("Animal", "Hours"))
    body = (
        paragraph("Ferrets", "Heading1") + paragraph("They sleep &amp; eat.") + f"<w:tbl><w:tr>{cells}</w:tr></w:tbl>"
    )

    text = extract(path, DOCX, docx(body))

    assert text.startswith("# Ferrets\n\nThey sleep & eat.\n\n")
    assert "| Animal | Hours |" in text


def test_jsonl_is_a_paragraph_per_record(path: Path) -> None:
    records = [
        {"title": "Ferrets", "text": "They sleep.", "author": "left out"},
        {"id": 7, "name": "Otter", "facts": ["They swim.", {"more": "They eat fish."}]},
        {"messages": [{"role": "user", "content": "What is a stoat?"}]},
        {"count": 3},
    ]

    text = extract(path, JSONL, "\n".join(json.dumps(record) for record in records) + "\n\n")

    assert text == ("# Ferrets\n\nThey sleep.\n\nOtter\n\nThey swim.\n\nThey eat fish.\n\nuser\n\nWhat is a stoat?")


def test_what_no_database_can_hold_is_left_out(path: Path) -> None:
    text = extract(path, JSONL, '{"text": "a\\u0000b \\ud83d\\ude00 \\ud800c"}')

    assert text == "ab 😀 \ufffdc"
    text.encode()


@pytest.mark.parametrize(
    ("media_type", "content", "reason"),
    [
        (PLAIN, b" \n\t", "no text"),
        (HTML, b"<script>x</script>", "no text"),
        (PDF, pdf("", ""), "may be a scan"),
        (PDF, encrypted_pdf("Secret.", "password"), "encrypted"),
        (PDF, b"%PDF-1.7\n", "damaged"),
        (PDF, pdf("text")[:200], "damaged|no text"),
        (PDF, pdf("text").replace(b"/Pages 2 0 R", b"/Pages 9 0 R"), "damaged|no text"),
        (PDF, b"%PDF-1.4\n" + b"<<" * 5000, "damaged"),
        (DOCX, b"PK\x03\x04", "damaged"),
        (DOCX, docx("<w:p><w:r>"), "damaged"),
        (DOCX, docx(paragraph("text"))[:-40], "damaged"),
        (DOCX, docx(""), "no text"),
        (DOCX, docx(paragraph("text"), **{"word/bomb.xml": "0" * (64 * 2**20)}), "unpacks to"),
        (DOCX, docx(paragraph("text"), **{"word/media/bomb.xml": "<" + "0" * (64 * 2**20)}), "unpacks to"),
        (DOCX, docx(f"{'<w:p>' * 100_000}{'</w:p>' * 100_000}"), "damaged|no text"),
        (JSONL, b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        (JSONL, b'{"text": "\xff"}', "line 1 is not JSON"),
        (JSONL, b'{"count": 1}', "no text"),
        (JSONL, b"[" * 200_000, "line 1 is not JSON"),
    ],
)
def test_bad_file_is_refused_with_a_reason(path: Path, media_type: str, content: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as refusal:
        extract(path, media_type, content)

    assert refusal.value.code == "invalid_file"


def test_pictures_do_not_count_as_what_a_docx_unpacks_to(path: Path) -> None:
    picture = b"\x89PNG\r\n" + bytes(64 * 2**20)

    assert (
        extract(path, DOCX, docx(paragraph("A view of Paris."), **{"word/media/1.png": picture})) == "A view of Paris."
    )


@pytest.mark.parametrize("beginning", _IMAGE_BEGINNINGS)
def test_what_begins_like_a_picture_is_never_read_as_the_document(path: Path, beginning: bytes) -> None:
    whole = docx(paragraph("text"))
    with zipfile.ZipFile(BytesIO(whole)) as archive:
        document = archive.read("word/document.xml")

    with pytest.raises(InvalidRequest, match="damaged"):
        extract(path, DOCX, docx("", **{"word/document.xml": beginning + document}))


@pytest.mark.parametrize("media_type", [PDF, DOCX])
def test_no_damage_raises_anything_else(path: Path, media_type: str) -> None:
    whole = pdf("Some words.", "And more.") if media_type == PDF else docx(paragraph("Some words."))
    for position in range(0, len(whole), max(len(whole) // 60, 1)):
        damaged = whole[:position] + b"\xff\x00(" + whole[position + 3 :]
        with suppress(InvalidRequest):
            extract(path, media_type, damaged)


def test_media_type_that_is_not_ours_is_refused(path: Path) -> None:
    with pytest.raises(UnsupportedFile):
        extract(path, "image/png", PNG)


def test_file_that_is_gone_is_no_bad_file(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        extract_text(path, PLAIN, 10)
