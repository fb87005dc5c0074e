import hashlib

import pytest

from gossamer.core.errors import DataError
from gossamer.data.text import built_in_texts, read_text


def test_a_file_is_one_document_with_its_digest(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("One sentence – with a dash.\n", encoding="utf-8")
    documents, provenance = read_text(str(path))
    assert [d.text for d in documents] == ["One sentence – with a dash.\n"]
    assert provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert provenance["n"] == 1
    assert provenance["split"] is None


def test_the_separator_cuts_documents(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("Once.\n<|endoftext|>\nTwice.\nMore.\n<|endoftext|>\n")
    assert [d.text for d in read_text(str(path))[0]] == ["Once.", "Twice.\nMore."]


def test_built_in_texts_are_found_by_name():
    assert "heldout" in built_in_texts()
    documents, provenance = read_text("heldout")
    assert len(documents[0].text) > 100_000
    assert provenance["data"] == "heldout"


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b" \n\n", "is empty"), (b"fine\nbad \xff\n", "line 2.*not UTF-8")]
)
def test_bad_files_are_named(tmp_path, content, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_text(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"does not exist.*heldout"):
        read_text(str(tmp_path / "no.txt"))
    with pytest.raises(DataError, match="is a folder"):
        read_text(str(tmp_path))
    with pytest.raises(DataError, match="no split 'val'"):
        read_text("heldout", split="val")
