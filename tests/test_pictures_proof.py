"""Folders of emoji with names: captions, shapes, and what training never sees."""

import json
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image

from benchmarks import emoji as emoji_module
from benchmarks import pictures
from benchmarks.emoji import Emoji, code_of, kind, read_emoji
from configs import pictures as pictures_config
from ladd_jax.config.fields import typed
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.sources import open_source
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.models.random_text import TOKENIZERS

APPLE = dict(unified="1F34E", name="RED APPLE", category="Food & Drink", subcategory="food-fruit")
HEART = dict(
    unified="2764-FE0F", name="HEAVY BLACK HEART", category="Smileys & Emotion", subcategory="heart"
)
FLAG = dict(unified="1F1E7", name="Belgium Flag", category="Flags", subcategory="country-flag")
TONE = dict(unified="1F3FB", name="TONE", category="Component", subcategory="skin-tone")
HAND = dict(
    unified="1F44B", name="WAVING HAND SIGN", category="People & Body", subcategory="hand-prop",
    skin_variations={"1F3FB": {"has_img_apple": True}, "1F3FC": {"has_img_apple": False}},
)  # fmt: skip
TWIN = dict(APPLE, unified="1F34E-2642")
LONG = dict(APPLE, unified="1F34F", name="GREEN APPLE " * 4)


def packages(root, entries, colours=None):
    """Makers' packages: each draws the entries in a colour of its own."""
    for number, maker in enumerate(emoji_module.MAKERS):
        folder = root / "node_modules" / maker.package
        images = folder / "img" / maker.name / "64"
        images.mkdir(parents=True)
        listed = []
        for place, entry in enumerate(entries):
            name = f"{entry['unified'].lower()}.png"
            colour = (colours or {}).get(entry["unified"], (place, number, 0))
            Image.new("RGBA", (64, 64), (*colour, 255)).save(images / name)
            listed.append(entry | {"image": name, "sort_order": place, f"has_img_{maker.name}": 1})
        (folder / "emoji.json").write_text(json.dumps(listed))
        stated = dict(name=maker.package, version=maker.version, license="MIT")
        (folder / "package.json").write_text(json.dumps(stated))
    return root


def many(count):
    return [dict(APPLE, unified=f"1F{i:03X}", name=f"FRUIT {i}") for i in range(count)]


def test_names_are_unicodes_and_skin_tones_flags_and_long_names_are_counted(tmp_path):
    root = packages(tmp_path, [APPLE, HEART, FLAG, TONE, HAND, LONG, TWIN])
    emoji, left_out = read_emoji(root, pictures.LONGEST_NAME)
    assert [(each.code, each.name, each.kind) for each in emoji] == [
        ("1f34e", "red apple", "food"),
        ("2764", "heavy black heart", "a heart"),
        ("1f44b", "waving hand sign", "a hand"),
    ]
    assert [set(each.files) for each in emoji] == [{m.name for m in emoji_module.MAKERS}] * 3
    makers = len(emoji_module.MAKERS)
    assert left_out == {
        "skin tone": makers + 1,
        "flag of a country": makers,
        "name of more than 36 bytes": makers,
        "name of another emoji": makers,
    }


def test_makers_that_do_not_draw_an_emoji_or_miss_its_file_have_none(tmp_path):
    root = packages(tmp_path, [APPLE, HEART])
    (root / "node_modules/emoji-datasource-apple/img/apple/64/1f34e.png").unlink()
    file = root / "node_modules/emoji-datasource-twitter/emoji.json"
    file.write_text(
        json.dumps([e | {"has_img_twitter": False} for e in json.loads(file.read_text())])
    )
    apple, heart = read_emoji(root, 36)[0]
    assert {"apple", "twitter"}.isdisjoint(apple.files)
    assert "apple" in heart.files and "twitter" not in heart.files
    with pytest.raises(NotFoundError, match="let npm install emoji-datasource-google@"):
        read_emoji(tmp_path / "other", 36)


def test_every_category_has_a_word_and_variation_selectors_do_not_matter():
    assert kind("Animals & Nature", "animal-bird") == kind("Animals & Nature", "animal-bug")
    assert kind("Symbols", "transport-sign") == "a sign"
    assert code_of({"unified": "0023-FE0F-20E3"}) == code_of({"unified": "0023-20E3"})


def test_one_view_is_called_by_name_and_maker_and_the_other_by_its_category():
    apple = Emoji("1f34e", "red apple", "food", {})
    assert pictures.caption(apple, "twitter", 0) == "red apple, twitter"
    assert pictures.caption(apple, "twitter", 1) == "food"


def test_captions_fit_what_the_config_reads():
    data = pictures_config.get_config("data=x").data
    tokenizer = TOKENIZERS[data.text_tokens](data.text_length)
    name = ("of " * pictures.LONGEST_NAME)[: pictures.LONGEST_NAME - 1]
    tokenizer([f"{name}, {maker.name}" for maker in emoji_module.MAKERS])
    assert not tokenizer.truncated


def test_training_sees_each_name_and_each_maker_of_what_is_held_out():
    makers = {f"{i:x}": list("abcd") if i % 3 else list("ab") for i in range(300)}
    apart = pictures.held_out_combinations(makers, 0.5)
    assert 70 < len(apart) < 130
    assert len({code for code, _ in apart}) == len(apart)
    assert all(len(makers[code]) > 2 for code, _ in apart)
    assert {maker for _, maker in apart} == set("abcd")
    more = pictures.held_out_combinations(makers | {"fff": list("abc")}, 0.5)
    assert apart == more - {(code, maker) for code, maker in more if code == "fff"}


def test_shapes_are_drawn_by_name_in_their_shares():
    shapes = [pictures.shape(f"{i}.png") for i in range(400)]
    assert shapes == [pictures.shape(f"{i}.png") for i in range(400)]
    for each, share in pictures.SHAPES.items():
        assert abs(shapes.count(each) / 400 - share) < 0.1


def test_an_emoji_lies_whole_on_a_pale_ground():
    disc = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    disc.paste((200, 0, 0, 255), (8, 8, 56, 56))
    grounds, places = set(), set()
    for i in range(30):
        made = pictures.compose(disc, f"{i}.png")
        assert (made.height, made.width) == pictures.shape(f"{i}.png")
        pixels = np.array(made).astype(int)
        ground = pixels[0, 0]
        assert ground.min() > 150
        rows, columns = np.nonzero((abs(pixels - [200, 0, 0]) < 4).all(-1))
        assert abs(np.ptp(rows) - np.ptp(columns)) <= 3 and np.ptp(rows) >= 20
        grounds.add(tuple(ground))
        places.add((rows[0], columns[0]))
    assert (255, 255, 255) in grounds and len(grounds) > 10 and len(places) > 20


def test_the_folder_names_licences_and_holds_out_what_it_says(tmp_path):
    root = packages(tmp_path / "packages", many(40))
    rows, _ = pictures.write(root, tmp_path / "made")
    assert len(rows) == 40 * len(emoji_module.MAKERS) * 2
    seen = defaultdict(set)
    for row in rows:
        seen[row["held_out"]].add((row["name"], row["maker"]))
    assert seen[True] and not seen[True] & seen[False]
    for part in (0, 1):
        assert {pair[part] for pair in seen[True]} <= {pair[part] for pair in seen[False]}
    page = (tmp_path / "made" / "LICENSES.md").read_text()
    assert all(maker.package in page and maker.rights in page for maker in emoji_module.MAKERS)
    assert f"{len(rows) - 2 * len(seen[True])} pictures and {2 * len(seen[True])} held out" in (
        pictures.tables(rows, {})
    )
    with pytest.raises(UserError, match="has files: remove them, or name another folder"):
        pictures.write(root, tmp_path / "made")

    config = pictures_config.get_config(f"data={tmp_path / 'made'}")
    config.pretrain.batch_size = 16
    buckets = [Bucket.parse(name) for name in config.data.buckets]
    source = open_source(typed(config), buckets, tmp_path / "run")
    assert {bucket.name for bucket in source.prompts} == {"64x64", "80x48", "48x80"}
    for apart, part in ((False, source), (True, source.held_out)):
        read = sorted(prompt for prompts in part.prompts.values() for prompt in prompts)
        assert read == sorted(row["text"] for row in rows if row["held_out"] == apart)


def test_a_picture_that_a_maker_has_under_two_names_is_taken_once(tmp_path):
    root = packages(tmp_path / "packages", many(3), {"1F000": (9, 9, 9), "1F002": (9, 9, 9)})
    rows, left_out = pictures.write(root, tmp_path / "made")
    assert {row["name"] for row in rows} == {"fruit 0", "fruit 1"}
    assert left_out["same picture under another name"] == len(emoji_module.MAKERS)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("resolution=40", "resolution 40 is not 16, 32, 48 or 64"),
        ("patch=6", "patch 6 does not divide 16, a quarter of resolution"),
        ("width=100", "width 100 is not a multiple of 64"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        pictures_config.get_config(f"data=x,{arguments}")


def test_buckets_are_the_shapes_of_the_pictures():
    config = pictures_config.get_config("data=x")
    assert set(config.data.buckets) == {f"{h}x{w}" for h, w in pictures.SHAPES}
    assert typed(pictures_config.get_config("data=x,resolution=32")).model.patch == 2
