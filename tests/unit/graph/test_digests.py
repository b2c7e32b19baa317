"""Digests: those of published standards, over JSON in one form only."""

import math

import pytest

from colbert_zero.graph.digests import canonical_json, digest, file_digest


def test_json_has_sorted_keys_no_spaces_and_its_characters_as_they_are():
    value = {"p": 0.95, "é": None, "a": [True, "b c", {"z": 1, "y": -2}]}
    assert canonical_json(value) == '{"a":[true,"b c",{"y":-2,"z":1}],"p":0.95,"é":null}'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_does_not_have_is_refused(value):
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"p": [value]})


def test_a_digest_is_the_sha256_of_the_utf8_bytes(tmp_path):
    # The example of FIPS 180-2, and that of an empty message.
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert (digest("abc"), digest("")) == (abc, empty)
    (tmp_path / "file").write_bytes(b"abc")
    assert file_digest(tmp_path / "file") == abc
    assert digest("é") == "4a99557e4033c3539de2eb65472017cad5f9557f7a0625a09f1c3f6e2ba69c4c"
