"""Kinds of what is joined to x_t, by what files of weights say of them: `ladd_jax.data.joined`."""

import pytest

from ladd_jax.data.joined import JOINED, Joined, joined_kind, kinds_of
from ladd_jax.errors import UserError


def test_without_packages_the_number_of_channels_tells_the_kind():
    assert [joined_kind("w", "", joined, 16) for joined in (0, 16, 17, 3)] == [
        "", "edit", "inpaint", "",
    ]  # fmt: skip


def test_of_several_kinds_with_as_many_channels_files_say_which(monkeypatch):
    monkeypatch.setitem(JOINED, "depth", Joined(lambda channels: channels, "a picture of depth"))
    assert kinds_of(16, 16) == ["edit", "depth"]
    assert [joined_kind("w", said, 16, 16) for said in ("edit", "depth")] == ["edit", "depth"]
    with pytest.raises(UserError, match="w reads 16 channels .* they are edit or depth: export it"):
        joined_kind("w", "", 16, 16)
    # Its class has a transformer without such channels, too.
    assert joined_kind("w", "inpaint", 0, 16) == ""


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("depth", "w is given 'depth' .* has inpaint and edit here: install the package"),
        ("edit", "by its files w is given the picture that is edited, in 16 channels, .* read 32 "),
    ],
)
def test_weights_of_a_kind_that_is_not_there_or_does_not_fit_are_refused(said, words):
    with pytest.raises(UserError, match=words):
        joined_kind("w", said, 32, 16)
