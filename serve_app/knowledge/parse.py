"""Files to text: `detect_media_type` at the upload, `extract_text` at the ingestion.

The gateway imports this file too, so what parses a format is imported where it is parsed.
"""

import codecs
import json
import logging
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import IO, Any

from serve_app.errors import InvalidRequest, RayconteurError, UnsupportedFile

logger = logging.getLogger(__name__)

PLAIN = "text/plain"
MARKDOWN = "text/markdown"
HTML = "text/html"
PDF = "application/pdf"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
JSONL = "application/jsonl"

MARKDOWN_TYPES = frozenset({MARKDOWN, HTML, DOCX, JSONL})
"""Media types whose extracted text is Markdown: a line that begins with # is a heading in it, and no comment."""

_TYPES_BY_SUFFIX = {
    ".md": MARKDOWN,
    ".markdown": MARKDOWN,
    ".html": HTML,
    ".htm": HTML,
    ".xhtml": HTML,
    ".pdf": PDF,
    ".docx": DOCX,
    ".jsonl": JSONL,
    ".ndjson": JSONL,
}
_PLAIN_SUFFIXES = (
    ".txt .text .log .csv .tsv .rst .adoc .org .tex .srt .vtt .json .xml .yaml .yml .toml .ini .cfg .conf .properties"
    " .py .js .mjs .ts .tsx .jsx .java .kt .c .h .cc .cpp .hpp .cs .go .rs .rb .php .pl .r .jl .lua .scala .swift"
    " .sh .bash .ps1 .bat .sql .css .scss .diff .patch"
)
_SUPPORTED = ".txt, .md, .html, .pdf, .docx, .jsonl, and plain text such as .csv, .log, .json or source code"

# How files begin that are no text, though some of them have no NUL byte near their beginning.
_BINARY_BEGINNINGS = (
    b"%PDF-",
    b"PK\x03\x04",
    b"\x89PNG",
    b"GIF8",
    b"\xff\xd8\xff",
    b"\x1f\x8b",
    b"\x7fELF",
    b"Rar!\x1a",
    b"7z\xbc\xaf",
    b"\xd0\xcf\x11\xe0",
    b"{\\rtf",
)
_WIDE_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"} | {
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_CONTROL_BYTES = bytes(set(range(32)) - set(b"\t\n\r\f\v\b\x1b"))
_SAMPLE_BYTES = 64 * 1024
_MAX_JSON_SAMPLE_LINES = 10
_MAX_DOCX_XML_BYTES = 64 * 2**20
"""A document of this size has several thousand pages; its tree takes about ten times as much memory."""
_MAX_DOCX_PARTS = 10_000
_IMAGE_BEGINNINGS = (
    b"\x89PNG",
    b"\xff\xd8\xff",  # JPEG
    b"GIF8",
    b"BM",
    b"II*\x00",  # TIFF
    b"MM\x00*",
    b"RIFF",  # WebP
    b"\x01\x00\x00\x00",  # EMF
    b"\xd7\xcd\xc6\x9a",  # WMF
)
"""How pictures begin, of which documents have many. An XML parser gives up at these bytes, wherever a part is."""


# --- detection ----------------------------------------------------------------------------------


def detect_media_type(path: Path, filename: str) -> str:
    """The media type of a file, by its name, which its content must agree with. Reads at most some 100 kB.

    Raises `InvalidRequest` (`empty_file`) for an empty file and `UnsupportedFile` for one that is not read here.
    """
    size_bytes = path.stat().st_size
    if size_bytes == 0:
        raise InvalidRequest(f"The file {filename!r} is empty", param="file", code="empty_file")
    media_type = _type_by_name(filename)
    with path.open("rb") as file:
        if not _CHECKS[media_type](file, size_bytes):
            raise UnsupportedFile(
                f"The content of {filename!r} is not {_NAMES[media_type]}, as its name says",
                param="file",
                code="unsupported_file",
            )
    return media_type


def _type_by_name(filename: str) -> str:
    suffix = PurePath(filename).suffix.lower()
    if suffix == "" or suffix in _PLAIN_SUFFIXES.split():
        return PLAIN
    if suffix not in _TYPES_BY_SUFFIX:
        raise UnsupportedFile(
            f"Files of type {suffix!r} are not read here; those that are: {_SUPPORTED}",
            param="file",
            code="unsupported_file",
        )
    return _TYPES_BY_SUFFIX[suffix]


def _is_text(file: IO[bytes], size_bytes: int) -> bool:
    beginning = file.read(_SAMPLE_BYTES)
    file.seek(max(size_bytes - _SAMPLE_BYTES, 0))
    end = file.read(_SAMPLE_BYTES)
    if beginning.startswith(tuple(_WIDE_MARKS)):
        return _decodes(beginning, _wide_encoding(beginning))
    if beginning.startswith(_BINARY_BEGINNINGS):
        return False
    # A stray control character is no reason, as in logs of terminals; NUL is in no text.
    return all(
        b"\x00" not in sample and len(sample) - len(sample.translate(None, _CONTROL_BYTES)) <= len(sample) // 100
        for sample in (beginning, end)
    )


def _is_pdf(file: IO[bytes], size_bytes: int) -> bool:
    beginning = file.read(1024)
    # Readers allow some bytes before the header; a page that speaks of PDFs is none.
    return b"%PDF-" in beginning and not beginning.lstrip().startswith((b"<", b"PK", b"MZ"))


def _is_docx(file: IO[bytes], size_bytes: int) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.NameToInfo
            return "[Content_Types].xml" in names and "word/document.xml" in names
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        return False


def _is_jsonl(file: IO[bytes], size_bytes: int) -> bool:
    sample = file.read(_SAMPLE_BYTES).removeprefix(codecs.BOM_UTF8)
    lines = sample.split(b"\n")
    cut_line = lines.pop() if len(sample) < size_bytes else b""
    lines = [line for line in lines if line.strip()][:_MAX_JSON_SAMPLE_LINES]
    if not lines:
        return cut_line.lstrip().startswith(b"{")
    try:
        return all(isinstance(json.loads(line), dict) for line in lines)
    except (ValueError, RecursionError):
        return False


_CHECKS: dict[str, Callable[[IO[bytes], int], bool]] = {
    PLAIN: _is_text,
    MARKDOWN: _is_text,
    HTML: _is_text,
    PDF: _is_pdf,
    DOCX: _is_docx,
    JSONL: _is_jsonl,
}
_NAMES = {
    PLAIN: "plain text",
    MARKDOWN: "Markdown text",
    HTML: "an HTML page",
    PDF: "a PDF",
    DOCX: "a Word document (.docx)",
    JSONL: "JSON Lines",
}


# --- extraction ---------------------------------------------------------------------------------


def extract_text(path: Path, media_type: str, max_characters: int) -> str:
    """The text of a file, as Markdown where the format has headings. What is beyond `max_characters` is left out.

    Each page of a PDF but the last ends with a form feed, as `pdftotext` writes them.
    Raises `InvalidRequest` (`invalid_file`) with a reason for a file that cannot be read or has no text, and
    `UnsupportedFile` for a media type that `detect_media_type` does not give. Takes minutes for very large files.
    """
    if media_type not in _EXTRACTORS:
        raise UnsupportedFile(f"Files of type {media_type!r} are not read here", code="unsupported_file")
    with path.open("rb") as file:
        try:
            text = _EXTRACTORS[media_type](file, max_characters)
        except RayconteurError:
            raise
        # Parsers raise anything for a malformed file, from KeyError to RecursionError; here all of it has one meaning.
        except Exception as error:
            logger.info("a file of type %s could not be read: %r", media_type, error)
            raise _invalid(f"the file is damaged, or not {_NAMES[media_type]} ({type(error).__name__})") from error
    text = _storable(text[:max_characters])
    if not text.strip():
        raise _invalid("the file has no text" + (": it may be a scan" if media_type == PDF else ""))
    return text


def _invalid(reason: str) -> InvalidRequest:
    return InvalidRequest(f"The file cannot be used: {reason}", param="file", code="invalid_file")


def _storable(text: str) -> str:
    """Without what UTF-8 or PostgreSQL cannot hold: NUL and halves of surrogate pairs. Lines end with \\n."""
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.replace("\x00", "").replace("\r\n", "\n").replace("\r", "\n")


def _plain(file: IO[bytes], max_characters: int) -> str:
    data = file.read(4 * max_characters + 4)
    return _decode(data, is_whole=not file.read(1))


def _decode(data: bytes, *, is_whole: bool) -> str:
    if data.startswith(tuple(_WIDE_MARKS)):
        return data.decode(_wide_encoding(data), "replace")
    try:
        return codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=is_whole)
    except UnicodeDecodeError as error:
        return data.decode(_guess_encoding(data, error.start), "replace")


def _guess_encoding(data: bytes, position: int) -> str:
    import charset_normalizer

    # What comes before may be plain ASCII for long, which says nothing about the encoding.
    sample = data[max(position - 256, 0) : position + _SAMPLE_BYTES]
    best = charset_normalizer.from_bytes(sample).best()
    if best is None:
        raise _invalid("the encoding of its text is not known: save it as UTF-8")
    return best.encoding


def _wide_encoding(data: bytes) -> str:
    return next(encoding for mark, encoding in _WIDE_MARKS.items() if data.startswith(mark))


def _decodes(sample: bytes, encoding: str) -> bool:
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        return False
    return "\x00" not in text


def _html(file: IO[bytes], max_characters: int) -> str:
    # Markup is often ten times the text.
    data = file.read(40 * max_characters)
    declared = re.search(rb"<meta[^>]{0,200}charset=[\"']?([A-Za-z0-9_-]+)", data[:4096], re.IGNORECASE)
    try:
        return _markdown(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        encoding = declared.group(1).decode() if declared else ""
        if _is_known_encoding(encoding):
            return _markdown(data.decode(encoding, "replace"))
        return _markdown(_decode(data, is_whole=True))


def _is_known_encoding(encoding: str) -> bool:
    try:
        codecs.lookup(encoding)
    except LookupError:
        return False
    return True


def _markdown(html: str) -> str:
    """A page as Markdown with `#` headings, without what is not its text. Links keep only their words."""
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    soup = BeautifulSoup(html, "html.parser")
    title = soup.title.get_text(" ", strip=True) if soup.title else ""
    for tag in soup(["head", "title", "script", "style", "nav", "noscript", "template", "svg", "iframe"]):
        tag.decompose()
    for image in soup("img"):
        image.replace_with(str(image.get("alt") or ""))
    try:
        # Backslashes before every * and _ would stand between a reader, or a search, and the words.
        converter = MarkdownConverter(
            heading_style="ATX", strip=["a"], escape_asterisks=False, escape_underscores=False, escape_misc=False
        )
        text = str(converter.convert_soup(soup))
    except RecursionError:
        text = soup.get_text("\n")
    if title and soup.h1 is None:
        text = f"# {title}\n\n{text}"
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _pdf(file: IO[bytes], max_characters: int) -> str:
    from pypdf import PdfReader

    reader = PdfReader(file)
    if reader.is_encrypted and not reader.decrypt(""):
        raise _invalid("the PDF is encrypted: save it without a password")
    pages: list[str] = []
    characters = 0
    for page in reader.pages:
        pages.append(page.extract_text().replace("\f", " ").strip())
        characters += len(pages[-1])
        if characters >= max_characters:
            break
    # Empty pages stay, so that the others keep their numbers.
    return "\f\n\n".join(pages)


def _docx(file: IO[bytes], max_characters: int) -> str:
    import mammoth

    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        if len(parts) > _MAX_DOCX_PARTS:
            raise _invalid(f"the document has {len(parts)} parts; at most {_MAX_DOCX_PARTS} are read")
        unpacked_bytes = sum(part.file_size for part in parts if not _is_image(archive, part))
    if unpacked_bytes > _MAX_DOCX_XML_BYTES:
        raise _invalid(f"the document unpacks to {unpacked_bytes} bytes; at most {_MAX_DOCX_XML_BYTES} are read")
    file.seek(0)
    return _markdown(mammoth.convert_to_html(file, convert_image=lambda image: []).value)


def _is_image(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> bool:
    # By its content, as the names are the author's: any part can be named as the main document.
    with archive.open(part) as content:
        return content.read(4).startswith(_IMAGE_BEGINNINGS)


def _jsonl(file: IO[bytes], max_characters: int) -> str:
    paragraphs: list[str] = []
    characters = 0
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            paragraphs.append(_record_text(json.loads(line.decode("utf-8-sig"))))
        except (ValueError, RecursionError):
            raise _invalid(f"line {number} is not JSON in UTF-8") from None
        characters += len(paragraphs[-1])
        if characters >= max_characters:
            break
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _record_text(record: Any) -> str:
    """`title` as a heading over `text`, `content` and `body`; without any of these, every string in the record."""
    if not isinstance(record, dict):
        return "\n\n".join(_strings(record))
    title = record.get("title")
    texts = [record[key] for key in ("text", "content", "body") if isinstance(record.get(key), str)]
    if not texts:
        texts = list(_strings({key: value for key, value in record.items() if key != "title"}))
    heading = [f"# {title.strip()}"] if isinstance(title, str) and title.strip() else []
    return "\n\n".join(heading + [text for text in texts if text.strip()])


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


_EXTRACTORS: dict[str, Callable[[IO[bytes], int], str]] = {
    PLAIN: _plain,
    MARKDOWN: _plain,
    HTML: _html,
    PDF: _pdf,
    DOCX: _docx,
    JSONL: _jsonl,
}
